"""A job's efficiency: from the site's seff, from sacct, or from what its ranks measured."""

import shutil
import time
from collections.abc import Sequence
from typing import Literal

from hpcdist.backends import slurm
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError
from hpcdist.record import Efficiency, RankUsage
from hpcdist.sacct import TIME_ENVIRONMENT, parse_sacct, sacct_arguments
from hpcdist.seff import parse_seff
from hpcdist.spec import Layout
from hpcdist.store import LocalState

Source = Literal["seff", "sacct", "ranks"]


def query_slurm(job_ids: Sequence[str], source: Source | None = None) -> list[Efficiency]:
    """What Slurm accounted for jobs, in the order of the ids; an array gives one per task.

    One job is read through the site's own `seff` when that is on PATH; several, or none there, through one sacct.

    Raises:
        NotReadyError: Accounting is off, or has nothing on a job that exists.
        NotFoundError: Slurm knows no such job.
    """
    if source is None:
        source = "seff" if len(job_ids) == 1 and shutil.which("seff") else "sacct"
    if source == "seff":
        return [efficiency for job_id in job_ids for efficiency in _read_seff(job_id)]
    rows = slurm.read_accounting(sacct_arguments(job_ids), TIME_ENVIRONMENT)
    found = parse_sacct(rows)
    known = set().union(*(names_of(one) for one in found))
    for job_id in job_ids:
        if job_id not in known:
            raise _missing(job_id)
    return found


def names_of(efficiency: Efficiency) -> set[str]:
    """The ids a person may use for the job of a figure: its own, the array task's, the whole array's."""
    array = efficiency.array_job_id or ""
    return {efficiency.job_id, array, array.partition("_")[0]} - {""}


def _read_seff(job_id: str) -> list[Efficiency]:
    text = slurm.read_seff(job_id)
    if not text.strip():
        raise _missing(job_id)
    return parse_seff(text)


def _missing(job_id: str) -> HpcdistError:
    """The error for a job that accounting has no row of: it may wait for the database, or not exist."""
    statuses = slurm.query([job_id])[job_id]
    if all(status.state == "UNKNOWN" for status in statuses):
        return NotFoundError(f"Slurm knows no job {job_id}", "hpcdist status lists this project's runs")
    return NotReadyError(f"accounting has nothing on job {job_id} yet", f"hpcdist status {job_id}")


def from_ranks(job_id: str, layout: Layout, ranks: Sequence[RankUsage], state: LocalState | None = None) -> Efficiency:
    """The efficiency of a job from what its ranks measured.

    Memory is the sum of the ranks' peaks, which need not have come at the same moment: an upper bound, and marked
    as an estimate where there is more than one rank.

    Raises:
        NotReadyError: No rank wrote anything yet.
    """
    if not ranks:
        raise NotReadyError(f"no rank of job {job_id} has written anything yet", f"hpcdist status {job_id}")
    started_s = state.started_at_s if state else min(rank.started_at_s for rank in ranks)
    ends = [state.ended_at_s] if state else [rank.ended_at_s for rank in ranks]
    live = any(end is None for end in ends)
    wall_s = (time.time() if live else max(end for end in ends if end is not None)) - started_s
    cores = layout.world_size * layout.cpus_per_task
    cpu_s = _sum([rank.cpu_time_s for rank in ranks])
    memory = _sum([rank.memory_peak_bytes for rank in ranks])
    busy = [rank.gpu_utilization for rank in ranks if rank.gpu_utilization is not None]
    gpu_memory = _sum([rank.gpu_memory_peak_bytes for rank in ranks])
    codes = [rank.exit_code if rank.exit_code is not None else 128 + (rank.signal or 0) for rank in ranks]
    return Efficiency(
        job_id=job_id,
        state=state.state if state else ("RUNNING" if live else "FAILED" if any(codes) else "COMPLETED"),
        exit_code=state.exit_code if state else (None if live else max(codes)),
        nodes=layout.nodes,
        cores=cores,
        cores_per_node=cores // layout.nodes,
        cpu_time_s=cpu_s,
        cpu_efficiency=cpu_s / (cores * wall_s) if cpu_s is not None and wall_s > 0 else None,
        core_walltime_s=cores * wall_s,
        wall_time_s=wall_s,
        memory_used_bytes=int(memory) if memory is not None else None,
        memory_is_estimate=len(ranks) > 1 if memory is not None else None,
        gpus=(state.gpus if state else layout.nodes * layout.gpus),
        gpu_efficiency=sum(busy) / len(busy) if busy else None,
        gpu_memory_used_bytes=int(gpu_memory) if gpu_memory is not None else None,
        started_at_s=started_s,
        ended_at_s=None if live else started_s + wall_s,
        source="ranks",
        live=live,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum; None when any part is unknown, because a sum of the rest would be too small."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
