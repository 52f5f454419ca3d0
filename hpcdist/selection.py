"""Which jobs are meant: words for times and states as a person types them. Pure."""

import re

from hpcdist.errors import UsageError
from hpcdist.text import nearest

_AGO = re.compile(r"([0-9]{1,6}) ?(s|min|h|d|w)", re.IGNORECASE)
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# sacct(1), "-S, --starttime". Anything else sacct would partly ignore, and then list other jobs than those meant.
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?: ?[AaPp][Mm])?"
_DATE = r"(?:[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{4}(?:[0-9]{2})?|[0-9]{1,2}[/.][0-9]{1,2}(?:[/.][0-9]{2})?)"
_SACCT_TIME = re.compile(
    r"(?:today|midnight|noon|fika|teatime|now(?:[+-][0-9]{1,9}(?:seconds?|minutes?|hours?|days?|weeks?)?)?"
    rf"|{_CLOCK}|{_DATE}(?:[-T]{_CLOCK})?)",
    re.IGNORECASE,
)

# squeue(1), "JOB STATE CODES"; sacct has the same.
STATE_CODES = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "TO": "TIMEOUT",
}
STATES = frozenset(STATE_CODES.values())


def parse_since(text: str) -> str:
    """A time in sacct's own words: `2d` is `now-2days`; what sacct understands stays as it is.

    Raises:
        UsageError: sacct would not understand it.
    """
    text = text.strip()
    if match := _AGO.fullmatch(text):
        return f"now-{match[1]}{_UNITS[match[2].lower()]}"
    if _SACCT_TIME.fullmatch(text):
        return text
    raise UsageError(
        f"{text[:60]!a} is not a time that sacct understands",
        "write 2d, 3h, 30min, 2026-01-31, 14:30, today or now-2days",
    )


def parse_states(text: str) -> frozenset[str]:
    """States by their words or codes: `failed,TO`.

    Raises:
        UsageError: Slurm has no such state.
    """
    found = set()
    for word in text.split(","):
        code = word.strip().upper()
        state = STATE_CODES.get(code, code)
        if state not in STATES:
            raise UsageError(f"{word[:60]!a} is not a job state", f"did you mean {nearest(state, STATES, cutoff=0)}?")
        found.add(state)
    return frozenset(found)


def parse_users(text: str) -> tuple[str, ...]:
    """User names, or ids, parted by commas.

    Raises:
        UsageError: One can't be a user's name.
    """
    users = tuple(text.split(","))
    for user in users:
        if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.@$\\+-]{0,255}", user):
            raise UsageError(f"{user[:60]!a} is not a user's name", "write --user NAME, or several: --user NAME,NAME")
    return users
