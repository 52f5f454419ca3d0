"""The errors hpcdist raises on purpose, one small tree.

Every error carries what was seen (`message`) and the next command or edit to try (`hint`).
The command line prints both and exits with `exit_code`.
"""


class HpcdistError(Exception):
    """Something a user can cause and mend.

    Attributes:
        message: What was seen, where, and what was expected.
        hint: The next command to type or line to change; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HpcdistError):
    """An option, a file's key or a value that cannot be used as given."""

    exit_code = 2


class ParseError(HpcdistError):
    """A text that is not what it was said to be."""


class NotFoundError(HpcdistError):
    """A job, run or dataset nobody knows."""


class NotReadyError(HpcdistError):
    """An answer that does not exist yet, or never will here (job pending, accounting off)."""

    exit_code = 3


class AccountingOffError(NotReadyError):
    """Slurm keeps no accounting here, or its database does not answer."""


class SubmitError(HpcdistError):
    """The scheduler refused a job, or could not be asked."""
