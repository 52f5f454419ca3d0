"""Fold sacct's rows into one record per job.

Source of the fields: sacct(1) and `src/sacct/print.c` of Slurm 20.11 to 26.05, run with 22.05.8;
of the folding: seff of Slurm 24.11.

`sacct -P` with fixed fields works on every Slurm release, streams, and costs a quarter of `--json`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from hpcdist.errors import ParseError
from hpcdist.records.efficiency import IMBALANCE, Efficiency, Gathering, name_kinds
from hpcdist.records.job import CONTINUED_STATES
from hpcdist.slurm.sacct_query import DELIMITER
from hpcdist.slurm.sacct_rows import (
    UNSET,
    Row,
    iter_rows,
    parse_amount,
    parse_count,
    parse_request,
    parse_seconds,
    parse_time,
    parse_time_limit,
)
from hpcdist.text import printable
from hpcdist.units import parse_elapsed, parse_size

_USUAL_STATES = frozenset({"COMPLETED", "FAILED", "TIMEOUT", "RUNNING", "PENDING", "OUT_OF_MEMORY"})
_SINGLE_TASK = (".batch", ".extern", ".interactive")


def fold_rows(
    rows: Iterable[tuple[int, Row]],
    group_name: Callable[[str], str] = printable,
    gathering: Gathering | None = None,
) -> Iterator[Efficiency]:
    """Yield every run in sacct's numbered rows: a job's row and the rows of its steps, which follow it.

    Raises:
        ParseError: A cell is not what sacct prints there, or a step has no job.
    """
    job: _Job | None = None
    for number, row in rows:
        if "." not in row.job_id:
            if job is not None:
                yield job.finish(group_name, gathering)
            job = _Job(row, number)
            if row.usage or row.max_rss:
                # Up to Slurm 21.08 a job with one step of its own name and size (srun alone) has no row for the step.
                job.add_step(row)
        elif job is None or not row.job_id.startswith(job.prefix):
            raise ParseError(f"line {number} of sacct's output is a step without its job: {row.job_id!a}")
        else:
            job.add_step(row)
    if job is not None:
        yield job.finish(group_name, gathering)


class _Job:
    """A job's row, and what its steps' rows come to."""

    def __init__(self, row: Row, number: int) -> None:
        self.row = row
        self.number = number
        self.prefix = f"{row.job_id}."
        self.gathered = False
        self.tasks_are_known = True
        self.memory_bytes = 0
        self.memory_is_estimate = False
        self.gpu_memory_bytes = 0
        self.extra: dict[str, str] = {}

    def add_step(self, row: Row) -> None:
        """Keep the largest step's memory: the sum of its tasks' peaks, or the largest task times their number."""
        try:
            usage = row.usage
            total = parse_amount(usage, "mem")
            if total is not None and not total.startswith(UNSET):
                memory, is_estimate = parse_size(total), False
                self.gathered = True
            else:
                tasks = parse_count(row.tasks) or 1
                if not row.tasks and not row.job_id.endswith(_SINGLE_TASK):
                    # Asked without NTasks: the largest task's memory, and nobody knows how many there were.
                    self.tasks_are_known = False
                memory, is_estimate = (parse_size(row.max_rss) if row.max_rss else 0) * tasks, tasks > 1
                self.gathered |= memory > 0
            if memory > self.memory_bytes:
                self.memory_bytes, self.memory_is_estimate = memory, is_estimate
                self.extra.pop(IMBALANCE, None)
                if row.average_rss != row.max_rss:  # a single task's are the same
                    self._compare_tasks(row)
            if "gres/" in usage:
                self._add_gpu(usage)
        except ParseError as error:
            raise ParseError(f"step {row.job_id} in sacct's output: {error.message}") from None

    def _compare_tasks(self, row: Row) -> None:
        largest = parse_size(row.max_rss) if row.max_rss else 0
        average = parse_size(row.average_rss) if row.average_rss and largest else 0
        if 0 < average < largest:
            share = f"{largest / average:.2%}"
            self.extra[IMBALANCE] = f"differs by {share} from the average task max memory consumption"

    def _add_gpu(self, usage: str) -> None:
        memory, peak = parse_amount(usage, "gres/gpumem"), parse_amount(usage, "gres/gpuutil")
        if memory is not None:
            self.gpu_memory_bytes = max(self.gpu_memory_bytes, parse_size(memory))
        if peak is not None:
            # The sum over the tasks of each one's highest percentage: a peak, so no efficiency.
            self.extra["gres/gpuutil"] = printable(peak)

    def finish(self, group_name: Callable[[str], str], gathering: Gathering | None) -> Efficiency:
        """Build the job's record."""
        try:
            return self._finish(group_name, gathering)
        except ParseError as error:
            place = f"job {self.row.job_id[:60]} at line {self.number} of sacct's output"
            raise ParseError(f"{place}: {error.message}") from None

    def _finish(self, group_name: Callable[[str], str], gathering: Gathering | None) -> Efficiency:
        row = self.row
        state: str | None = row.state
        if state not in _USUAL_STATES:
            state = printable(row.state).partition(" ")[0].rstrip("+") or None  # "CANCELLED by 1000", "CANCELLED+"
        # What was allocated; for a job that never got anything, what it asked for.
        tres = row.allocated_tres or row.requested_tres
        nodes, cores, gpus, requested, memory_per = parse_request(tres, row.requested_memory, row.nodes, row.cpus)
        wall_s = None if state == "PENDING" else parse_seconds(row.elapsed)
        core_walltime_s = cores * wall_s if cores is not None and wall_s is not None else None
        cpu_s = parse_elapsed(row.total_cpu) if row.total_cpu else None
        if cpu_s == 0 and not self.gathered:
            cpu_s = None  # a zero that nobody measured
        used = self.memory_bytes if self.tasks_are_known and self.memory_bytes else None
        ended_at_s = parse_time(row.end)
        # A job cancelled while pending has a start, its end, and no node.
        never_ran = not row.allocated_tres and wall_s == 0
        exit_code, signal = "0", ""
        if row.exit_code != "0:0":
            exit_code, _, signal = row.exit_code.partition(":")
        if signal not in {"", "0"}:
            self.extra["Signal"] = printable(signal)
        raw_id, cluster, user, name, partition, node_list = _printable(
            row.raw_id, row.cluster, row.user, row.name, row.partition, row.node_list
        )
        return Efficiency(
            job_id=raw_id or row.job_id,
            array_job_id=row.job_id if "_" in row.job_id else None,
            het_job_id=row.job_id if "+" in row.job_id else None,
            cluster=cluster or None,
            user=user or None,
            group=group_name(row.group) or None,
            state=state,
            exit_code=None if state in {"PENDING", "RUNNING"} else parse_count(exit_code),
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
            gpus=gpus,
            gpu_memory_used_bytes=self.gpu_memory_bytes or None,
            time_limit_s=parse_time_limit(row.time_limit),
            name=name or None,
            partition=partition or None,
            node_list=None if node_list in {"None assigned", ""} else node_list,
            submitted_at_s=parse_time(row.submit),
            started_at_s=None if never_ran else parse_time(row.start),
            ended_at_s=ended_at_s,
            source="sacct",
            kinds=name_kinds(
                "sacct",
                cpu=cpu_s,
                memory=used,
                memory_is_estimate=self.memory_is_estimate,
                gpu_memory=self.gpu_memory_bytes or None,
                gathering=gathering,
            ),
            gathering=gathering,
            live=state != "PENDING" and (row.end == "Unknown" or (not row.end and state == "RUNNING")),
            extra=self.extra,
        )


