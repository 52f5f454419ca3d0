"""hpcdist study run, status, cancel, list."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from hpcdist.cli import progress
from hpcdist.cli.complete import offer_studies
from hpcdist.cli.options import BACKEND, JSON, SITE, open_here
from hpcdist.cli.output import format_table, print_json
from hpcdist.cli.progress import RunWatch, count_states, describe_counts, wait_for
from hpcdist.config.job import Backend
from hpcdist.config.project import Project, find_project
from hpcdist.config.toml import read_text
from hpcdist.records.job import JobStatus
from hpcdist.report.compare import has_prices
from hpcdist.studies import state as study_state
from hpcdist.studies.batches import Batch
from hpcdist.studies.run import StudyPlan, cancel_study, plan_study, prepare_batches, run_study
from hpcdist.studies.state import StudyState, load_study
from hpcdist.studies.study import Scale, Study, Trial
from hpcdist.studies.study_file import parse_study
from hpcdist.studies.trials import find_runs, query_trials
from hpcdist.submission.prepare import choose_backend
from hpcdist.text import printable_line
from hpcdist.units import format_duration

FILE = click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")
SCALE = click.option(
    "--scale",
    type=click.Choice(["full", "small"]),
    default="full",
    help="small: with the file's [small], in minutes on CPUs [full].",
)
NAME = click.argument("name", shell_complete=offer_studies)


def read_study(file: Path, project: Project, scale: Scale = "full") -> Study:
    """A study's file.

    Raises:
        UsageError: It can't be read, or has a fault.
    """
    study = parse_study(read_text(file), str(file), project.defaults, scale=scale)
    # A study that says nothing of prices is charged what the cluster charges.
    return study if has_prices(study.prices) else msgspec.structs.replace(study, prices=project.site.prices)


@click.group(
    epilog="""Examples:

\b
  hpcdist study run jobs/mnist-layouts.toml --wait
  hpcdist study status mnist-layouts
