"""hpcdist status, logs, wait, cancel."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from hpcdist.cli.complete import offer_jobs
from hpcdist.cli.options import JOB, JOBS, JSON
from hpcdist.cli.output import format_cause, format_table, print_json
from hpcdist.cli.progress import follow
from hpcdist.config.project import find_project
from hpcdist.config.secrets import mask
from hpcdist.errors import HpcdistError, NotFoundError
from hpcdist.jobs import status as where
from hpcdist.jobs.diagnosis.collect import explain, find_secrets
from hpcdist.jobs.diagnosis.rules import is_held
from hpcdist.jobs.job import Job
from hpcdist.records.job import Cause, JobStatus
from hpcdist.records.ranks import RankUsage
from hpcdist.records.store import Run, Store
from hpcdist.slurm import queue
from hpcdist.slurm.sacct_query import check_job_id
from hpcdist.units import format_duration

SHOWN_RUNS = 30
SHOWN_CAUSES = 5  # each asks Slurm and reads logs; an array may have thousands
LOG_POLL_S = 0.5
STATUS_POLL_S = 1.0


def find_or_id(token: str) -> Job | str:
    """A run of this project, or a checked Slurm job id of somebody else's job."""
    try:
        return Job.find(token)
    except NotFoundError:
        if token.startswith("local-") or not token[:1].isdigit():
            raise
        return check_job_id(token)


@click.command(epilog="Example: hpcdist status 1234")
@click.argument("jobs", nargs=-1, metavar="JOB...", shell_complete=offer_jobs)
@JSON
def status(jobs: tuple[str, ...], *, as_json: bool) -> None:
    """Show where jobs are: state, reason, elapsed time, nodes, exit code of each rank.

    JOB is a run's name or a job id. Without JOB: this project's newest runs.
    """
    if jobs:
        found = [find_or_id(token) for token in jobs]
    else:
        store = Store(find_project(Path.cwd()).root)
        found = [Job(run) for run, _ in zip(store, range(SHOWN_RUNS), strict=False)]
    ours = [job for job in found if isinstance(job, Job)]
    others = [job for job in found if isinstance(job, str)]
    statuses = [one for several in where.query([(job.run, job.task) for job in ours]) for one in several]
    statuses += [one for several in queue.query(others).values() for one in several]
    unknown = [one.job_id for one in statuses if one.state == "UNKNOWN" and one.run is None]
    statuses = [one for one in statuses if one.state != "UNKNOWN" or one.run is not None]
    if statuses or not unknown:
        # Causes of jobs that were named: the whole list would ask Slurm about each.
        _show_statuses(statuses, ours, as_json=as_json, with_causes=bool(jobs))
    if unknown:
        raise NotFoundError(f"Slurm knows no job {', '.join(map(str, unknown))}", "hpcdist status lists the runs here")


def _show_statuses(statuses: Sequence[JobStatus], ours: Sequence[Job], *, as_json: bool, with_causes: bool) -> None:
    ranks = {job.run.name: job.folder.ranks() for job in ours}
    causes = find_causes(statuses, {job.run.name: job.run for job in ours}) if with_causes else {}
    if as_json:
        rows = [(one, ranks.get(one.run or "", []), causes.get(one.job_id or one.run)) for one in statuses]
        print_json([{"status": status, "ranks": own, "cause": cause} for status, own, cause in rows])
        return
    show_causes(statuses, causes)
    if not statuses:
        click.echo("no runs here yet; hpcdist submit makes one", err=True)
        return
    click.echo(format_table(HEADER, [_row(one, ranks.get(one.run or "", [])) for one in statuses]))


def find_causes(statuses: Sequence[JobStatus], runs: Mapping[str, Run]) -> dict[str | None, Cause]:
    """Why those are held that Slurm holds, and the first that did not end well ended.

    By their ids, or by the runs of those that got none.
    """
    told = [one for one in statuses if is_held(one.state, one.reason)] + _ended_badly(statuses)
    return {one.job_id or one.run: explain(one, runs.get(one.run or "")).cause for one in told[:SHOWN_CAUSES]}


def _ended_badly(statuses: Sequence[JobStatus]) -> list[JobStatus]:
    return [one for one in statuses if one.is_over and one.state != "COMPLETED"]


