"""hpcdist seff."""

import io
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click
import msgspec

from hpcdist.cli.complete import offer_jobs, offer_studies
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError, ParseError, UsageError
from hpcdist.jobs.table import (
    choose_columns,
    find_column,
    format_jobs,
    format_parsable_header,
    parsable_formatter,
    parse_since,
    parse_states,
    parse_users,
    sort_jobs,
)
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import ENDED_STATES, split_task
from hpcdist.records.ranks import RankUsage
from hpcdist.slurm.sacct import iter_sacct, parse_sacct
from hpcdist.slurm.sacct_query import DELIMITER, FIELDS, check_job_id, expand_job_id

if TYPE_CHECKING:
    from hpcdist.jobs.efficiency import Source
    from hpcdist.jobs.job import Job
    from hpcdist.records.store import Store


class SeffQuery(NamedTuple):
    """What `hpcdist seff` was asked: its arguments and options as they were typed."""

    jobs: tuple[str, ...] = ()
    study: str | None = None
    since: str | None = None
    user: str | None = None
    state: str | None = None
    text: str | None = None
    sacct_file: str | None = None
    source: str | None = None
    as_table: bool = False
    columns: str | None = None
    sort: str | None = None
    parsable: bool = False
    as_json: bool = False
    jsonl: bool = False
    watch: float | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether each job is printed as it comes and then forgotten."""
        return (self.parsable or self.jsonl) and self.sort is None

    @property
    def is_table(self) -> bool:
        """Whether a table was asked for even where there is one job."""
        return self.as_table or any(word is not None for word in (self.columns, self.sort, self.state))

    @property
    def is_by_time(self) -> bool:
        """Whether Slurm is asked for the jobs of a time, not for named ones."""
        from_slurm = not (self.jobs or self.study or self.text or self.sacct_file)
        return from_slurm and any(word is not None for word in (self.since, self.user, self.state))

    def check(self) -> None:
        """Find what contradicts itself or is no word of ours before anything is asked.

        Raises:
            UsageError: Options that exclude each other were given, or one can't be used.
        """
        places = {"JOB": self.jobs, "--study": self.study, "--text": self.text, "--sacct-file": self.sacct_file}
        given = [name for name, on in places.items() if on]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other", "ask for one of them at a time")
        if given and self.since is not None:
            raise UsageError(f"{given[0]} and --since exclude each other", "leave out one of them")
        if self.jobs and self.user is not None:
            raise UsageError("JOB and --user exclude each other", "leave out one of them")
        if self.study and (self.user is not None or self.source is not None):
            raise UsageError("--study excludes --user and --source", "leave out one of them")
        forms = {"--parsable": self.parsable, "--json": self.as_json, "--jsonl": self.jsonl, "--watch": self.watch}
        chosen = [name for name, on in forms.items() if on]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude each other", "choose one of them")
        if self.watch and (self.text or self.sacct_file):
            raise UsageError(f"{given[0]} and --watch exclude each other", "a file's jobs do not change")
        choose_columns(self.columns)
        if self.sort is not None:
            find_column(self.sort.removeprefix("-"))
        if self.since is not None:
            parse_since(self.since)
        if self.state is not None:
            parse_states(self.state)


def iter_figures(request: SeffQuery) -> Iterator[Efficiency]:
    """The figures that were asked for, as they come.

    Raises:
        NotFoundError: Nobody knows some of the jobs; said when the others were given out.
        HpcdistError: As the place they come from says.
    """
    found: Iterable[Efficiency]
    if request.study is not None:
        found = _iter_study(request.study)
    elif request.text is not None:
        found = _iter_text(request.text)
    elif request.sacct_file is not None:
        found = _iter_sacct_file(request.sacct_file, streamed=request.is_streamed)
    elif request.is_by_time:
        from hpcdist.jobs import efficiency as job_efficiency

        users = parse_users(request.user) if request.user is not None else ()
        found = job_efficiency.iter_period(parse_since(request.since or "7d"), users)
        request = request._replace(user=None)
    elif request.jobs:
        found = _iter_named(request)
    else:
        found = _iter_project()
    if request.state is None and request.user is None:
        yield from found
        return
    states = parse_states(request.state) if request.state is not None else None
    owners = parse_users(request.user) if request.user is not None else None
    for one in found:
        if (states is None or one.state in states) and (owners is None or one.user in owners):
            yield one


def _iter_named(request: SeffQuery) -> Iterator[Efficiency]:
    """Runs' figures from their ranks first, then what Slurm has of all others.

    Raises:
        NotFoundError: Nobody knows some of them; said when the others were given out.
        NotReadyError: Some have no figures yet; said when the others were given out.
    """
    from hpcdist.jobs import efficiency as job_efficiency

    missing: list[HpcdistError] = []
    ids: list[str] = []
    for token in request.jobs:
        try:
            found = _find_named(token, cast("Source | None", request.source))
        except (NotFoundError, NotReadyError) as error:
            missing.append(error)
            continue
        if isinstance(found, Efficiency):
            yield found
        else:
            ids += found
    try:
        if ids and request.is_streamed and request.source != "seff":
            yield from job_efficiency.iter_slurm(ids)
        elif ids:
            yield from job_efficiency.iter_known(ids, cast("Source", request.source or "sacct"))
    except NotFoundError as error:
        missing.append(error)
    if missing:
        raise type(missing[0])("; ".join(error.message for error in missing), missing[0].hint)


def _find_named(token: str, source: "Source | None") -> Efficiency | list[str]:
    """What the ranks of a local run measured, or the ids to ask Slurm for.

    Raises:
        NotFoundError: There is no such run.
        NotReadyError: It has no job, or no figures yet.
    """
    job_id = _slurm_id(token) if source != "ranks" else None
    if job_id is None:
        from hpcdist.jobs.job import Job

        job = Job.find(token)
        if job.run.is_local or source == "ranks":
            return job.efficiency(source)
        job_id = job.id
        if job_id is None:
            raise NotReadyError(f"run {job.run.name} has no job", f"hpcdist status {job.run.name}")
    return expand_job_id(job_id)


def _open_store() -> "Store":
    from hpcdist.config.project import find_project
    from hpcdist.records.store import Store

    return Store(find_project(Path.cwd()).root)


def _iter_study(name: str) -> Iterator[Efficiency]:
    """The jobs of a study's trials in their order; trials without figures are counted on standard error."""
    from hpcdist.studies.state import load_study
    from hpcdist.studies.trials import iter_figures_of_trials

    silent = 0
    for one in iter_figures_of_trials(load_study(name, _open_store().root)):
        silent += one is None
        if one is not None:
            yield one
    if silent:
        click.echo(f"{silent} trial(s) have no figures yet; hpcdist study status {name} lists all", err=True)


