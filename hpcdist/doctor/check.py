"""What `hpcdist doctor` says of one thing, and what all of them come to."""

from collections.abc import Iterable
from typing import Literal

import msgspec

CheckStatus = Literal["ok", "warning", "error", "unknown"]

# The one check whose failure is not the project's fault: Slurm is needed, and away.
SLURM = "slurm"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: What was looked at, in a word or two.
        status: "error" keeps jobs from running, "warning" makes them worse or leaves something unmeasured; "unknown"
            could not be told.
        sentence: What was seen, and what was expected.
        hint: The next command or edit; empty where nothing is to be done.
        evidence: What it rests on, one fact each.
    """

    name: str
    status: CheckStatus
    sentence: str
    hint: str = ""
    evidence: tuple[str, ...] = ()


def find_exit_status(checks: Iterable[Check]) -> int:
    """0 without errors, 3 where the only one is that Slurm is needed and away, else 1."""
    errors = {check.name for check in checks if check.status == "error"}
    if not errors:
        return 0
    return 3 if errors == {SLURM} else 1
