"""What a rank used over time: points of about a second, made coarser where a run is long."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

# A run of half a day has points of a minute, in a file of some 50 kB.
MOST_POINTS = 720
# Samples come a little late, and never early by more than this share of an interval.
_NEARLY = 0.95


class Moment(NamedTuple):
    """What was used in a short time; None is what nobody could measure.

    Attributes:
        at_s: Its end, seconds since the program's start.
        span_s: How long it was.
        cpu_cores: CPUs in use by the program and its children.
        node_cpu_utilization: Share of all the node's CPUs that any program used, a fraction.
        memory_bytes: Resident memory of the program and its children.
        gpu_utilization: Share of the time in which the rank's GPU ran any kernel, a fraction.
        gpu_memory_bytes: Memory in use on that GPU, by all processes.
        disk_read_bytes_per_s, disk_written_bytes_per_s: What the program and its children moved from and to disks and
            network file systems; what the page cache had is not in it (proc(5), /proc/PID/io).
        network_received_bytes_per_s, network_sent_bytes_per_s: Of the rank's whole node, loopback left out. What goes
            past the kernel, as RDMA does, is not in it.
    """

    at_s: float
    span_s: float
    cpu_cores: float | None = None
    node_cpu_utilization: float | None = None
    memory_bytes: float | None = None
    gpu_utilization: float | None = None
    gpu_memory_bytes: float | None = None
    disk_read_bytes_per_s: float | None = None
    disk_written_bytes_per_s: float | None = None
    network_received_bytes_per_s: float | None = None
    network_sent_bytes_per_s: float | None = None


FIGURES = Moment._fields[2:]
_PEAKS = frozenset({"memory_bytes", "gpu_memory_bytes"})


class UsageCurve(msgspec.Struct, frozen=True, kw_only=True):
    """`curves/<rank>.json`: what a rank used over time, a column per figure.

    Attributes:
        rank: Global rank.
        host: Its node.
        started_at_s: Start of the rank's program, seconds since the epoch.
        every_s: Seconds between points, at least.
        at_s: The end of each point, seconds since the start.
        cpu_cores, node_cpu_utilization, memory_bytes, gpu_utilization, gpu_memory_bytes, disk_read_bytes_per_s,
            disk_written_bytes_per_s, network_received_bytes_per_s, network_sent_bytes_per_s: As in `Moment`, one per
            point; of several samples in a point the mean, of memory the highest.
    """

    rank: int
    host: str
    started_at_s: float
    every_s: float
    at_s: tuple[float, ...] = ()
    cpu_cores: tuple[float | None, ...] = ()
    node_cpu_utilization: tuple[float | None, ...] = ()
    memory_bytes: tuple[float | None, ...] = ()
    gpu_utilization: tuple[float | None, ...] = ()
    gpu_memory_bytes: tuple[float | None, ...] = ()
    disk_read_bytes_per_s: tuple[float | None, ...] = ()
    disk_written_bytes_per_s: tuple[float | None, ...] = ()
    network_received_bytes_per_s: tuple[float | None, ...] = ()
    network_sent_bytes_per_s: tuple[float | None, ...] = ()

    def mean(self, figure: str, begin_s: float, end_s: float) -> float | None:
        """Return a figure's mean over the points between two times since the start; None where there are none."""
        starts = (0.0, *self.at_s)
        values: Sequence[float | None] = getattr(self, figure)
        known = [
            (value, end - begin)
            for begin, end, value in zip(starts, self.at_s, values, strict=False)
            if value is not None and begin >= begin_s and end <= end_s
        ]
        span_s = sum(span for _, span in known)
        return sum(value * span for value, span in known) / span_s if span_s else None


class CurveBuilder:
    """Puts samples together into a curve of no more than so many points.

    Args:
        every_s: Seconds between points at first; doubled each time there are too many of them.
        most: Points at most.
    """

    def __init__(self, every_s: float, most: int = MOST_POINTS) -> None:
        self.every_s = every_s
        self._most = most
        self._done: list[Moment] = []
        self._open: Moment | None = None

    def add(self, sample: Moment) -> None:
        """Take a sample in; samples follow each other without gaps."""
        self._open = merge(self._open, sample) if self._open else sample
        if self._open.span_s < _NEARLY * self.every_s:
            return
        self._done.append(self._open)
        self._open = None
        if len(self._done) >= self._most:
            pairs = zip(self._done[::2], self._done[1::2], strict=False)
            odd = self._done[-1:] if len(self._done) % 2 else []
            self._done = [merge(*pair) for pair in pairs] + odd
            self.every_s *= 2

    def moments(self) -> list[Moment]:
        """Return all points so far, an unfinished one included."""
        return [*self._done, *([self._open] if self._open else [])]


def merge(one: Moment, other: Moment) -> Moment:
    """Return two moments that follow each other as one."""
    figures: dict[str, float | None] = {}
    for name in FIGURES:
        parts = ((getattr(one, name), one.span_s), (getattr(other, name), other.span_s))
        known = [(value, span_s) for value, span_s in parts if value is not None]
        if not known:
            figures[name] = None
        elif name in _PEAKS:
            figures[name] = max(value for value, _ in known)
        else:
            span_s = sum(span for _, span in known)
            figures[name] = sum(value * span for value, span in known) / span_s if span_s else known[-1][0]
    return Moment(at_s=other.at_s, span_s=one.span_s + other.span_s, **figures)


def build_curve(builder: CurveBuilder, *, rank: int, host: str, started_at_s: float) -> UsageCurve:
    """Return the curve so far, with as many digits as mean anything."""
    moments = builder.moments()
    columns = {
        name: tuple(_round(getattr(moment, name), 0 if "bytes" in name else 3) for moment in moments)
        for name in FIGURES
    }
    return UsageCurve(
        rank=rank,
        host=host,
        started_at_s=started_at_s,
        every_s=builder.every_s,
        at_s=tuple(round(moment.at_s, 2) for moment in moments),
        **columns,
    )


def _round(value: float | None, digits: int) -> float | None:
    if value is None:
        return None
    return round(value, digits) if digits else int(value)