def _slurm_id(token: str) -> str | None:
    """The id a word is; None when it must be a run's name."""
    try:
        return check_job_id(token)
    except UsageError:
        if not token[:1].isdigit():
            return None
        from hpcdist.cli.status import find_or_id

        find_or_id(token)  # a run's name may begin with a digit
        return None


def _iter_project() -> Iterator[Efficiency]:
    """The runs of this project, newest first; those without any figure are counted on standard error."""
    from hpcdist.jobs.job import Job, read_known

    jobs = [Job(run) for run in _open_store()]
    if not jobs:
        click.echo("no runs here yet; hpcdist submit makes one", err=True)
    known, trouble = read_known(jobs)
    if trouble is not None:
        click.echo(f"warning: Slurm's figures are missing: {trouble.message.splitlines()[0]}", err=True)
    for job, found in zip(jobs, known, strict=True):
        for one in found:
            yield msgspec.structs.replace(one, name=job.run.name) if one.source == "ranks" else one
    if silent := sum(not found for found in known):
        click.echo(f"{silent} run(s) have no figures yet; hpcdist status lists all", err=True)


def _iter_text(name: str) -> Iterator[Efficiency]:
    from hpcdist.slurm.seff import LONGEST_LINE, iter_seff

    with _open(name, newline=None) as file:
        # A line longer than any of seff's comes in pieces, the first of which is refused: memory stays flat.
        yield from iter_seff(iter(lambda: file.readline(LONGEST_LINE + 1), ""))


def _iter_sacct_file(name: str, *, streamed: bool) -> Iterator[Efficiency]:
    with _open(name, newline="\n") as file:
        first = file.readline()
        delimiter = DELIMITER if DELIMITER in first else "|"
        lines = chain([first], file) if first else iter(())
        found = False
        for one in iter_sacct(lines, delimiter) if streamed else parse_sacct(lines, delimiter):
            found = True
            yield one
    if not found:
        raise ParseError(f"there is no job in {name}", f"write it with: sacct -P --format={','.join(FIELDS)}")


def _open(name: str, *, newline: str | None) -> Any:
    """A file, or standard input for `-`.

    Raises:
        UsageError: It can't be read.
    """
    if name == "-":
        return io.TextIOWrapper(sys.stdin.buffer, "utf-8", errors="replace", newline=newline)
    try:
        return Path(name).open(encoding="utf-8", errors="replace", newline=newline)
    except OSError as error:
        raise UsageError(f"can't read {name}: {error.strerror}", "name a file, or - for standard input") from None


