"""What a program and its children use of the machine, sampled while it runs: peaks, sums and a curve over time."""

import contextlib
import os
import time
from pathlib import Path

import psutil

from hpcdist.gpu import GpuMeter
from hpcdist.records.efficiency import RANK_INTERVAL_S
from hpcdist.records.usage_curve import CurveBuilder, Moment

_OWN_CHILDREN = Path("/proc/thread-self/children")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Sampler:
    """Samples a program.

    Args:
        pid: Its process.
        gpu: Meter of the rank's GPU; None without one.

    Attributes:
        memory_peak_bytes: Peak of the resident memory of the program and its children.
        curve: What was used over time.
    """

    def __init__(self, pid: int, gpu: GpuMeter | None) -> None:
        self.memory_peak_bytes = 0
        self.curve = CurveBuilder(RANK_INTERVAL_S)
        self._pid = pid
        self._gpu = gpu
        # By process, as last seen: what a child that has ended used stays in the sums.
        self._processes: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._disk: dict[int, tuple[int, int]] = {}
        self._began_at = self._sampled_at = time.monotonic()
        self._totals = _Totals(0.0, _read_node_cpu_s(), (0, 0), _read_network())

    @property
    def children_cpu_s(self) -> float:
        """CPU time of the program's children, those that ended included, in seconds."""
        return sum(seconds for pid, seconds in self._cpu_s.items() if pid != self._pid)

    def sample(self) -> None:
        """Take one sample; a program that has ended is left alone."""
        resident = self._look_at_processes()
        if resident is None:
            return
        self.memory_peak_bytes = max(self.memory_peak_bytes, resident)
        busy, gpu_memory = self._gpu.sample() if self._gpu else (None, None)
        disk = tuple(map(sum, zip(*self._disk.values(), strict=True))) or None
        now = time.monotonic()
        totals = _Totals(sum(self._cpu_s.values()), _read_node_cpu_s(), disk, _read_network())
        span_s = now - self._sampled_at
        cpu_cores, node_cores, *others = totals.rates_since(self._totals, span_s)
        self._sampled_at, self._totals = now, totals
        on_node = None if node_cores is None else node_cores / (os.cpu_count() or 1)
        self.curve.add(
            Moment(now - self._began_at, span_s, cpu_cores, on_node, float(resident), busy, gpu_memory, *others)
        )

    def _look_at_processes(self) -> int | None:
        """Note what each process used so far; return what they have in memory, None when the program is gone."""
        resident = 0
        for pid in (self._pid, *find_children(self._pid)):
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                resident += process.memory_info().rss
                times = process.cpu_times()
                self._cpu_s[pid] = times.user + times.system
                self._processes[pid] = process
            except psutil.Error:
                self._processes.pop(pid, None)
                if pid == self._pid:
                    return None
                continue
            # Some containers hide it.
            with contextlib.suppress(psutil.Error, OSError):
                moved = process.io_counters()
                self._disk[pid] = (moved.read_bytes, moved.write_bytes)
        return resident


class _Totals:
    """Counters that only ever grow; None where nobody counts."""

    def __init__(
        self, cpu_s: float, node_cpu_s: float, disk: tuple[int, ...] | None, network: tuple[int, int] | None
    ) -> None:
        self._counts = (cpu_s, node_cpu_s, *(disk or (None, None)), *(network or (None, None)))

    def rates_since(self, before: "_Totals", span_s: float) -> tuple[float | None, ...]:
        """Return each counter's growth per second."""
        pairs = zip(self._counts, before._counts, strict=True)
        return tuple(
            None if now is None or then is None or span_s <= 0 else max(0.0, (now - then) / span_s)
            for now, then in pairs
        )


def find_children(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have.

    From each thread's list of them (proc(5), /proc/PID/task/TID/children): psutil reads the state of every process of
    the machine, which on a node with thousands of them would take some percent of a core each second.
    """
    if not _OWN_CHILDREN.exists():  # a kernel built without CONFIG_PROC_CHILDREN
        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []
    found: list[int] = []
    waiting = [pid]
    while waiting:
        try:
            for thread in Path(f"/proc/{waiting.pop()}/task").iterdir():
                children = [int(word) for word in (thread / "children").read_bytes().split()]
                found += children
                waiting += children
        except OSError:
            continue  # it has ended
    return found


def _read_node_cpu_s() -> float:
    """Return the CPU time that any program of this node used since it started, in seconds."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _read_network() -> tuple[int, int] | None:
    """Bytes received and sent by this node, what it sends to itself left out; None where nobody counts."""
    try:
        counters = psutil.net_io_counters(pernic=True)
    except (OSError, RuntimeError):
        return None
    cards = [count for name, count in counters.items() if name != "lo"]
    return (sum(one.bytes_recv for one in cards), sum(one.bytes_sent for one in cards)) if cards else None


def read_node_memory() -> int:
    """Return the memory that this machine has, or that the container around this process may use, in bytes."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max"
            total = min(total, int(path.read_text()))
    return total