"""
)
def study() -> None:
    """Run the same training over several layouts and settings, to be compared with `hpcdist report`."""


@study.command(epilog="Example: hpcdist study run jobs/mnist-layouts.toml --wait")
@FILE
@BACKEND
@click.option("--wait", is_flag=True, help="Follow it to its end; Ctrl-C leaves the jobs running.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent; send nothing.")
@click.option("--retry", is_flag=True, help="Run trials again that failed, were refused or cancelled.")
@SCALE
@SITE
@JSON
@click.pass_context
def run(
    ctx: click.Context,
    file: Path,
    *,
    backend: Backend | None,
    wait: bool,
    dry_run: bool,
    retry: bool,
    scale: Scale,
    as_json: bool,
) -> None:
    """Send what of a study has not been sent yet; print the job ids.

    Run it again after a crash, or when you changed the file: nothing is sent twice. Where there is no Slurm the
    trials run here, one after the other.
    """
    project = open_here()
    wanted = read_study(file, project, scale)
    chosen = choose_backend(backend)
    if dry_run:
        _show_plan(plan_study(wanted, project, backend=chosen, source=file, retry=retry), project, as_json=as_json)
        return
    watch = RunWatch(wanted.name)
    try:
        state = run_study(wanted, project, backend=chosen, source=file, retry=retry, watch=watch)
    except KeyboardInterrupt:
        watch.close()
        again = f"hpcdist study run {file}{'' if scale == 'full' else ' --scale small'}"
        ends = f"hpcdist study cancel {wanted.name}"
        click.echo(f"stopped; what was begun goes on. {again} does the rest, {ends} ends it", err=True)
        ctx.exit(130)
    watch.close()
    runs = find_runs(state)
    if not (as_json or wait):
        for job_id in dict.fromkeys(one.job_id for one in runs.values() if one.job_id):
            click.echo(job_id)
    statuses = wait_for(state) if wait and chosen == "slurm" else query_trials(state)
    if as_json:
        print_json([{"trial": trial, "status": status} for trial, status in statuses])
    elif wait:
        click.echo(_table(statuses))
    _show_end(state, statuses)
    bad = {status.state for _, status in statuses if status.is_over} - {"COMPLETED"}
    ctx.exit(1 if bad & ({"REFUSED"} if not wait else bad) else 0)


def _show_end(state: StudyState, statuses: Sequence[tuple[Trial, JobStatus]]) -> None:
    name = state.study.name
    counts = count_states(statuses)
    click.echo(f"{name}: {describe_counts(counts)}", err=True)
    if counts["failed"]:
        click.echo(f"hpcdist study status {name} says why; hpcdist study run --retry runs them again", err=True)
    if counts["pending"] or counts["running"]:
        click.echo(f"follow it with: hpcdist study status {name}", err=True)
    click.echo(f"compare with: hpcdist report {name}", err=True)


def _show_plan(plan: StudyPlan, project: Project, *, as_json: bool) -> None:
    prepared = prepare_batches(plan, project)
    for one in prepared[:1]:
        progress.warn_of_missing_data(one)
    if as_json:
        print_json({"batches": plan.batches, "gpu_hours": plan.gpu_hours})
        return
    if not plan.batches:
        click.echo("nothing is missing: all trials were sent", err=True)
        return
    header = ("TRIALS", "LAYOUT", "AT ONCE", "RUN", "VARIANTS")
    click.echo(format_table(header, [_plan_row(one) for one in plan.batches]))
    hours = "unknown, since not all have a time limit" if plan.gpu_hours is None else f"{plan.gpu_hours:.2f} at most"
    click.echo(f"{sum(len(one.trials) for one in plan.batches)} trials, GPU-hours: {hours}; nothing was sent", err=True)


def _plan_row(batch: Batch) -> list[str | None]:
    labels = Counter(trial.variant for trial in batch.trials)
    told = ", ".join(f"{label} ({count} times)" if count > 1 else label for label, count in labels.items())
    return [str(len(batch.trials)), batch.layout, str(batch.width), batch.run, told]


HEADER = ("TRIAL", "REPEAT", "STATE", "ELAPSED", "JOB", "RUN", "REASON")


def _table(statuses: Sequence[tuple[Trial, JobStatus]]) -> str:
    return format_table(HEADER, [_row(*pair) for pair in statuses])


def _row(trial: Trial, status: JobStatus) -> list[str | None]:
    elapsed = None if status.elapsed_s is None else format_duration(int(status.elapsed_s))
    return [trial.variant, str(trial.repeat), status.state, elapsed, status.job_id, trial.run, status.reason]


@study.command(epilog="Example: hpcdist study status mnist-layouts")
@NAME
@JSON
def status(name: str, *, as_json: bool) -> None:
    """Show where the trials of a study are."""
    state = load_study(name, find_project(Path.cwd()).root)
    statuses = query_trials(state)
    if as_json:
        print_json([{"trial": trial, "status": status} for trial, status in statuses])
        return
    click.echo(_table(statuses))
    click.echo(f"{name}: {describe_counts(count_states(statuses))}", err=True)


@study.command(epilog="Example: hpcdist study cancel mnist-layouts")
@NAME
def cancel(name: str) -> None:
    """End all jobs of a study that are not over."""
    ended = cancel_study(load_study(name, find_project(Path.cwd()).root))
    for job_id in ended:
        click.echo(f"cancelled {job_id}", err=True)
    if not ended:
        click.echo(f"{name} has no job that is not over", err=True)


@study.command("list", epilog="Example: hpcdist study list")
@JSON
def list_command(*, as_json: bool) -> None:
    """Show this project's studies, the newest first."""
    found = [(state, query_trials(state)) for state in study_state.list_studies(find_project(Path.cwd()).root)]
    if as_json:
        rows = [{"name": state.study.name, "source": state.source, **count_states(told)} for state, told in found]
        print_json(rows)
        return
    if not found:
        click.echo("no studies here yet; hpcdist study run FILE starts one", err=True)
        return
    shown = []
    for state, told in found:
        counts, source = describe_counts(count_states(told)), printable_line(state.source) if state.source else None
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.updated_at_s))
        shown.append([state.study.name, str(len(state.variants)), str(len(state.trials)), counts, when, source])
    click.echo(format_table(("STUDY", "VARIANTS", "TRIALS", "WHERE", "LAST RUN", "FILE"), shown))
