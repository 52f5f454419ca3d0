"""sacct, asked for many jobs at once and read while it answers."""

import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hpcdist.backends.lines import start_command
from hpcdist.sacct_question import DELIMITER, TIME_ENVIRONMENT, sacct_arguments, sacct_period_arguments


class Answer(NamedTuple):
    """The rows that sacct is printing: what parts their fields, and the lines as they come."""

    delimiter: str
    lines: Iterator[str]


def ask_jobs(job_ids: Sequence[str]) -> Answer:
    """Asks for jobs by their ids, as many as fit into one call.

    Raises:
        UsageError: An id is not one.
        NotReadyError: There is no sacct; while reading, accounting is off.
    """
    delimiter = new_delimiter()
    return Answer(delimiter, start_command(["sacct", *sacct_arguments(job_ids, delimiter)], TIME_ENVIRONMENT))


def ask_period(since: str, users: Sequence[str] = ()) -> Answer:
    """Asks for the jobs since a time.

    Args:
        since: A time in sacct's words.
        users: Whose; nobody in particular is the one who asks, and everybody for an administrator.

    Raises:
        NotReadyError: There is no sacct; while reading, accounting is off.
    """
    delimiter = new_delimiter()
    arguments = sacct_period_arguments(since, users, delimiter)
    return Answer(delimiter, start_command(["sacct", *arguments], TIME_ENVIRONMENT))


def new_delimiter() -> str:
    """What parts sacct's fields in one call: nobody can have put it into a job's name before.

    40 bits, and short: it is in every row two dozen times.
    """
    return DELIMITER + secrets.token_urlsafe(5)
