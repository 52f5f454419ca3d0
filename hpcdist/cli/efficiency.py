"""hpcdist seff. Nothing but click is imported before a command runs: its help is there as fast as click is."""

import click

from hpcdist.cli.offers import offer_jobs, offer_studies


@click.command(epilog="Example: hpcdist seff 1234, or hpcdist seff --since 2d --state failed --sort -mem")
@click.argument("jobs", nargs=-1, metavar="[JOB...]", shell_complete=offer_jobs)
@click.option("--since", metavar="TIME", help="Slurm's jobs since then: 2d, 3h, 2026-01-31, or as sacct has it.")
@click.option("--user", metavar="NAME,...", help="Slurm's jobs of these users [since 7d].")
@click.option("--state", metavar="STATE,...", help="Only jobs in these states: failed,timeout [since 7d].")
@click.option("--study", metavar="NAME", shell_complete=offer_studies, help="The jobs of a study.")
@click.option(
    "--text", type=click.Path(), metavar="FILE", help="Read what seff printed from a file; - is standard input."
)
@click.option(
    "--sacct-file",
    type=click.Path(),
    metavar="FILE",
    help="Read what sacct -P printed, with its first line; - likewise.",
)
@click.option(
    "--source",
    type=click.Choice(["seff", "sacct", "ranks"]),
    help="Where the figures come from [seff for one job where it is installed, else sacct; ranks for a local run].",
)
@click.option("--table", "as_table", is_flag=True, help="Print the table for one job too.")
@click.option("--format", "columns", metavar="COLUMN,...", help="Columns of the table; +COLUMN adds one.")
@click.option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN for the highest first.")
@click.option("--parsable", is_flag=True, help="Print fields parted by |, in seconds, bytes and fractions.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("--jsonl", is_flag=True, help="Print a JSON object per line.")
@click.option("--watch", type=click.FloatRange(min=1), metavar="SECONDS", help="Again until all jobs are over.")
def seff(jobs: tuple[str, ...], **options: object) -> None:
    """CPU, memory and GPU efficiency and wall-clock, as `seff` has them.

    One JOB, a run's name or a job id, is shown as `seff` shows it; several in a table; without JOB: this project's
    runs. Also written beside the job's TensorBoard run, when it is one of this project's.
    """
    from hpcdist.cli.request import Request
    from hpcdist.cli.showing import show

    request = Request(jobs=jobs, **options)  # type: ignore[arg-type]
    request.check()
    show(request)
