"""The query to sacct: its arguments, which job ids may be among them, and its output as it comes."""

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hpcdist.errors import UsageError
from hpcdist.slurm.commands import start_command

DELIMITER = "\x1f"
"""Between fields: ASCII's unit separator. A `|` is common in job names."""

# Known to every release from 20.11 to 26.05 (`src/sacct/sacct.c`). The name comes last: all that follows the last
# field's start is name.
FIELDS = (
    *("JobID", "JobIDRaw", "Cluster", "User", "Group", "Partition", "State", "ExitCode", "Submit", "Start", "End"),
    *("ElapsedRaw", "TimelimitRaw", "TotalCPU", "AllocCPUS", "NNodes", "NTasks", "ReqMem", "ReqTRES", "AllocTRES"),
    *("MaxRSS", "AveRSS", "TRESUsageInTot", "NodeList", "JobName"),
)

TIME_ENVIRONMENT = {"SLURM_TIME_FORMAT": "%s"}
"""What sacct needs in its environment: times as seconds since the epoch. Local times repeat when summer time ends."""

# sacct looks a group's name up for every row, which takes it longer than everything else [run with 22.05.8: 0.2 s of
# 0.6 s for 6,000 rows]; the number is there at once, and whoever runs sacct can look the name up once.
ASKED_FIELDS = tuple("GID" if field == "Group" else field for field in FIELDS)
"""What sacct is asked for, in the order of `FIELDS`."""

_JOB_ID = re.compile(r"[1-9][0-9]{0,18}(?:_(?:[0-9]{1,10}|\[([0-9][0-9,:-]{0,200})(?:%[0-9]{1,10})?\])|\+[0-9]{1,4})?")
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([1-9][0-9]{0,9}))?)?")
_LARGEST_RANGE = 10_000
# Linux takes at most 128 KiB in one argument (MAX_ARG_STRLEN).
_LONGEST_ARGUMENT = 100_000


def check_job_id(text: str) -> str:
    """Check a job id and return it: `123`, `123_4`, `123_[2-5]` or `123+1`. Nothing else may reach a command line.

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
    """Return the arguments of one sacct call for these jobs, without the name; run it with `TIME_ENVIRONMENT`.

    A job's owner may put anything into its name, the delimiter and line ends included. For jobs of other people give
    a delimiter nobody can guess (`secrets.token_hex()`) here and to `parse_sacct`, so that no name can pass for a row.

    Raises:
        UsageError: An id is not one, or there is none (sacct would list every job of today).
    """
    if not job_ids:
        raise UsageError("no job id was given", "hpcdist status lists this project's runs")
    asked = [one for job_id in job_ids for one in expand_job_id(check_job_id(job_id))]
    return [*_options(delimiter), f"--jobs={','.join(dict.fromkeys(asked))}"]


def sacct_period_arguments(since: str, users: Sequence[str] = (), delimiter: str = DELIMITER) -> list[str]:
    """Return the arguments of one sacct call for every job that ran or waited since a time (in sacct's words)."""
    return [*_options(delimiter), f"--starttime={since}", *([f"--user={','.join(users)}"] if users else [])]


def _options(delimiter: str) -> list[str]:
    # --noconvert: sizes to the byte, where sacct would round to two decimals of a larger unit.
    options = ["--parsable2", "--noheader", "--noconvert", "--duplicates", f"--delimiter={delimiter}"]
    return [*options, f"--format={','.join(ASKED_FIELDS)}"]


def batch_job_ids(job_ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield the ids in batches that fit into one `--jobs` argument each.

    Raises:
        UsageError: An id is not one.
    """
    batch: list[str] = []
    length = 0
    for job_id in job_ids:
        cost = sum(len(one) + 1 for one in expand_job_id(check_job_id(job_id)))
        if batch and length + cost > _LONGEST_ARGUMENT:
            yield batch
            batch, length = [], 0
        batch.append(job_id)
        length += cost
    if batch:
        yield batch


def expand_job_id(job_id: str) -> list[str]:
    """Expand `123_[2-3]` into `123_2` and `123_3`: sacct 22.05 ends with "Bad job array element specified" otherwise.

    Raises:
        UsageError: The brackets hold no tasks, or far too many.
    """
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


class Answer(NamedTuple):
    """The rows that sacct is printing: what parts their fields, and the lines as they come."""

    delimiter: str
    lines: Iterator[str]


def ask_jobs(job_ids: Sequence[str]) -> Answer:
    """Ask for jobs by their ids, as many as fit into one call.

    Raises:
        UsageError: An id is not one.
        NotReadyError: There is no sacct; while reading, accounting is off.
    """
    delimiter = new_delimiter()
    return Answer(delimiter, start_command(["sacct", *sacct_arguments(job_ids, delimiter)], TIME_ENVIRONMENT))


def ask_period(since: str, users: Sequence[str] = ()) -> Answer:
    """Ask for the jobs of some users since a time in sacct's words.

    Without users they are those of the one who asks, and everybody's for an administrator.

    Raises:
        NotReadyError: There is no sacct; while reading, accounting is off.
    """
    delimiter = new_delimiter()
    arguments = sacct_period_arguments(since, users, delimiter)
    return Answer(delimiter, start_command(["sacct", *arguments], TIME_ENVIRONMENT))


def new_delimiter() -> str:
    """Return what parts sacct's fields in one call: nobody can have put it into a job's name before.

    40 bits, and short: it is in every row two dozen times.
    """
    return DELIMITER + secrets.token_urlsafe(5)