WIDEST = 10_000
# So long a job that was just submitted may be missing from accounting.
PATIENCE_S = 30.0


def _iter_sorted(request: SeffQuery) -> Iterator[Efficiency]:
    if request.sort is None:
        yield from iter_figures(request)
        return
    jobs, missing = _gather(iter_figures(request))
    yield from sort_jobs(jobs, request.sort)
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


def _print_parsable(request: SeffQuery, jobs: Iterable[Efficiency]) -> None:
    columns = choose_columns(request.columns)
    form, write = parsable_formatter(columns), sys.stdout.buffer.write
    coming = iter(jobs)
    first = list(islice(coming, 1))  # before the header: what can't be answered prints nothing
    write(format_parsable_header(columns).encode() + b"\n")
    for one in chain(first, coming):
        write(f"{form(one)}\n".encode())
    sys.stdout.buffer.flush()


def _show_job(request: SeffQuery) -> None:
    """One job as seff shows it; an array as a table of its tasks."""
    from hpcdist.cli.output import write_boards
    from hpcdist.cli.status import find_or_id
    from hpcdist.jobs.job import Job, read_efficiencies

    job = find_or_id(request.jobs[0])
    found = read_efficiencies([job], cast("Source | None", request.source))
    if len(found) == 1 and found[0].state == "PENDING":
        one = found[0]
        raise NotReadyError(f"job {one.array_job_id or one.job_id} is PENDING", f"hpcdist wait {one.job_id}")
    ours = [(_task(job, one), one) for one in found] if isinstance(job, Job) else []
    _show_jobs(request, found, ours[0][0].folder.ranks() if ours else ())
    for own, one in ours:
        write_boards(own, one)


def _task(job: "Job", efficiency: Efficiency) -> "Job":
    """The array task of ours that a figure is about."""
    from hpcdist.jobs.job import Job

    task = split_task(efficiency.array_job_id)[1]
    return Job(job.run, task) if task else job


def _show_jobs(request: SeffQuery, jobs: Sequence[Efficiency], ranks: Sequence[RankUsage] = ()) -> None:
    """A table; one job that was named, or is alone in a file, as seff shows it."""
    from hpcdist.cli.output import format_efficiency, print_json

    if request.as_json:
        print_json(jobs)
    elif not jobs:
        if request.is_by_time or _is_named(request):
            click.echo("there are no such jobs", err=True)
    elif len(jobs) == 1 and _is_named(request) and not request.is_table:
        click.echo(format_efficiency(jobs[0], ranks))
    else:
        lines = _table(request, jobs)
        if sys.stdout.isatty() and len(lines) >= shutil.get_terminal_size().lines:
            click.echo_via_pager("\n".join(lines) + "\n", color=_has_colours())
        else:
            click.echo("\n".join(lines))


def _is_named(request: SeffQuery) -> bool:
    return bool(request.jobs or request.text or request.sacct_file)


def _table(request: SeffQuery, jobs: Sequence[Efficiency]) -> list[str]:
    columns = choose_columns(request.columns, gpus=any(one.gpus for one in jobs))
    width = shutil.get_terminal_size((WIDEST, 24)).columns
    return format_jobs(jobs, columns, width=width, colour=_has_colours())


def _has_colours() -> bool:
    """Whether standard output is a terminal that shows colours to someone who wants them (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _watch(request: SeffQuery, interval_s: float) -> None:
    """Prints the table again and again until every job is over; on a terminal in the same place."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            jobs, missing = _gather(_iter_sorted(request))
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
    """Put the figures of this project's own jobs beside their curves in TensorBoard."""
    store = _open_store()
    if not store.runs.is_dir():
        return
    from hpcdist.cli.output import write_boards
    from hpcdist.jobs.job import Job

    runs = {run.job_id: Job(run) for run in store}
    for one in jobs:
        if job := runs.get(split_task(one.array_job_id or one.job_id)[0]):
            write_boards(_task(job, one), one)


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
    request = SeffQuery(jobs=jobs, **options)  # type: ignore[arg-type]
    request.check()
    if request.watch is not None:
        _watch(request, request.watch)
    elif len(jobs) == 1 and "[" not in jobs[0] and not (request.jsonl or request.parsable or request.is_table):
        _show_job(request)
    elif request.jsonl:
        _print_lines(_iter_sorted(request))
    elif request.parsable:
        _print_parsable(request, _iter_sorted(request))
    else:
        found, missing = _gather(_iter_sorted(request))
        _show_jobs(request, found)
        if jobs:
            _write_boards(found)
        if missing:
            raise missing
