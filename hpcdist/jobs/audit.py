"""The layout auditor: what really ran, against what was asked for."""

import math
from collections.abc import Sequence

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Audit, AuditFinding
from hpcdist.records.ranks import RankUsage
from hpcdist.units import format_bytes

# Below these a share of CPU or GPU time is worth a word; centres' own limits (CPU not for GPU jobs).
CPU_SHARE = 0.8
GPU_SHARE = 0.5
# A GPU busy for less than a hundredth of the time was not used.
GPU_IDLE = 0.01
# How far a figure may lie off what the claimed ranks would give before it speaks against them.
_MEMORY_TOLERANCE = 0.25
_FIT_TOLERANCE = 0.15
_SPEEDUP_TOLERANCE = 0.1


def uses_gpus(efficiency: Efficiency, job: JobSpec | None) -> bool:
    """Whether a job computes on GPUs: it has some, and was not told to train on the CPUs."""
    return bool(efficiency.gpus) and not (job and not job.command and job.training.accelerator == "cpu")


def audit_job(efficiency: Efficiency | None, ranks: Sequence[RankUsage], job: JobSpec | None) -> Audit:
    """Say what really ran of a job: by its accounting, its ranks and what was requested, where each is known."""
    trainings = [rank.training for rank in ranks if rank.training]
    worlds = {training.world_size for training in trainings if training.world_size is not None}
    batches = {training.global_batch_size for training in trainings if training.global_batch_size is not None}
    measured = [rank.gpu_utilization for rank in ranks if rank.gpu_utilization is not None]
    cores = efficiency.cores if efficiency else None
    busy = None
    if efficiency and efficiency.cpu_time_s is not None and efficiency.wall_time_s:
        busy = efficiency.cpu_time_s / efficiency.wall_time_s
    audit = Audit(
        ranks_asked=job.layout.world_size if job else None,
        ranks=len(ranks) or None,
        world_size=worlds.pop() if len(worlds) == 1 else None,
        gpus=efficiency.gpus if efficiency else None,
        gpus_used=sum(share >= GPU_IDLE for share in measured) if ranks and len(measured) == len(ranks) else None,
        cores=cores,
        cores_busy=busy,
        global_batch_size=batches.pop() if len(batches) == 1 else None,
    )
    found = [_fewer_ranks(audit, efficiency), _alone(audit), _same_work(audit, ranks)]
    found += [_idle_gpus(audit), _waiting_gpus(measured)]
    if efficiency:
        found += [_unused_gpus(efficiency, job), _idle_cores(efficiency, audit, job)]
    return msgspec.structs.replace(audit, findings=tuple(finding for finding in found if finding))


def _fewer_ranks(audit: Audit, efficiency: Efficiency | None) -> AuditFinding | None:
    """A job that failed may lack ranks for a reason that is told elsewhere."""
    requested, ran = audit.ranks_asked, audit.ranks
    if efficiency is None or efficiency.state != "COMPLETED" or requested is None or ran is None or ran >= requested:
        return None
    evidence: dict[str, float | str] = {"ranks": ran, "ranks_asked": requested}
    return AuditFinding("fewer-ranks", f"{ran} of {requested} ranks ran", evidence)


def _alone(audit: Audit) -> AuditFinding | None:
    if audit.world_size != 1 or audit.ranks is None or audit.ranks < 2:
        return None
    sentence = f"each of the {audit.ranks} ranks trained alone: every one says its world has one rank"
    return AuditFinding("alone", sentence, {"ranks": audit.ranks, "world_size": 1})


def _same_work(audit: Audit, ranks: Sequence[RankUsage]) -> AuditFinding | None:
    """Ranks that share a batch compute steps x global batch samples between them, less in each epoch's last batch."""
    trainings = [rank.training for rank in ranks if rank.training]
    samples = [one.samples for one in trainings if one.samples is not None]
    steps = max((one.steps or 0 for one in trainings), default=0)
    if audit.world_size in (None, 1) or len(samples) != len(ranks) or not steps or not audit.global_batch_size:
        return None
    expected = steps * audit.global_batch_size
    if sum(samples) <= 1.5 * expected:
        return None
    rest = f"{sum(samples):,} samples where {expected:,} would do: each trained on the same data"
    evidence: dict[str, float | str] = {"samples": sum(samples), "samples_expected": expected, "ranks": len(ranks)}
    return AuditFinding("same-work", f"the {len(ranks)} ranks computed {rest}", evidence)


def _idle_gpus(audit: Audit) -> AuditFinding | None:
    if not audit.gpus or audit.gpus_used is None or audit.gpus_used >= audit.gpus:
        return None
    evidence: dict[str, float | str] = {"gpus": audit.gpus, "gpus_used": audit.gpus_used}
    return AuditFinding("idle-gpus", f"{audit.gpus_used} of {audit.gpus} GPUs were used", evidence)


