"""How fast the ranks of a process group reach each other: all-reduces of a few sizes."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from hpcdist.records.network import AllReduce
from hpcdist.train.distributed import find_longest, settle

# The least there is, the built-in network's gradients, and enough to see the bandwidth.
SIZES_BYTES = (4, 228_000, 4_000_000)
REPEATS = 3
# What a larger size may be expected to take; on a slow network the smaller ones show the bandwidth.
LONGEST_S = 0.5


def measure_all_reduces(device: torch.device, begin: Callable[[int], None]) -> tuple[AllReduce, ...]:
    """Measure all-reduces of growing sizes, as long as the next one won't take long; every rank must call it.

    Something must have been reduced before: the first time opens the connections.

    Args:
        device: Where the numbers are.
        begin: Called with a size in bytes before it is measured.
    """
    probe: list[AllReduce] = []
    for size in SIZES_BYTES:
        if len(probe) > 1 and find_longest(probe[-1].latency_s, device) * size / probe[-1].size_bytes > LONGEST_S:
            break
        begin(size)
        probe.append(_measure(size, device))
    return tuple(probe)


def _measure(size_bytes: int, device: torch.device) -> AllReduce:
    numbers = torch.zeros(size_bytes // 4, device=device)
    durations_s = []
    for _ in range(REPEATS):
        settle(device)
        started = time.perf_counter()
        dist.all_reduce(numbers)
        settle(device)
        durations_s.append(time.perf_counter() - started)
    latency_s = statistics.median(durations_s)
    return AllReduce(size_bytes=size_bytes, latency_s=latency_s, bandwidth_bytes_per_s=size_bytes / latency_s)
