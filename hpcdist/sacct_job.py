"""A job's rows of sacct folded into one record. Pure.

Source of the fields: sacct(1) of Slurm 20.11 to 25.11, run with 22.05.8; of the folding: seff of Slurm 24.11.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal

from hpcdist.errors import ParseError
from hpcdist.printable import printable
from hpcdist.record import Efficiency
from hpcdist.sacct_rows import Row, iter_rows
from hpcdist.units import parse_elapsed, parse_size

# Before Slurm 21.08 ReqMem is per node or per CPU, and says so with a letter: "4Gn", "2000Mc".
_REQUESTED = re.compile(r"([0-9.]{1,24}[KMGTPE]?)([nc]?)")
_COUNT = re.compile(r"[0-9]{1,15}")
_NOT_YET = frozenset({"", "Unknown", "None"})
_IMBALANCE = "The task which had the largest memory consumption"


def iter_runs(lines: Iterable[str], delimiter: str) -> Iterator[Efficiency]:
    """Every run in sacct's output: a job's row and the rows of its steps, which follow it.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    job: _Job | None = None
    for number, row in iter_rows(lines, delimiter):
        parent, dot, _ = row.job_id.partition(".")
        if not dot:
            if job is not None:
                yield job.finish()
            job = _Job(row, number)
        elif job is None or parent != job.row.job_id:
            raise ParseError(f"line {number} of sacct's output is a step without its job: {row.job_id!a}")
        else:
            job.add_step(row)
    if job is not None:
        yield job.finish()


class _Job:
    """A job's row, and what its steps' rows come to."""

    def __init__(self, row: Row, number: int) -> None:
        self.row = row
        self.number = number
        self.gathered = False
        self.memory_bytes = 0
        self.memory_is_estimate = False
        self.gpu_memory_bytes = 0
        self.extra: dict[str, str] = {}

    def add_step(self, row: Row) -> None:
        """Keeps the largest step's memory: the sum of its tasks' peaks, or the largest task times their number.

        Raises:
            ParseError: A cell is not what sacct prints there.
        """
        try:
            self._add_step(row)
        except ParseError as error:
            raise ParseError(f"step {row.job_id} in sacct's output: {error.message}") from None

    def _add_step(self, row: Row) -> None:
        usage = _read_tres(row.usage)
        largest = parse_size(row.max_rss) if row.max_rss else 0
        if "mem" in usage:
            memory, is_estimate = parse_size(usage["mem"]), False
        else:
            tasks = _count(row.tasks) or 1
            memory, is_estimate = largest * tasks, tasks > 1
        self.gathered |= "mem" in usage or largest > 0
        if memory > self.memory_bytes:
            average = parse_size(row.average_rss) if row.average_rss else 0
            self.memory_bytes, self.memory_is_estimate = memory, is_estimate
            self.extra.pop(_IMBALANCE, None)
            if 0 < average < largest:
                differs = f"differs by {largest / average:.2%} from the average task max memory consumption"
                self.extra[_IMBALANCE] = differs
        if "gres/gpumem" in usage:
            self.gpu_memory_bytes = max(self.gpu_memory_bytes, parse_size(usage["gres/gpumem"]))
        if "gres/gpuutil" in usage:
            # The sum over the tasks of each one's highest percentage: a peak, so no efficiency.
            self.extra["gres/gpuutil"] = printable(usage["gres/gpuutil"])

    def finish(self) -> Efficiency:
        """The record of the job.

        Raises:
            ParseError: A cell is not what sacct prints there.
        """
        try:
            return self._finish()
        except ParseError as error:
            raise ParseError(
                f"job {self.row.job_id[:60]} at line {self.number} of sacct's output: {error.message}"
            ) from None

    def _finish(self) -> Efficiency:
        row = self.row
        state = printable(row.state).partition(" ")[0].rstrip("+") or None
        nodes, cores = _count(row.nodes) or None, _count(row.cpus) or None
        # What was allocated; for a job that never got anything, what it asked for.
        tres = _read_tres(row.allocated_tres) or _read_tres(row.requested_tres)
        wall_s = None if state == "PENDING" else _count(row.elapsed)
        core_walltime_s = cores * wall_s if cores is not None and wall_s is not None else None
        cpu_s = parse_elapsed(row.total_cpu) if row.total_cpu else None
        if cpu_s == 0 and not self.gathered:
            cpu_s = None  # a zero that nobody measured
        requested, memory_per = _requested_memory(row, tres, nodes, cores)
        used = self.memory_bytes or None
        ended_at_s = _time(row.end)
        # A job cancelled while pending has a start, its end, and no node.
        never_ran = not row.allocated_tres and not wall_s
        exit_code, _, signal = row.exit_code.partition(":")
        if signal not in {"", "0"}:
            self.extra["Signal"] = printable(signal)
        minutes = _count(row.time_limit)
        return Efficiency(
            job_id=printable(row.raw_id) or row.job_id,
            array_job_id=row.job_id if "_" in row.job_id else None,
            het_job_id=row.job_id if "+" in row.job_id else None,
            cluster=printable(row.cluster) or None,
            user=printable(row.user) or None,
            group=printable(row.group) or None,
            state=state,
            exit_code=None if state in {"PENDING", "RUNNING"} else _count(exit_code),
            nodes=nodes,
            cores=cores,
            cores_per_node=cores // nodes if cores is not None and nodes is not None else None,
            cpu_time_s=cpu_s,
            cpu_efficiency=cpu_s / core_walltime_s if cpu_s is not None and core_walltime_s else None,
            core_walltime_s=core_walltime_s,
            wall_time_s=wall_s,
            memory_used_bytes=used,
            memory_is_estimate=self.memory_is_estimate,
            memory_efficiency=used / requested if used is not None and requested is not None else None,
            memory_requested_bytes=requested,
            memory_per=memory_per,
            gpus=_gpus(tres),
            gpu_memory_used_bytes=self.gpu_memory_bytes or None,
            time_limit_s=minutes * 60 if minutes is not None else None,
            name=printable(row.name) or None,
            partition=printable(row.partition) or None,
            node_list=None if row.node_list in {"None assigned", ""} else printable(row.node_list),
            submitted_at_s=_time(row.submit),
            started_at_s=None if never_ran else _time(row.start),
            ended_at_s=ended_at_s,
            source="sacct",
            live=state != "PENDING" and row.end == "Unknown",
            extra=self.extra,
        )


