"""hpcdist submit, hpcdist render."""

from pathlib import Path
from typing import Any

import click

from hpcdist.cli.options import (
    BACKEND,
    DRY_RUN,
    FILE,
    JSON,
    SITE,
    WAIT,
    JobCommand,
    collect_options,
    job_options,
    open_here,
)
from hpcdist.config.job import Backend, JobSpec
from hpcdist.submission.prepare import PreparedJob, choose_backend, complete_job, prepare
from hpcdist.submission.render import packaged_templates

RUN = click.option("--run", metavar="NAME", help="Name of the run.")
TEMPLATE = click.option(
    "--template", type=click.Path(path_type=Path), metavar="FILE", help="Template to use in place of the packaged one."
)


@click.command(
    cls=JobCommand,
    epilog="""Examples:

\b
  hpcdist submit --nodes 2 --gpus 1 --wait
  hpcdist submit --gpus 4 --time 2:00:00 -- python train.py --lr 0.1
  hpcdist submit jobs/mnist.toml --partition gpu
""",
)
@FILE
@job_options
@BACKEND
@RUN
@TEMPLATE
@SITE
@click.option("--snapshot", is_flag=True, help="Run COMMAND in a copy of the code as it is now (git tree and changes).")
@DRY_RUN
@WAIT
@JSON
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    file: Path | None,
    *,
    backend: Backend | None,
    run: str | None,
    template: Path | None,
    snapshot: bool,
    dry_run: bool,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a training and print its job id.

    FILE.toml holds options by their names; options given here win. A list of lists of arguments, tasks, makes an
    array there. Without COMMAND the built-in MNIST CNN is trained. Where there is no Slurm the same layout runs on
    this machine.
    """
    from hpcdist.records.store import new_run_name  # only here: render must start as fast as a template engine can

    project = open_here()
    job = complete_job(collect_options(file, options, ctx.meta["hpcdist.command"]), project)
    name = run or new_run_name(job)
    workdir = _copy_code(project.root, name, job, dry_run=dry_run) if snapshot else None
    prepared = prepare(job, project, backend=choose_backend(backend), run=name, template=template, workdir=workdir)
    ctx.exit(send_and_show(prepared, dry_run=dry_run, wait=wait, as_json=as_json))


def send_and_show(prepared: PreparedJob, *, dry_run: bool, wait: bool, as_json: bool) -> int:
    """Sends a job, and follows it where that is asked for; returns the exit status.

    Raises:
        NotReadyError: It would run here, and its data is not.
        SubmitError: The scheduler refused.
    """
    from hpcdist.cli import progress
    from hpcdist.config.secrets import exported
    from hpcdist.jobs.job import Job
    from hpcdist.submission.send import send

    progress.warn_of_missing_data(prepared)
    progress.warn_of_exposed_secret(prepared)
    if prepared.note:
        click.echo(prepared.note, err=True)
    if dry_run:
        progress.show_dry_run(prepared)
        return 0
    job = Job(send(prepared))
    progress.announce(job, as_json=as_json and not wait)
    if not wait:
        return 0
    with exported(prepared.secrets):  # what is known is masked where the end of a log is shown
        return progress.follow(job, as_json=as_json)


def _copy_code(root: Path, run: str, job: JobSpec, *, dry_run: bool) -> Path:
    """The folder to start COMMAND in: the current one's copy.

    Raises:
        UsageError: There is no COMMAND, or nothing to copy.
    """
    from hpcdist.config.job import check_run_name
    from hpcdist.errors import UsageError
    from hpcdist.submission.snapshot import take_snapshot

    if not job.command:
        raise UsageError("--snapshot keeps the code of a COMMAND, and there is none", "add -- python train.py")
    # A dry run writes nothing; its script names the folder as it would be.
    target = root / "jobs" / "snapshots" / check_run_name(run)
    return target if dry_run else take_snapshot(Path.cwd(), target)


@click.command(
    cls=JobCommand,
    epilog=f"""The packaged templates are in {packaged_templates()}; a template of your own starts with
{{% extends "hpcdist/base.sbatch.j2" %}} and redefines its blocks.

Example: hpcdist render --nodes 2 --gpus 2 > job.sbatch && sbatch job.sbatch
""",
)
@FILE
@job_options
@RUN
@TEMPLATE
@SITE
@click.pass_context
def render(ctx: click.Context, /, file: Path | None, *, run: str | None, template: Path | None, **options: Any) -> None:
    """Print the sbatch script that submit would send.

    With --run R it is, byte for byte, what `submit --run R` sends. Without, the script names its run after its
    Slurm job, so that it can be submitted any number of times.
    """
    project = open_here()
    job = complete_job(collect_options(file, options, ctx.meta["hpcdist.command"]), project)
    click.echo(prepare(job, project, backend="slurm", run=run, template=template).script, nl=False)
