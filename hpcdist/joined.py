"""The joined record: what happened to a job by Slurm's figures and the ranks' own, on one clock. Pure values."""

from typing import Literal

import msgspec

from hpcdist.cause import Cause
from hpcdist.job_status import JobStatus
from hpcdist.record import Efficiency, RankUsage


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job's time went, on one clock; None is a part that nobody measured.

    The parts, without `starting_s`, which is the sum of six of them, add up to the time from submission to end.
    Slurm's times are whole seconds, so that sum can be a second off.

    Attributes:
        queued_s: Seconds from submission to start, the waits before a requeued job's further runs included.
        lost_s: Seconds of the runs before the last one of a requeued job.
        starting_s: Seconds from the allocation through the first optimizer step.
        launch_s: Seconds from the allocation to the rank's program.
        imports_s: Seconds until the program had loaded what it needs.
        process_group_s: Seconds until all ranks had met.
        preflight_s: Seconds in which the nodes were checked.
        data_s: Seconds in which the data was read.
        first_step_s: Seconds of the first optimizer step.
        steady_s: Seconds of training after it: the productive part.
        validation_s: Seconds of testing.
        checkpoint_s: Seconds in which checkpoints were written.
        other_s: Seconds of the training that belong to none of these.
        unsplit_s: Seconds between start and end of which no program said what it did.
        shutdown_s: Seconds from the end of the training to the job's end.
        wall_time_s: Seconds from the last run's start to its end.
        total_s: Seconds from the first submission to the end.
        ettr: Effective training time ratio, `steady_s / total_s`, a fraction (arXiv 2410.21680).
    """

    queued_s: float | None = None
    lost_s: float | None = None
    starting_s: float | None = None
    launch_s: float | None = None
    imports_s: float | None = None
    process_group_s: float | None = None
    preflight_s: float | None = None
    data_s: float | None = None
    first_step_s: float | None = None
    steady_s: float | None = None
    validation_s: float | None = None
    checkpoint_s: float | None = None
    other_s: float | None = None
    unsplit_s: float | None = None
    shutdown_s: float | None = None
    wall_time_s: float | None = None
    total_s: float | None = None
    ettr: float | None = None


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that Slurm and the ranks have differently.

    Attributes:
        figure: Which one; its unit is in the name.
        slurm: What Slurm accounted.
        ranks: What the ranks measured, summed over them.
        reason: What most likely makes the difference.
    """

    figure: Literal["cpu_time_s", "memory_used_bytes"]
    slurm: float
    ranks: float
    reason: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something about a job that its owner should know.

    Attributes:
        code: What kind it is; stays the same between releases.
        sentence: What was found, for a person.
        evidence: The figures it rests on, with their unit in the name.
    """

    code: str
    sentence: str
    evidence: dict[str, float | str] = {}


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What really ran, against what was asked for; None is unknown.

    Attributes:
        ranks_asked: Ranks of the layout.
        ranks: Ranks that reported.
        world_size: Ranks that trained together, as the training says.
        gpus: GPUs allocated.
        gpus_used: GPUs that were busy for at least a hundredth of the time; None where nobody measured.
        cores: CPUs allocated.
        cores_busy: Mean number of CPUs in use.
        global_batch_size: Samples per optimizer step over all ranks.
        findings: What is not as it should be.
    """

    ranks_asked: int | None = None
    ranks: int | None = None
    world_size: int | None = None
    gpus: int | None = None
    gpus_used: int | None = None
    cores: int | None = None
    cores_busy: float | None = None
    global_batch_size: int | None = None
    findings: tuple[Finding, ...] = ()


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`record.json`: what happened to a job.

    Attributes:
        status: Where it was when this was written.
        efficiency: Its accounting; None when there is none.
        ranks: What each rank measured of itself.
        failure: What ended it badly, if it ended badly.
        timeline: Where its time went; None when there is no accounting.
        disagreements: Figures on which Slurm and the ranks differ by more than a tenth.
        audit: What really ran.
    """

    status: JobStatus
    efficiency: Efficiency | None = None
    ranks: list[RankUsage] = []
    failure: Cause | None = None
    timeline: Timeline | None = None
    disagreements: tuple[Disagreement, ...] = ()
    audit: Audit | None = None
