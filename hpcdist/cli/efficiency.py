"""hpcdist seff."""

from typing import cast

import click

from hpcdist.accounting import Source
from hpcdist.cli.follow import find_or_id
from hpcdist.cli.output import format_efficiency, print_json
from hpcdist.errors import NotReadyError
from hpcdist.jobs import Job, read_efficiencies
from hpcdist.record import Efficiency


@click.command(epilog="Example: hpcdist seff 1234")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@click.option(
    "--source",
    type=click.Choice(["seff", "sacct", "ranks"]),
    help="Where the figures come from [seff for one job where it is installed, else sacct; ranks for a local run].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def seff(jobs: tuple[str, ...], *, source: str | None, as_json: bool) -> None:
    """CPU, memory and GPU efficiency and wall-clock, as `seff` has them.

    Also written beside the job's TensorBoard run, when it is one of this project's.
    """
    found = [find_or_id(token) for token in jobs]
    efficiencies = read_efficiencies(found, cast(Source | None, source))
    for one in efficiencies:
        if one.state == "PENDING":
            raise NotReadyError(f"job {one.array_job_id or one.job_id} is PENDING", f"hpcdist wait {one.job_id}")
    ours = {job.id: job for job in found if isinstance(job, Job)}
    if as_json:
        print_json(efficiencies)
    for number, one in enumerate(efficiencies):
        job = ours.get(one.job_id) or _task(ours, one)
        if not as_json:
            click.echo(("\n" if number else "") + format_efficiency(one, job.folder.ranks() if job else []))
        if job:
            write_board(job, one)


def _task(ours: dict[str | None, Job], efficiency: Efficiency) -> Job | None:
    """The array task of ours that a figure is about."""
    base, _, task = (efficiency.array_job_id or "").partition("_")
    whole = ours.get(efficiency.array_job_id) or ours.get(base)
    return Job(whole.run, task) if whole and task else whole


def write_board(job: Job, efficiency: Efficiency) -> None:
    """Puts a job's efficiency beside its curves in TensorBoard; a run that left no curves gets none."""
    # Only here: TensorBoard's writer takes longer to import than everything else this command does.
    from hpcdist import board

    folder = board.find_folder(job.folder.path, job.run.path.parents[2])
    if folder and not efficiency.live:
        training = next((rank.training for rank in job.folder.ranks() if rank.training), None)
        board.write_efficiency(folder, efficiency, training)
