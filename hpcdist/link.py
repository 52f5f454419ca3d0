"""How long an all-reduce takes: of sizes and between numbers of ranks that nobody probed, and in a step. Pure."""

from collections.abc import Sequence

import msgspec

from hpcdist.records.network import AllReduce

# torch.distributed's DDP sends what is smaller in one bucket, whose all-reduce starts when the backward pass is over.
ONE_BUCKET_BYTES = 1024**2
# A backward pass computes two products of matrices where the forward pass computes one.
BACKWARD_SHARE = 2 / 3


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """All-reduces of several sizes between so many ranks, from a job's start or a probe of its own.

    Attributes:
        ranks: Ranks that took part.
        nodes: Nodes they were on.
        probe: At least one all-reduce.
    """

    ranks: int
    nodes: int
    probe: tuple[AllReduce, ...]


def choose_links(links: Sequence[Link], ranks: int, nodes: int) -> list[Link]:
    """All probes of the nearest shape: first in whether a network lies between them, then in nodes, then in ranks."""
    shapes = {(link.nodes, link.ranks) for link in links if link.probe and link.ranks > 1}
    if not shapes:
        return []
    best = min(shapes, key=lambda one: ((one[0] > 1) != (nodes > 1), abs(one[0] - nodes), abs(one[1] - ranks), one))
    return [link for link in links if (link.nodes, link.ranks) == best]


def all_reduce_s(probe: Sequence[AllReduce], size_bytes: float) -> float:
    """Seconds that an all-reduce of this size takes: between two probed sizes along their line, beyond them carried on.

    Latency and bytes over bandwidth, as far as the probe has both.
    """
    points = sorted((one.size_bytes, one.latency_s) for one in probe)
    if len(points) == 1 or size_bytes <= points[0][0]:
        return points[0][1]
    at = next((place for place, (size, _) in enumerate(points) if size >= size_bytes), len(points) - 1)
    (low, low_s), (high, high_s) = points[at - 1], points[at]
    if high == low:
        return high_s
    return max(0.0, low_s + (high_s - low_s) * (size_bytes - low) / (high - low))


def carry_to_ranks(probe: Sequence[AllReduce], size_bytes: float, measured: int, ranks: int) -> float:
    """Seconds of an all-reduce between other numbers of ranks than were probed, as in a ring.

    Each rank sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages (nccl-tests, PERFORMANCE.md).
    """
    latency_s = all_reduce_s(probe, 0)
    transfer_s = max(0.0, all_reduce_s(probe, size_bytes) - latency_s)
    messages = (ranks - 1) / (measured - 1)
    return latency_s * messages + transfer_s * messages * measured / ranks


def find_exposed_s(exposed_s: float, before_s: float, after_s: float, backward_s: float, size_bytes: float) -> float:
    """Communication that a step will show where the all-reduce takes another time.

    Args:
        exposed_s: What a step shows now, waiting left out.
        before_s: What the all-reduce takes now.
        after_s: What it will take.
        backward_s: The backward pass, which may hide some of it.
        size_bytes: Its size: of one bucket nothing is hidden.
    """
    if size_bytes <= ONE_BUCKET_BYTES or exposed_s >= before_s:
        # Nothing is hidden; what exceeds the probe (threads that wake up) stays as it is.
        return max(0.0, exposed_s + after_s - before_s)
    hidden_share = 1 - exposed_s / before_s
    return after_s - min(hidden_share * after_s, backward_s)