def _requested_memory(
    row: Row, tres: dict[str, str], nodes: int | None, cores: int | None
) -> tuple[int | None, Literal["node", "core"] | None]:
    """Memory of the whole job in bytes, and per what it was asked for, which sacct says only before Slurm 21.08.

    What was allocated counts, as in seff since 23.02: `--mem=0` asks for 0 and gets all of a node's.
    """
    match = _REQUESTED.fullmatch(row.requested_memory)
    letter = match[2] if match else ""
    per: Literal["node", "core"] | None = "node" if letter == "n" else "core" if letter == "c" else None
    if "mem" in tres:
        return parse_size(tres["mem"]) or None, per
    if match is None:
        return None, per
    parts = {"n": nodes, "c": cores}.get(letter, 1)
    return (parse_size(match[1]) * parts or None) if parts is not None else None, per


def _read_tres(text: str) -> dict[str, str]:
    """`cpu=4,gres/gpu=2,mem=1600M` by name."""
    return {name: amount for name, _, amount in (part.partition("=") for part in text.split(","))} if text else {}


def _gpus(tres: dict[str, str]) -> int | None:
    """GPUs of all types; None without any, since a cluster need not track them."""
    if "gres/gpu" in tres:
        return _count(tres["gres/gpu"])
    typed = [_count(amount) or 0 for name, amount in tres.items() if name.startswith("gres/gpu:")]
    return sum(typed) if typed else None


def _count(text: str) -> int | None:
    return int(text) if _COUNT.fullmatch(text) else None


def _time(text: str) -> float | None:
    """Seconds since the epoch; a time without `TIME_ENVIRONMENT` is taken in this machine's time zone.

    Raises:
        ParseError: The text is no time.
    """
    if text in _NOT_YET:
        return None
    if _COUNT.fullmatch(text):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ParseError(f"{text[:60]!a} is not a time") from None
