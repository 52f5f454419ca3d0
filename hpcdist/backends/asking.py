"""sacct, asked for many jobs at once and read while it answers."""

import os
from collections.abc import Sequence

from hpcdist.backends.lines import CommandLines
from hpcdist.sacct_question import DELIMITER, TIME_ENVIRONMENT, sacct_arguments, sacct_period_arguments

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Answer:
    """The rows that sacct is printing.

    Attributes:
        delimiter: What parts their fields.
        lines: The lines, as they come.
    """

    def __init__(self, delimiter: str, arguments: Sequence[str]) -> None:
        self.delimiter = delimiter
        self.lines = CommandLines(["sacct", *arguments], TIME_ENVIRONMENT)


def ask_jobs(job_ids: Sequence[str]) -> Answer:
    """Asks for jobs by their ids, as many as fit into one call.

    Raises:
        UsageError: An id is not one.
        NotReadyError: There is no sacct; while reading, accounting is off.
    """
    delimiter = new_delimiter()
    return Answer(delimiter, sacct_arguments(job_ids, delimiter))


def ask_period(since: str, users: Sequence[str] = ()) -> Answer:
    """Asks for the jobs since a time.

    Args:
        since: A time in sacct's words.
        users: Whose; nobody in particular is the one who asks, and everybody for an administrator.

    Raises:
        NotReadyError: There is no sacct; while reading, accounting is off.
    """
    delimiter = new_delimiter()
    return Answer(delimiter, sacct_period_arguments(since, users, delimiter))


def new_delimiter() -> str:
    """What parts sacct's fields in one call: nobody can have put it into a job's name before.

    36 bits, and short: it is in every row two dozen times.
    """
    return DELIMITER + "".join(ALPHABET[byte % len(ALPHABET)] for byte in os.urandom(6))
