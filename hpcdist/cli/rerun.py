"""hpcdist rerun."""

from typing import Any

import click

from hpcdist.cli.advise import format_line, observe
from hpcdist.cli.options import DRY_RUN, JOB, JSON, WAIT
from hpcdist.cli.submit import send_and_show
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.jobs.advice import advise
from hpcdist.jobs.job import Job
from hpcdist.records.store import RunRecord
from hpcdist.submission import send
from hpcdist.submission.rerun import Rerun, parse_changes, prepare_rerun
from hpcdist.text import printable_line


@click.command(
    epilog="""Examples:

\b
  hpcdist rerun 1234
  hpcdist rerun 1234 --set nodes=2 --set lr=0.001 --set env=NAME=VALUE
  hpcdist rerun mnist-1x1-3d46fd --advised --wait
  hpcdist rerun mnist-2x1-3d46fd --resume --set nodes=1
"""
)
@JOB
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="Change an option; empty: its default.")
@click.option("--advised", is_flag=True, help="Change what `hpcdist advise JOB` says; --set wins over it.")
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint (built-in training).")
@click.option("--run", metavar="NAME", help="Name of the new run.")
@DRY_RUN
@WAIT
@JSON
@click.pass_context
def rerun(
    ctx: click.Context,
    job: str,
    *,
    settings: tuple[str, ...],
    advised: bool,
    resume: bool,
    run: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Submit a run of this project again, and show what is different.

    Options, site settings, template, interpreter and working folder are those of the run; jobs that it waited for
    (--dependency) are not waited for again, unless --set dependency=JOB says so. An array is submitted whole.
    """
    found = Job.find(job)
    record = found.run.record()
    changes = parse_changes(list(settings))
    if advised:
        changes = {**_advised(found), **changes}
    if resume:
        changes = {"resume_from": _checkpoints(found, record), **changes}
    again = prepare_rerun(record, found.run.root, changes, run)
    _show_differences(record, again)
    ctx.exit(send_and_show(again.prepared, dry_run=dry_run, wait=wait, as_json=as_json))


def _advised(job: Job) -> dict[str, Any]:
    """The advised changes, after their reasons were shown.

    Raises:
        UsageError: There is nothing to base advice on.
    """
    try:
        observed = observe([Job(job.run)])
    except HpcdistError as error:
        raise UsageError(f"there is no advice on {job.run.name}: {error.message}", "leave out --advised") from None
    advice = advise([one for _, one in observed])
    for line in advice.lines:
        if line.is_change:
            click.echo(printable_line(f"advised {format_line(line)}  ({line.evidence}; {line.rule})"), err=True)
    for note in advice.notes:
        click.echo(printable_line(f"note: {note}"), err=True)
    return parse_changes([f"{option}={value}" for option, value in advice.changes().items()])


def _checkpoints(job: Job, record: RunRecord) -> str:
    """The folder with the run's checkpoints.

    Raises:
        UsageError: There is nothing to go on from.
    """
    if record.job.command:
        raise UsageError(
            "--resume is for the built-in training, and this run had a command of its own",
            "have the command look for its checkpoints in the old run's folder too",
        )
    folder = job.run.path / "checkpoints"
    if not any(folder.glob("*.ckpt")):
        raise UsageError(f"{job.run.name} left no checkpoint", "leave out --resume to begin anew")
    return str(folder)


def _show_differences(record: RunRecord, again: Rerun) -> None:
    differences = {f"--{name}": pair for name, pair in again.differences.items()} | send.compare(record)
    new = again.prepared.paths.run
    if not differences:
        click.echo(f"{new} repeats {record.run}: nothing is different", err=True)
        return
    click.echo(f"{new} repeats {record.run} with", err=True)
    for name, (then, now) in differences.items():
        click.echo(printable_line(f"  {name} {then or '(none)'} -> {now or '(none)'}"), err=True)
