"""Where a job is now, what its array tasks are called, and how far its training is. Pure values."""

import msgspec

# The states of a run after which Slurm may have run the job again.
CONTINUED_STATES = frozenset({"REQUEUED", "PREEMPTED", "NODE_FAIL"})
# The states a job does not leave by itself (man squeue, JOB STATE CODES), and ours for a job that Slurm did not take or
# has lost.
ENDED_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LOST",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REFUSED",
        "REVOKED",
        "TIMEOUT",
    }
)


def join_task(job_id: str | None, task: str | None) -> str | None:
    """The id of an array's task, `123_4`; of no task the job's own, and None of no job."""
    return f"{job_id}_{task}" if job_id and task else job_id


def split_task(job_id: str | None) -> tuple[str, str | None]:
    """The array's id and the task of `123_4`; of `123`, and of a local job, itself and None."""
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
