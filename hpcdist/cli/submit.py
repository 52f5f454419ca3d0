"""hpcdist submit, hpcdist render."""

from pathlib import Path
from typing import Any

import click

from hpcdist.cli.options import JobCommand, collect_options, job_options
from hpcdist.cli.site_option import SITE, open_here
from hpcdist.merging import merge_options
from hpcdist.prepare import prepare
from hpcdist.project import packaged_templates

BACKEND = click.option("--backend", type=click.Choice(["slurm", "local"]), help="Where to run [Slurm if it is there].")
RUN = click.option("--run", metavar="NAME", help="Name of the run.")
TEMPLATE = click.option(
    "--template", type=click.Path(path_type=Path), metavar="FILE", help="Template to use in place of the packaged one."
)
FILE = click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE.toml]")


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
@click.option("--dry-run", is_flag=True, help="Print the script and Slurm's estimate; submit nothing.")
@click.option("--wait", is_flag=True, help="Follow the job to its end; Ctrl-C leaves it running.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    file: Path | None,
    *,
    backend: str | None,
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
    # Only here: render, which shares this file, must start as fast as a template engine can.
    from hpcdist import submitting
    from hpcdist.cli import following
    from hpcdist.privacy import exported
    from hpcdist.spec import build_job
    from hpcdist.store import new_run_name

    project = open_here()
    given = merge_options(*collect_options(file, options, ctx.meta["hpcdist.command"]))
    chosen = submitting.choose_backend(backend)  # type: ignore[arg-type]
    if run is None:
        run = new_run_name(build_job(merge_options(project.defaults, given)))
    workdir = _copy_code(project.root, run, given, dry_run=dry_run) if snapshot else None
    prepared = prepare(given, project, backend=chosen, run=run, template=template, workdir=workdir)
    following.warn_of_missing_data(prepared)
    following.warn_of_exposed_secret(prepared)
    if prepared.note:
        click.echo(prepared.note, err=True)
    if dry_run:
        following.show_dry_run(prepared)
        return
    job = submitting.submit_prepared(prepared)
    following.announce(job, as_json=as_json and not wait)
    if wait:
        with exported(prepared.secrets):  # what is known is masked where the end of a log is shown
            ctx.exit(following.follow(job, as_json=as_json))


def _copy_code(root: Path, run: str, given: dict[str, Any], *, dry_run: bool) -> Path:
    """The folder to start COMMAND in: the current one's copy.

    Raises:
        UsageError: There is no COMMAND, or nothing to copy.
    """
    from hpcdist.errors import UsageError
    from hpcdist.snapshot import take_snapshot
    from hpcdist.spec import check_run_name

    if not given.get("command"):
        raise UsageError("--snapshot keeps the code of a COMMAND, and there is none", "add -- python train.py")
    if given.get("data_dir"):
        given["data_dir"] = str(Path(given["data_dir"]).absolute())  # meant from here, not from the copy
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
    given = merge_options(*collect_options(file, options, ctx.meta["hpcdist.command"]))
    prepared = prepare(given, project, backend="slurm", run=run, template=template)
    click.echo(prepared.script, nl=False)
