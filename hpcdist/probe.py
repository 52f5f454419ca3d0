"""What a preflight finds: how fast the ranks reach each other, and which node is not fit to train. Pure values."""

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
