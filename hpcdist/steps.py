"""Where the steps of a job go, over all its ranks: the mean split, what is waiting, the slowest rank. Pure."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from hpcdist.comparison import Straggler
from hpcdist.record import RankUsage, StepSplit

PARTS = ("data_s", "compute_s", "communication_s", "other_s")
"""The parts of a `StepSplit` that add up to its step."""


def mean_split(ranks: Sequence[RankUsage]) -> StepSplit | None:
    """The mean of the ranks' splits, its `steps` the fewest of any; None where no rank has one."""
    return _combine([split for _, split in _measured(ranks)], statistics.fmean)


def median_split(splits: Sequence[StepSplit]) -> StepSplit | None:
    """The median of each part over several jobs, its `steps` the fewest of any; None where no job has one."""
    return _combine(splits, statistics.median)


def _combine(splits: Sequence[StepSplit], middle: Callable[[Iterable[float]], float]) -> StepSplit | None:
    if not splits:
        return None
    parts = {name: middle(getattr(split, name) for split in splits) for name in (*PARTS, "step_s")}
    return StepSplit(steps=min(split.steps for split in splits), **parts)


def waiting_s(ranks: Sequence[RankUsage]) -> float | None:
    """The part of the mean exposed communication that is waiting for slower ranks, in seconds.

    The rank that comes last waits for nobody: what it spends is the all-reduce itself, what the others spend beyond
    that is waiting for it. None where fewer than two ranks have a split.
    """
    exposed_s = [split.communication_s for _, split in _measured(ranks)]
    return statistics.fmean(exposed_s) - min(exposed_s) if len(exposed_s) > 1 else None


def find_straggler(ranks: Sequence[RankUsage]) -> Straggler | None:
    """The rank with the most work of its own per step, by how much more than the median of the others.

    It is the slowest also where it is hardly slower: whether that matters is for the reader of `slowdown`. The rank
    itself is left out of the median: of two ranks the median of both would hide half of the difference. None where
    fewer than two ranks have a split.
    """
    measured = _measured(ranks)
    if len(measured) < 2:
        return None
    own_s = [split.data_s + split.compute_s + split.other_s for _, split in measured]
    slowest = own_s.index(max(own_s))
    others_s = statistics.median(own_s[:slowest] + own_s[slowest + 1 :])
    if not others_s:
        return None
    rank = measured[slowest][0]
    return Straggler(rank=rank.rank, host=rank.host, slowdown=own_s[slowest] / others_s)


def _measured(ranks: Sequence[RankUsage]) -> list[tuple[RankUsage, StepSplit]]:
    return [(rank, rank.training.split) for rank in ranks if rank.training and rank.training.split]
