"""How `hpcdist seff` prints what it found: one job, a table, or a line per job for a program."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import msgspec

from hpcdist.cli.figures import iter_figures
from hpcdist.cli.request import Request
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError
from hpcdist.jobs.table import (
    choose_columns,
    find_column,
    format_jobs,
    format_parsable_header,
    parsable_formatter,
    parse_since,
    parse_states,
    sort_jobs,
)
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import ENDED_STATES, split_task
from hpcdist.records.ranks import RankUsage

if TYPE_CHECKING:
    from hpcdist.jobs.efficiency import Source
    from hpcdist.jobs.job import Job

WIDEST = 10_000
# So long a job that was just submitted may be missing from accounting.
PATIENCE_S = 30.0


def show(request: Request) -> None:
    """Prints what was asked for.

    Raises:
        HpcdistError: A word can't be used, or there are no figures.
    """
    _check_words(request)
    if request.watch is not None:
        _watch(request, request.watch)
    elif request.jsonl:
        _print_lines(_sorted(request))
    elif request.parsable:
        _print_parsable(request, _sorted(request))
    elif len(request.jobs) == 1 and "[" not in request.jobs[0] and not _is_table(request):
        _show_job(request)
    else:
        jobs, missing = _gather(_sorted(request))
        _show_jobs(request, jobs)
        if request.jobs:
            _write_boards(jobs)
        if missing:
            raise missing


def _is_table(request: Request) -> bool:
    """Whether a table was asked for even where there is one job."""
    return request.as_table or any(word is not None for word in (request.columns, request.sort, request.state))


def _check_words(request: Request) -> None:
    """Reads every word that can be wrong before Slurm is asked."""
    choose_columns(request.columns)
    if request.sort is not None:
        find_column(request.sort.removeprefix("-"))
    if request.since is not None:
        parse_since(request.since)
    if request.state is not None:
        parse_states(request.state)


def _sorted(request: Request) -> Iterable[Efficiency]:
    found = iter_figures(request)
    return found if request.sort is None else _sort(found, request.sort)


def _sort(found: Iterable[Efficiency], by: str) -> Iterator[Efficiency]:
    jobs, missing = _gather(found)
    yield from sort_jobs(jobs, by)
    if missing:
        raise missing


def _gather(found: Iterable[Efficiency]) -> tuple[list[Efficiency], HpcdistError | None]:
    """All figures, and what is to be raised about jobs without any when the others were shown.

    Raises:
        NotFoundError, NotReadyError: There is no figure at all.
    """
    jobs: list[Efficiency] = []
    try:
        for one in found:
            jobs.append(one)  # noqa: PERF402 extend() does not promise to keep what came before an error
    except (NotFoundError, NotReadyError) as error:
        if not jobs:
            raise
        return jobs, error
    return jobs, None


def _print_lines(jobs: Iterable[Efficiency]) -> None:
    encode, write = msgspec.json.Encoder().encode, sys.stdout.buffer.write
    for one in jobs:
        write(encode(one) + b"\n")
    sys.stdout.buffer.flush()


def _print_parsable(request: Request, jobs: Iterable[Efficiency]) -> None:
    columns = choose_columns(request.columns)
    form, write = parsable_formatter(columns), sys.stdout.buffer.write
    coming = iter(jobs)
    first = list(islice(coming, 1))  # before the header: what can't be answered prints nothing
    write(format_parsable_header(columns).encode() + b"\n")
    for one in chain(first, coming):
        write(f"{form(one)}\n".encode())
    sys.stdout.buffer.flush()


def _show_job(request: Request) -> None:
    """One job as seff shows it; an array as a table of its tasks."""
    from hpcdist.cli.follow import find_or_id
    from hpcdist.jobs.job import Job, read_efficiencies

    job = find_or_id(request.jobs[0])
    found = read_efficiencies([job], cast("Source | None", request.source))
    if len(found) == 1 and found[0].state == "PENDING":
        one = found[0]
        raise NotReadyError(f"job {one.array_job_id or one.job_id} is PENDING", f"hpcdist wait {one.job_id}")
    ours = [(_task(job, one), one) for one in found] if isinstance(job, Job) else []
    _show_jobs(request, found, ours[0][0].folder.ranks() if ours else ())
    _write(ours)


def _task(job: "Job", efficiency: Efficiency) -> "Job":
    """The array task of ours that a figure is about."""
    from hpcdist.jobs.job import Job

    task = split_task(efficiency.array_job_id)[1]
    return Job(job.run, task) if task else job


def _show_jobs(request: Request, jobs: Sequence[Efficiency], ranks: Sequence[RankUsage] = ()) -> None:
    """A table; one job that was named, or is alone in a file, as seff shows it."""
    from hpcdist.cli.output import format_efficiency, print_json

    if request.as_json:
        print_json(jobs)
    elif not jobs:
        if request.is_by_time or _is_named(request):
            click.echo("there are no such jobs", err=True)
    elif len(jobs) == 1 and _is_named(request) and not _is_table(request):
        click.echo(format_efficiency(jobs[0], ranks))
    else:
        lines = _table(request, jobs)
        if sys.stdout.isatty() and len(lines) >= shutil.get_terminal_size().lines:
            click.echo_via_pager("\n".join(lines) + "\n", color=_has_colours())
        else:
            click.echo("\n".join(lines))


def _is_named(request: Request) -> bool:
    return bool(request.jobs or request.text or request.sacct_file)


def _table(request: Request, jobs: Sequence[Efficiency]) -> list[str]:
    columns = choose_columns(request.columns, gpus=any(one.gpus for one in jobs))
    width = shutil.get_terminal_size((WIDEST, 24)).columns
    return format_jobs(jobs, columns, width=width, colour=_has_colours())


def _has_colours() -> bool:
    """Whether standard output is a terminal that shows colours to someone who wants them (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _watch(request: Request, interval_s: float) -> None:
    """Prints the table again and again until every job is over; on a terminal in the same place."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            jobs, missing = _gather(_sorted(request))
            lines = _table(request, jobs) if jobs else ["there are no such jobs"]
        except NotReadyError as error:
            jobs, missing, lines = [], None, [error.message]
            if time.monotonic() > deadline:
                raise
        if sys.stdout.isatty():
            click.echo("\x1b[H\x1b[J" + "\n".join(lines[: shutil.get_terminal_size().lines - 1]), color=True)
        else:
            click.echo("\n".join([*lines, ""]))
        if jobs and all(one.state is None or one.state in ENDED_STATES for one in jobs):
            if missing:
                raise missing
            return
        time.sleep(interval_s)


def _write_boards(jobs: Sequence[Efficiency]) -> None:
    """Puts the figures of this project's own jobs beside their curves in TensorBoard."""
    from hpcdist.config.project import find_project
    from hpcdist.jobs.job import Job
    from hpcdist.records.store import Store

    store = Store(find_project(Path.cwd()).root)
    runs = {run.job_id: Job(run) for run in store} if store.runs.is_dir() else {}
    found = [(runs.get(split_task(one.array_job_id or one.job_id)[0]), one) for one in jobs] if runs else []
    _write([(_task(job, one), one) for job, one in found if job is not None])


def _write(figures: Sequence[tuple["Job", Efficiency]]) -> None:
    if figures:
        from hpcdist.cli.boards import write_boards

        for job, one in figures:
            write_boards(job, one)
