"""Slows a training down on purpose, to see whether the diagnosis finds it."""

from collections.abc import Mapping

import msgspec

from hpcdist.errors import UsageError

SLOW_DATA = "HPCDIST_DRILL_SLOW_DATA_S"
SLOW_RANK = "HPCDIST_DRILL_SLOW_RANK"


class Slowdown(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to each training step.

    Attributes:
        data_s: Seconds for which every rank's loader sleeps before each batch.
        rank: The rank that computes slowly; None slows none.
        compute_s: Seconds for which it sleeps in each forward pass.
    """

    data_s: float = 0.0
    rank: int | None = None
    compute_s: float = 0.0

    def compute_s_of(self, rank: int) -> float:
        """What this rank sleeps in each forward pass, in seconds."""
        return self.compute_s if rank == self.rank else 0.0

    def sentences(self) -> list[str]:
        """What is slowed down, so that nobody takes it for the machine's speed."""
        slowed = []
        if self.data_s:
            slowed.append(f"drill: each batch comes {1e3 * self.data_s:g} ms late ({SLOW_DATA})")
        if self.rank is not None:
            slowed.append(f"drill: each step of rank {self.rank} takes {1e3 * self.compute_s:g} ms more ({SLOW_RANK})")
        return slowed


def read_slowdown(env: Mapping[str, str]) -> Slowdown:
    """Reads `HPCDIST_DRILL_SLOW_DATA_S=0.01` and `HPCDIST_DRILL_SLOW_RANK=1:0.01`.

    Raises:
        UsageError: A value is of another form.
    """
    data, slow = env.get(SLOW_DATA), env.get(SLOW_RANK)
    data_s = _read_seconds(SLOW_DATA, data) if data else 0.0
    if not slow:
        return Slowdown(data_s=data_s)
    rank, _, compute = slow.partition(":")
    if not rank.isdecimal():
        raise UsageError(f"{SLOW_RANK} is {slow!r}, expected RANK:SECONDS", f"write {SLOW_RANK}=1:0.01")
    return Slowdown(data_s=data_s, rank=int(rank), compute_s=_read_seconds(SLOW_RANK, compute))


def _read_seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 60:
        raise UsageError(f"{name} has {text!r} for seconds, expected a number from 0 to 60", f"unset {name}")
    return seconds
