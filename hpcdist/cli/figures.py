"""Where the figures of `hpcdist seff` come from: named jobs, this project's runs, Slurm's jobs of a time, a file."""

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec

from hpcdist.cli.request import Request
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError, ParseError, UsageError
from hpcdist.jobs.table import parse_since, parse_states, parse_users
from hpcdist.records.efficiency import Efficiency
from hpcdist.slurm.sacct import iter_sacct, parse_sacct
from hpcdist.slurm.sacct_query import DELIMITER, FIELDS, check_job_id, expand_job_id

if TYPE_CHECKING:
    from hpcdist.jobs.efficiency import Source


DEFAULT_SINCE = "7d"


def iter_figures(request: Request) -> Iterator[Efficiency]:
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
        found = job_efficiency.iter_period(parse_since(request.since or DEFAULT_SINCE), users)
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


def _iter_named(request: Request) -> Iterator[Efficiency]:
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


def _iter_study(name: str) -> Iterator[Efficiency]:
    """The jobs of a study's trials in their order; trials without figures are counted on standard error."""
    from hpcdist.config.project import find_project
    from hpcdist.studies.state import load_study
    from hpcdist.studies.trials import iter_figures_of_trials

    silent = 0
    for one in iter_figures_of_trials(load_study(name, find_project(Path.cwd()).root)):
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
        from hpcdist.cli.follow import find_or_id

        find_or_id(token)  # a run's name may begin with a digit
        return None


def _iter_project() -> Iterator[Efficiency]:
    """The runs of this project, newest first; those without any figure are counted on standard error."""
    from hpcdist.config.project import find_project
    from hpcdist.jobs.job import Job, read_known
    from hpcdist.records.store import Store

    jobs = [Job(run) for run in Store(find_project(Path.cwd()).root)]
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
