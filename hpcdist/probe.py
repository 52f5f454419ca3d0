"""What a preflight finds: how fast the ranks reach each other, and which node is not fit to train. Pure values."""

from collections.abc import Sequence

import msgspec


class AllReduce(msgspec.Struct, frozen=True, kw_only=True):
    """An all-reduce over all ranks of a job, as one of them measured it.

    Attributes:
        size_bytes: What each rank brought.
        latency_s: Seconds it took, the median of several.
        bandwidth_bytes_per_s: `size_bytes / latency_s`, the algorithm's bandwidth (nccl-tests, PERFORMANCE.md).
    """

    size_bytes: int
    latency_s: float
    bandwidth_bytes_per_s: float


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why the ranks of a job can't train together.

    Attributes:
        sentence: What was found, where, and what was expected.
        hint: What to do.
        rank: The first rank it was found on.
        host: Its node, as Slurm calls it; None where it can't be told which node is to blame.
    """

    sentence: str
    hint: str
    rank: int
    host: str | None = None


def fit_alpha_beta(probe: Sequence[AllReduce]) -> tuple[float, float] | None:
    """Latency α in seconds and bandwidth β in bytes/s of t = α + size / β (Hockney 1994), by least squares.

    What is least is the sum of squared *relative* errors: sizes span orders of magnitude, and of the largest a tenth
    more or less is longer than the smallest takes at all. A latency below 0 can't be, and is 0. None of fewer than two
    sizes, or where larger ones took no longer.
    """
    if len({one.size_bytes for one in probe}) < 2 or any(one.latency_s <= 0 for one in probe):
        return None
    weights = [one.latency_s**-2 for one in probe]
    sizes, times_s = [one.size_bytes for one in probe], [one.latency_s for one in probe]
    size, time_s = _mean(sizes, weights), _mean(times_s, weights)
    slope = _mean([(x - size) * (t - time_s) for x, t in zip(sizes, times_s, strict=True)], weights)
    slope /= _mean([(x - size) ** 2 for x in sizes], weights)
    if slope <= 0:
        return None
    latency_s = time_s - slope * size
    if latency_s < 0:
        products = [x * t for x, t in zip(sizes, times_s, strict=True)]
        return 0.0, _mean([x * x for x in sizes], weights) / _mean(products, weights)
    return latency_s, 1 / slope


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
