"""What happened to a job: its status, the cause of its end, and Slurm's figures joined with the ranks'."""

from typing import Literal

import msgspec

from hpcdist.records.efficiency import Efficiency
from hpcdist.records.ranks import RankUsage

# The states of a run after which Slurm may have run the job again.
CONTINUED_STATES = frozenset({"REQUEUED", "PREEMPTED", "NODE_FAIL"})
# The states a job does not leave by itself (man squeue, JOB STATE CODES), and ours for a job that Slurm did not take or
# has lost.
ENDED_STATES = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LOST", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REFUSED", "REVOKED", "TIMEOUT"),
    }
)


def join_task(job_id: str | None, task: str | None) -> str | None:
    """Return the id of an array's task, `123_4`; of no task the job's own, and None of no job."""
    return f"{job_id}_{task}" if job_id and task else job_id


def split_task(job_id: str | None) -> tuple[str, str | None]:
    """Return the array's id and the task of `123_4`; of `123`, and of a local job, itself and None."""
    job, _, task = (job_id or "").partition("_")
    return job, task or None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a training is; rank 0 writes it about once a second as `progress.json`.

    Attributes:
        epoch: Current epoch, from 1.
        epochs: Epochs in all.
        step: Optimizer steps done.
        steps: Optimizer steps in all.
        loss: Last training loss.
        accuracy: Last validation accuracy, a fraction.
        images_per_s: Throughput over all ranks.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None = None
    accuracy: float | None = None
    images_per_s: float | None = None


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job is now.

    Attributes:
        job_id: Slurm job id (`123_4` for an array's task) or `local-N`; None before the job exists.
        run: Name of the run; None for a job that hpcdist did not submit.
        state: Slurm's word (`PENDING`, `RUNNING`, `COMPLETED`, ...); `REFUSED` when sbatch did not take it, `LOST`
            when the controller has forgotten it and accounting never learned of its end (what Slurm calls a runaway
            job), `UNKNOWN` when nobody tells.
        reason: Why it waits or ended, in Slurm's words.
        elapsed_s: Seconds since it started.
        nodes: Names of its nodes, in Slurm's short form.
        exit_code: Its exit status, 0 to 255; None while it runs or when a signal ended it.
        signal: Number of the signal that ended it.
        name: The job's name.
        layout: The layout's name.
    """

    job_id: str | None
    run: str | None = None
    state: str
    reason: str | None = None
    elapsed_s: float | None = None
    nodes: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    name: str | None = None
    layout: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job ended for good."""
        return self.state in ENDED_STATES


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a job, as accounting has it.

    Attributes:
        name: What follows the dot in its id: "batch", "extern" or a number.
        state: Slurm's word for how it ended.
        exit_code: Its exit status; None when a signal ended it.
        signal: Number of that signal.
    """

    name: str
    state: str
    exit_code: int | None = None
    signal: int | None = None


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler says of one attempt; None is "not said".

    Attributes:
        state: Slurm's word for where it is.
        exit_code: Its exit status; None when a signal ended it.
        signal: Number of that signal.
        reason: Why it waits or ended, in Slurm's words.
        cancelled_by: Who cancelled it.
        nodes: Its nodes, in Slurm's short form.
        submitted_at_s: Submission or requeueing, seconds since the epoch.
        started_at_s: Start, seconds since the epoch; None when it never started.
        ended_at_s: End, seconds since the epoch.
        steps: Its steps.
    """

    state: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    cancelled_by: str | None = None
    nodes: str | None = None
    submitted_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    steps: tuple[Step, ...] = ()


Kind = Literal[
    "bad-script",
    "cancelled",
    "completed",
    "cuda-out-of-memory",
    "full-disk",
    "hang",
    "killed",
    "lost",
    "lost-peer",
    "missing-data",
    "missing-module",
    "never-started",
    "node-failure",
    "out-of-memory",
    "preempted",
    "preflight",
    "requeued",
    "running",
    "stopped",
    "time-limit",
    "time-out",
    "unknown",
    "user-exception",
]


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why one attempt of a job ended as it did.

    Attributes:
        kind: What kind of end it is; stays the same between releases.
        sentence: The cause for a person.
        hint: What to do next; empty when there is nothing to say.
        evidence: What the cause rests on, a line each.
        rank: The rank to blame: the one that failed first, or that the others waited for; None when no rank is.
        host: Its host, or the node that failed.
        exit_code: Its exit status, else the job's; None when a signal ended it.
        signal: Number of that signal.
        log: Its log file; the batch script's when no rank is known.
        tail: The log's last lines.
    """

    kind: Kind
    sentence: str
    hint: str = ""
    evidence: tuple[str, ...] = ()
    rank: int | None = None
    host: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    log: str | None = None
    tail: tuple[str, ...] = ()


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier attempt of a job that was requeued.

    Attributes:
        state: Slurm's word for how it ended.
        cause: Why.
    """

    state: str
    cause: Cause


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What `hpcdist why` says of a job or array task.

    Attributes:
        job_id: Slurm job id (`123_4` for an array's task) or `local-N`; None of a job that was refused.
        run: Name of the run; None for a job that hpcdist did not submit.
        state: Slurm's word for where it is.
        cause: Why it ended so, of a requeued job the last attempt.
        earlier: The attempts before that one, oldest first.
    """

    job_id: str | None
    run: str | None
    state: str
    cause: Cause
    earlier: tuple[Attempt, ...] = ()


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


class AuditFinding(msgspec.Struct, frozen=True):
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
    findings: tuple[AuditFinding, ...] = ()


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