def _waiting_gpus(measured: Sequence[float]) -> AuditFinding | None:
    busy = [share for share in measured if share >= GPU_IDLE]
    mean = sum(busy) / len(busy) if busy else None
    if mean is None or mean >= GPU_SHARE:
        return None
    sentence = f"the GPUs were busy {mean:.0%} of the time: they wait for data, for each other or for small batches"
    return AuditFinding("waiting-gpus", sentence, {"gpu_utilization": mean})


def _unused_gpus(efficiency: Efficiency, job: JobSpec | None) -> AuditFinding | None:
    if not efficiency.gpus or uses_gpus(efficiency, job):
        return None
    sentence = f"{efficiency.gpus} GPU(s) were allocated, and the training was told to use the CPUs"
    return AuditFinding("unused-gpus", sentence, {"gpus": efficiency.gpus, "accelerator": "cpu"})


def _idle_cores(efficiency: Efficiency, audit: Audit, job: JobSpec | None) -> AuditFinding | None:
    """Cores nobody asked for, in any job; cores that were asked for and idle, in a CPU job only."""
    cores, busy = audit.cores, audit.cores_busy
    if cores is None or busy is None or efficiency.live:
        return None
    evidence: dict[str, float | str] = {"cores": cores, "cores_busy": round(busy, 3)}
    requested = job.layout.world_size * job.layout.cpus_per_task if job else None
    # Twice as many: Slurm counts both threads of a core where it hands out whole cores.
    if requested is not None and cores > 2 * requested:
        sentence = f"{cores} cores were allocated where {requested} were asked for; {busy:.1f} were busy"
        return AuditFinding("idle-cores", sentence, evidence | {"cores_asked": requested})
    tasks = audit.ranks_asked or efficiency.nodes or 1
    # A task can't have less than one CPU, nor part of another.
    fewest = tasks * math.ceil(busy / tasks)
    if uses_gpus(efficiency, job) or busy >= CPU_SHARE * cores or fewest >= cores:
        return None
    return AuditFinding("idle-cores", f"{busy:.1f} of {cores} cores were busy", evidence)


class Claim(msgspec.Struct, frozen=True):
    """A run of a training in one of several layouts, as it is told.

    Attributes:
        name: How to call it.
        ranks: Ranks (GPUs) it is said to have had.
        wall_time_s: Seconds from start to end.
        memory_used_bytes: Peak memory of the whole job; None when unknown.
        cores: CPUs allocated; None when unknown.
    """

    name: str
    ranks: int
    wall_time_s: float
    memory_used_bytes: int | None = None
    cores: int | None = None


def find_inconsistent(claims: Sequence[Claim]) -> list[AuditFinding]:
    """The runs of one training whose own figures do not fit the number of ranks they are said to have had.

    The run with the fewest ranks is the measure. A run is named when its memory is that of another number of ranks
    *and* its speed-up fits that number: more than linear in the claimed ranks, or impossible to tell from fewer.
    Memory alone may change with the batch, and speed-up alone with anything.
    """
    if len(claims) < 2:
        return []
    measure = min(claims, key=lambda claim: claim.ranks)
    found = [_inconsistency(measure, claim) for claim in claims if claim is not measure]
    return [finding for finding in found if finding]


def _inconsistency(measure: Claim, claim: Claim) -> AuditFinding | None:
    if not measure.memory_used_bytes or not claim.memory_used_bytes or not claim.wall_time_s:
        return None
    fits = claim.memory_used_bytes / (measure.memory_used_bytes / measure.ranks)
    ranks = max(1, round(fits))
    if abs(fits - claim.ranks) < _MEMORY_TOLERANCE * claim.ranks or abs(fits - ranks) > _FIT_TOLERANCE * ranks:
        return None
    speedup = measure.ranks * measure.wall_time_s / claim.wall_time_s
    limit = (1 + _SPEEDUP_TOLERANCE) * min(claim.ranks, ranks)
    # More ranks than claimed: faster than the claimed ranks could be. Fewer: no faster than those few.
    if (speedup <= limit) == (ranks > claim.ranks) or speedup > (1 + _SPEEDUP_TOLERANCE) * ranks:
        return None
    cores_per_rank = measure.cores / measure.ranks if measure.cores else None
    cores = ""
    if claim.cores and cores_per_rank and round(claim.cores / cores_per_rank) == ranks:
        cores = f"; its {claim.cores} cores are those of {ranks} too"
    return AuditFinding(
        "inconsistent",
        f"{claim.name} is said to have had {claim.ranks} rank(s), but its figures fit {ranks}: "
        f"{format_bytes(claim.memory_used_bytes)} is the memory of {fits:.1f} ranks, "
        f"and it was {speedup:.2f} times as fast as one rank{cores}",
        {
            "ranks_claimed": claim.ranks,
            "ranks_by_memory": round(fits, 2),
            "speedup": round(speedup, 2),
            "efficiency_if_claimed": round(speedup / claim.ranks, 2),
            "efficiency_if_fitting": round(speedup / ranks, 2),
        },
    )