def _printable(*texts: str) -> Sequence[str]:
    """Return each text made printable; one look at all of them where they are, as they are nearly always."""
    together = "".join(texts)
    if together.isascii() and together.isprintable() and " " not in together:
        return texts
    return [printable(text) for text in texts]


def parse_sacct(
    rows: str | Iterable[str], delimiter: str = DELIMITER, group_name: Callable[[str], str] = printable
) -> list[Efficiency]:
    """Return a record per job (array task, component), in order of submission, from sacct's output or its lines.

    The runs of a requeued job are one record: the last run's, with the others as `earlier_runs`. Ids are used again
    once a cluster reached its highest; of unrelated jobs with one id the last is kept, as sacct does on its own.
    A first line with field names is understood too, in any order and with any delimiter, and so is `sacct --json`.

    Args:
        group_name: What to call the group in a row, a number where `sacct_arguments` asked.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    lines = rows.split("\n") if isinstance(rows, str) else rows
    runs = sorted(_iter_runs(lines, delimiter, group_name), key=lambda run: run.submitted_at_s or 0.0)
    found: dict[tuple[str | None, str], Efficiency] = {}
    for one in _chain(runs):
        found.pop((one.cluster, one.job_id), None)
        found[one.cluster, one.job_id] = one
    return list(found.values())


def iter_sacct(
    lines: Iterable[str],
    delimiter: str = DELIMITER,
    group_name: Callable[[str], str] = printable,
    gathering: Gathering | None = None,
) -> Iterator[Efficiency]:
    """Yield the records of `parse_sacct` as the rows come: only runs that were requeued are held back.

    Unrelated jobs with one id are all given out, and the rows must be in order of time, as sacct prints them.

    Args:
        gathering: How the cluster gathers usage, where it was asked.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    return _chain(_iter_runs(lines, delimiter, group_name, gathering))


def _iter_runs(
    lines: Iterable[str], delimiter: str, group_name: Callable[[str], str], gathering: Gathering | None = None
) -> Iterator[Efficiency]:
    """Yield every run, whether the lines are rows or `sacct --json`."""
    rest = iter(lines)
    first = next(rest, "")
    if not first.lstrip().startswith("{"):
        yield from fold_rows(iter_rows(itertools.chain([first], rest), delimiter), group_name, gathering)
        return
    from hpcdist.slurm.sacct_json import read_json_rows  # a dozen types that rows of text do not need

    release, rows = read_json_rows("\n".join([first, *rest]))
    for run in fold_rows(rows, group_name):
        yield msgspec.structs.replace(run, gathering=Gathering(slurm_version=release))


def _chain(runs: Iterable[Efficiency]) -> Iterator[Efficiency]:
    """Put the runs of a requeued job together: one user's, each but the last ended by a requeue."""
    open_runs: dict[tuple[str | None, str], list[Efficiency]] = {}
    for run in runs:
        if not open_runs and run.state not in CONTINUED_STATES:
            yield run
            continue
        key = (run.cluster, run.job_id)
        before = open_runs.pop(key, [])
        if before and (before[-1].user != run.user or before[-1].array_job_id != run.array_job_id):
            yield _join(before)
            before = []
        if run.state in CONTINUED_STATES:
            open_runs[key] = [*before, run]
        else:
            yield _join([*before, run])
    for held in open_runs.values():
        yield _join(held)


def _join(runs: list[Efficiency]) -> Efficiency:
    if len(runs) == 1:
        return runs[0]
    return msgspec.structs.replace(runs[-1], earlier_runs=tuple(runs[:-1]))
