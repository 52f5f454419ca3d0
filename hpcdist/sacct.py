"""sacct: which question to ask, and the records in its answer. Pure: nothing here runs sacct.

`sacct -P` with fixed fields works on every Slurm release, streams, and costs a quarter of `--json`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from hpcdist.errors import UsageError
from hpcdist.record import Efficiency
from hpcdist.sacct_job import iter_runs
from hpcdist.sacct_rows import DELIMITER, FIELDS

__all__ = [
    "DELIMITER",
    "FIELDS",
    "TIME_ENVIRONMENT",
    "batch_job_ids",
    "check_job_id",
    "iter_sacct",
    "parse_sacct",
    "sacct_arguments",
    "total_cpu_time_s",
    "total_wall_time_s",
]

TIME_ENVIRONMENT = {"SLURM_TIME_FORMAT": "%s"}
"""What sacct needs in its environment: times as seconds since the epoch. Local times repeat when summer time ends."""

_JOB_ID = re.compile(r"[1-9][0-9]{0,18}(?:_(?:[0-9]{1,10}|\[([0-9][0-9,:-]{0,200})(?:%[0-9]{1,10})?\])|\+[0-9]{1,4})?")
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([1-9][0-9]{0,9}))?)?")
_LARGEST_RANGE = 10_000
# Linux takes at most 128 KiB in one argument (MAX_ARG_STRLEN).
_LONGEST_ARGUMENT = 100_000
_CONTINUED = frozenset({"REQUEUED", "PREEMPTED", "NODE_FAIL"})


def check_job_id(text: str) -> str:
    """The job id itself: `123`, `123_4`, `123_[2-5]` or `123+1`. Nothing else may reach a command line.

    Raises:
        UsageError: The text is something else, a step such as `123.0` included.
    """
    if _JOB_ID.fullmatch(text) is None:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise UsageError(
            f"{shown!a} is not a job id", "write 123, 123_4 (array task), 123_[2-5] (several) or 123+1 (component)"
        )
    return text


def sacct_arguments(job_ids: Sequence[str], delimiter: str = DELIMITER) -> list[str]:
    """The arguments of one sacct call for these jobs, without the program's name; run it with `TIME_ENVIRONMENT`.

    A job's owner may put anything into its name, the delimiter and line ends included. For jobs of other people give
    a delimiter nobody can guess (`secrets.token_hex()`) here and to `parse_sacct`, so that no name can pass for a row.

    Raises:
        UsageError: An id is not one, or there is none (sacct would list every job of today).
    """
    if not job_ids:
        raise UsageError("no job id was given", "hpcdist status lists this project's runs")
    asked = [one for job_id in job_ids for one in _expand(check_job_id(job_id))]
    # --noconvert: sizes to the byte, where sacct would round to two decimals of a larger unit.
    options = ["--parsable2", "--noheader", "--noconvert", "--duplicates", f"--delimiter={delimiter}"]
    return [*options, f"--format={','.join(FIELDS)}", f"--jobs={','.join(dict.fromkeys(asked))}"]


def batch_job_ids(job_ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids in batches that fit into one `--jobs` argument each.

    Raises:
        UsageError: An id is not one.
    """
    batch: list[str] = []
    length = 0
    for job_id in job_ids:
        cost = sum(len(one) + 1 for one in _expand(check_job_id(job_id)))
        if batch and length + cost > _LONGEST_ARGUMENT:
            yield batch
            batch, length = [], 0
        batch.append(job_id)
        length += cost
    if batch:
        yield batch


def _expand(job_id: str) -> list[str]:
    """`123_[2-3]` as `123_2` and `123_3`: sacct 22.05 ends with "Bad job array element specified" otherwise."""
    match = _JOB_ID.fullmatch(job_id)
    if match is None or match[1] is None:
        return [job_id]
    array_id = job_id.partition("_")[0]
    tasks: list[int] = []
    for part in match[1].split(","):
        bounds = _RANGE.fullmatch(part)
        if bounds is None:
            raise UsageError(f"{job_id!a} has no array tasks in its brackets", "write 123_[2-5] or 123_[1,3,7-9]")
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        spread = range(first, last + 1, int(bounds[3] or 1))
        if len(spread) + len(tasks) > _LARGEST_RANGE:
            raise UsageError(f"{job_id!a} names too many array tasks", f"ask for the whole array: {array_id}")
        tasks += spread
    if not tasks:
        raise UsageError(f"{job_id!a} names no array task", "write the smaller number first: 123_[2-5]")
    return [f"{array_id}_{task}" for task in tasks]


def parse_sacct(rows: str | Iterable[str], delimiter: str = DELIMITER) -> list[Efficiency]:
    """A record per job (array task, component), in order of submission, from what `sacct_arguments` asks for.

    The runs of a requeued job are one record: the last run's, with the others as `earlier_runs`. Ids are used again
    once a cluster reached its highest; of unrelated jobs with one id the last is kept, as sacct does on its own.
    A first line with field names is understood too, in any order and with any delimiter.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    lines = rows.split("\n") if isinstance(rows, str) else rows
    runs = sorted(iter_runs(lines, delimiter), key=lambda run: run.submitted_at_s or 0.0)
    found: dict[tuple[str | None, str], Efficiency] = {}
    for one in _chain(runs):
        found.pop((one.cluster, one.job_id), None)
        found[one.cluster, one.job_id] = one
    return list(found.values())


def iter_sacct(lines: Iterable[str], delimiter: str = DELIMITER) -> Iterator[Efficiency]:
    """As `parse_sacct`, as the rows come, for any number of jobs: only runs that were requeued are held back.

    Unrelated jobs with one id are all given out, and the rows must be in order of time, as sacct prints them.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    return _chain(iter_runs(lines, delimiter))


def _chain(runs: Iterable[Efficiency]) -> Iterator[Efficiency]:
    """Puts the runs of a requeued job together: one user's, each but the last ended by a requeue."""
    open_runs: dict[tuple[str | None, str], list[Efficiency]] = {}
    for run in runs:
        key = (run.cluster, run.job_id)
        before = open_runs.pop(key, [])
        if before and (before[-1].user != run.user or before[-1].array_job_id != run.array_job_id):
            yield _join(before)
            before = []
        if run.state in _CONTINUED:
            open_runs[key] = [*before, run]
        else:
            yield _join([*before, run])
    for held in open_runs.values():
        yield _join(held)


def _join(runs: list[Efficiency]) -> Efficiency:
    if len(runs) == 1:
        return runs[0]
    return msgspec.structs.replace(runs[-1], earlier_runs=tuple(runs[:-1]))


def total_wall_time_s(efficiency: Efficiency) -> float | None:
    """Seconds over all runs of a job, requeued ones included; None when any is unknown."""
    return _total([run.wall_time_s for run in (*efficiency.earlier_runs, efficiency)])


def total_cpu_time_s(efficiency: Efficiency) -> float | None:
    """CPU seconds over all runs of a job, requeued ones included; None when any is unknown."""
    return _total([run.cpu_time_s for run in (*efficiency.earlier_runs, efficiency)])


def _total(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