def show_causes(statuses: Sequence[JobStatus], causes: Mapping[str | None, Cause]) -> None:
    """The causes on standard error, before what was asked for."""
    for one in statuses:
        name = one.job_id or one.run
        if name in causes:
            click.echo(format_cause(f"{name} {one.state}", causes[name], tail=False), err=True)
    more = sum((one.job_id or one.run) not in causes for one in _ended_badly(statuses))
    if causes and more:
        click.echo(f"{more} more did not end well: hpcdist why JOB", err=True)


HEADER = ("JOB", "STATE", "ELAPSED", "LAYOUT", "NODES", "EXIT", "RUN", "REASON")


def _row(status: JobStatus, ranks: list[RankUsage]) -> list[str | None]:
    elapsed = None if status.elapsed_s is None else format_duration(int(status.elapsed_s))
    where = [status.layout, status.nodes, _exits(status, ranks), status.run or status.name]
    return [status.job_id, status.state, elapsed, *where, status.reason]


def _exits(status: JobStatus, ranks: list[RankUsage]) -> str | None:
    """Exit codes: one when all ranks agree, else of each rank; `s9` is a signal, `-` a rank that did not say."""
    if not ranks or not status.is_over:
        return None if status.exit_code is None else str(status.exit_code)
    codes = ["-" if rank.exit_code is None else str(rank.exit_code) for rank in ranks]
    words = [f"s{rank.signal}" if rank.signal else code for rank, code in zip(ranks, codes, strict=True)]
    if len(set(words)) == 1:
        return words[0]
    return " ".join(f"{rank.rank}:{word}" for rank, word in zip(ranks, words, strict=True))


@click.command(epilog="Example: hpcdist logs -f 1234")
@JOB
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job is over.")
@click.option("--rank", type=int, metavar="N", help="Only this rank [all, and the batch script].")
def logs(job: str, *, following: bool, rank: int | None) -> None:
    """Print what a job's ranks wrote."""
    found = Job.find(job)
    offsets: dict[Path, int] = {}
    secrets = find_secrets(found.run)
    if not following:
        _show_cause(found)
    began, next_look, over = time.monotonic(), 0.0, not following
    while True:
        now = time.monotonic()
        if following and now >= next_look:
            over = found.status().is_over
            next_look = now + where.pause_s(now - began, STATUS_POLL_S)
        paths = found.log_paths(rank)
        for path in paths:
            _copy_new(path, offsets, secrets, labelled=len(paths) > 1)
        if over:
            break
        time.sleep(LOG_POLL_S)
    if following:
        _show_cause(found)
    if not offsets:
        raise NotFoundError(f"{job} has no logs yet", f"hpcdist status {job}")


def _show_cause(job: Job) -> None:
    """Says first what the logs are most often read for; they are there without Slurm too."""
    try:
        statuses = job.statuses()
        show_causes(statuses, find_causes(statuses, {job.run.name: job.run}))
    except HpcdistError:
        return


def _copy_new(path: Path, offsets: dict[Path, int], secrets: Sequence[str], *, labelled: bool) -> None:
    """Prints, without secrets, the whole lines that were added to a file since the last look."""
    with path.open("rb") as file:
        file.seek(offsets.setdefault(path, 0))
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1] if b"\n" in text else b""
    offsets[path] += len(whole)
    label = f"[{path.stem.removesuffix('_log')}] " if labelled else ""
    for line in mask(whole.decode(errors="replace"), secrets).splitlines():
        click.echo(label + line)


@click.command(epilog="Example: hpcdist wait 1234")
@JOB
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long (exit code 3).")
@click.option("--json", "as_json", is_flag=True, help="Print the job's record as JSON at its end.")
@click.pass_context
def wait(ctx: click.Context, job: str, *, timeout: float | None, as_json: bool) -> None:
    """Follow a job until it is over; exit code 0 when it completed, 1 when not."""
    ctx.exit(follow(Job.find(job), as_json=as_json, timeout_s=timeout))


@click.command(epilog="Example: hpcdist cancel 1234")
@JOBS
def cancel(jobs: tuple[str, ...]) -> None:
    """End jobs."""
    for job in [Job.find(token) for token in jobs]:
        job.cancel()
        click.echo(f"cancelled {job.id}", err=True)
