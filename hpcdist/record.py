"""What happened to a job: accounting figures, and what each rank measured of itself. Pure values."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from hpcdist.probe import AllReduce, Fault, NodeFacts

Source = Literal["seff", "sacct", "sstat", "squeue", "ranks"]
Gathered = Literal["sampled", "cgroup-peak", "nothing"]

# Exit statuses with a meaning, named as in sysexits.h.
LOST_PEER_STATUS = 69  # EX_UNAVAILABLE: another rank is gone; this one is not to blame
HANG_STATUS = 70  # EX_SOFTWARE: no step for too long
BAD_NODE_STATUS = 71  # EX_OSERR: the preflight found a node that is not fit
STOPPED_STATUS = 75  # EX_TEMPFAIL: stopped as it was asked to, unfinished and saved

RESTART_LINE = "--- restart {} ---"
"""What a requeued job's rank prints before its program starts again, since it goes on in the same log."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of number a figure is.

    Attributes:
        kind: "total" counts all there was; "mean" is over the job's time; "peak" is the highest there was (of several
            tasks the sum of each one's); "estimate" bounds that peak from above.
        gathered: By samples, or as the kernel's own peak of a cgroup, file cache included; None where nobody says.
        every_s: Seconds between samples, as the cluster is set up.
        source: Which program it came from.
    """

    kind: Literal["total", "mean", "peak", "estimate"]
    gathered: Gathered | None = None
    every_s: float | None = None
    source: Source


class Gathering(msgspec.Struct, frozen=True, kw_only=True):
    """How a cluster gathers the memory its jobs use.

    Attributes:
        gathered: As in `Kind`; "nothing" where gathering is switched off.
        every_s: Seconds between samples; None without samples at intervals.
        slurm_version: The cluster's Slurm.
    """

    gathered: Gathered | None = None
    every_s: float | None = None
    slurm_version: str | None = None


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """A job's accounting as `seff` or `sacct` has it. None is "not printed, not gathered, or impossible".

    Attributes:
        job_id: Slurm job id (`123`, `123_4` for an array task is split into `array_job_id`), or `local-N`.
        array_job_id: `<array id>_<task>` when the job is an array's task; `<array id>_[2-5]` for tasks still pending.
        het_job_id: `<job id>+<component>` when the job is a component of a heterogeneous job.
        cluster: Cluster name.
        user: Owner.
        group: Owner's group.
        state: Slurm's state word (`COMPLETED`, `TIMEOUT`, ...).
        exit_code: Exit status of the job, 0 to 255.
        nodes: Nodes allocated.
        cores: CPUs allocated over all nodes.
        cores_per_node: As printed; seff truncates it.
        cpu_time_s: User and system time of all processes, in seconds.
        cpu_efficiency: `cpu_time_s / core_walltime_s`, a fraction.
        core_walltime_s: `cores * wall_time_s`, in seconds.
        wall_time_s: From start to end, in seconds.
        memory_used_bytes: Peak memory summed over the tasks of the largest step, in bytes.
        memory_is_estimate: True where that sum is the largest task times the number of tasks.
        memory_efficiency: `memory_used_bytes / memory_requested_bytes`, a fraction; may exceed 1.
        memory_requested_bytes: Memory of the whole job, in bytes.
        memory_per: Whether memory was asked per "node" or per "core".
        gpus: GPUs allocated over all nodes.
        gpu_efficiency: Mean GPU utilisation over the job, a fraction.
        gpu_memory_used_bytes: Peak GPU memory, in bytes.
        time_limit_s: Time limit, in seconds.
        name: Job name.
        partition: Partition.
        node_list: Nodes in Slurm's bracket form (`n[1-2]`).
        submitted_at_s: Submission (of a requeued run: its requeueing), seconds since the epoch.
        started_at_s: Start, seconds since the epoch.
        ended_at_s: End, seconds since the epoch.
        earlier_runs: The runs before this one of a job that was requeued, oldest first.
        source: Which program the figures came from; "squeue" where there are none yet.
        kinds: What kind of number a measured figure is, by its name here; an efficiency is of the kind of its figure.
        gathering: How the cluster gathers usage, where it was asked.
        live: True while the job still runs: the figures are those of now.
        extra: Printed lines that are not a field here, by their printed name.
    """

    job_id: str
    array_job_id: str | None = None
    het_job_id: str | None = None
    cluster: str | None = None
    user: str | None = None
    group: str | None = None
    state: str | None = None
    exit_code: int | None = None
    nodes: int | None = None
    cores: int | None = None
    cores_per_node: int | None = None
    cpu_time_s: float | None = None
    cpu_efficiency: float | None = None
    core_walltime_s: float | None = None
    wall_time_s: float | None = None
    memory_used_bytes: int | None = None
    memory_is_estimate: bool | None = None
    memory_efficiency: float | None = None
    memory_requested_bytes: int | None = None
    memory_per: Literal["node", "core"] | None = None
    gpus: int | None = None
    gpu_efficiency: float | None = None
    gpu_memory_used_bytes: int | None = None
    time_limit_s: float | None = None
    name: str | None = None
    partition: str | None = None
    node_list: str | None = None
    submitted_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    earlier_runs: tuple["Efficiency", ...] = ()
    source: Source = "seff"
    kinds: dict[str, Kind] = {}
    gathering: Gathering | None = None
    live: bool = False
    extra: dict[str, str] = {}


class StepSplit(msgspec.Struct, frozen=True, kw_only=True):
    """Where a steady-state optimizer step goes, means in seconds; the four parts add up to the step within 5 %.

    Attributes:
        steps: Steps measured.
        data_s: Waiting for the batch.
        compute_s: Forward and backward pass.
        communication_s: Exposed communication: what the all-reduce adds after the backward pass's own work, waiting
            for slower ranks included.
        other_s: Optimizer, logging and the framework.
        step_s: The whole step, measured apart from its parts.
    """

    steps: int
    data_s: float
    compute_s: float
    communication_s: float
    other_s: float
    step_s: float


class TestResult(msgspec.Struct, frozen=True, kw_only=True):
    """A test in the middle of a training.

    Attributes:
        step: Optimizer steps done.
        accuracy: Over the whole test set, a fraction.
        at_s: When it was known, seconds since the epoch.
    """

    step: int
    accuracy: float
    at_s: float


class TrainingMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank's training measured; the built-in training writes it, any program may.

    Attributes:
        finished: True once all epochs (or `max_steps`) were trained.
        accuracy: Test accuracy of the whole test set, a fraction, the same on every rank.
        loss: Test loss.
        epochs: Epochs trained.
        steps: Optimizer steps done.
        samples: Training samples this rank computed.
        global_batch_size: Samples per optimizer step over all ranks.
        world_size: Ranks in the process group.
        images_per_s: Steady-state training throughput over all ranks (first step excluded).
        step_time_s: Median steady-state step, in seconds.
        steady_at_s: When the steady state began, seconds since the epoch.
        phases_s: Seconds in each phase: imports, process_group, preflight, data, first_step, steady, validation,
            checkpoint, and other (set-up and tear-down); they add up to the process's life.
        clock_skew_s: Seconds between the first and the last of the ranks' clocks before the training.
        probe: All-reduces of several sizes before the training.
        fault: What the preflight found, if that ended the training.
        split: Where this rank's steps go; None before there were enough.
        bytes_per_step: Bytes that this rank brings to the all-reduces of a step, or sends to the parameter server and
            gets back; 0 for a single rank.
        tests: All tests so far, oldest first; those before the checkpoint that it went on from included.
        node: What the rank found on its node, where only that was asked (`--preflight-only`).
        model: Name of the network.
        parameters: Its trained numbers.
        flops_per_image: Of its forward pass, multiplications and additions counted each.
        target_accuracy: Test accuracy at which to stop, a fraction.
        time_to_target_s: From this process's start until a test reached it, in seconds; None when none did.
    """

    finished: bool = False
    accuracy: float | None = None
    loss: float | None = None
    epochs: int | None = None
    steps: int | None = None
    samples: int | None = None
    global_batch_size: int | None = None
    world_size: int | None = None
    images_per_s: float | None = None
    step_time_s: float | None = None
    steady_at_s: float | None = None
    phases_s: dict[str, float] = {}
    clock_skew_s: float | None = None
    probe: tuple[AllReduce, ...] = ()
    fault: Fault | None = None
    split: StepSplit | None = None
    bytes_per_step: int | None = None
    tests: tuple[TestResult, ...] = ()
    node: NodeFacts | None = None
    model: str | None = None
    parameters: int | None = None
    flops_per_image: int | None = None
    target_accuracy: float | None = None
    time_to_target_s: float | None = None


class RankUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank used, measured from inside the job.

    Attributes:
        rank: Global rank.
        local_rank: Rank within its node.
        node_rank: Index of its node.
        world_size: Ranks in all.
        host: Host name.
        job_id: Slurm job id (`123_4` for an array task), or `local-N`; None outside a job.
        cluster: Slurm's cluster name, or None.
        restart_count: How often Slurm requeued the job before.
        pid: Process id of the rank's program.
        started_at_s: Start, seconds since the epoch.
        ended_at_s: End, seconds since the epoch; None while it runs or when it was killed with its watcher.
        exit_code: Exit status; None when a signal ended it, or while it runs.
        signal: Number of the signal that ended it.
        cpu_time_s: User and system seconds of the program and its children.
        children_cpu_time_s: Those of its children alone, such as data loaders, sampled: a child's last second may lack.
        memory_peak_bytes: Peak of the resident memory summed over the program and its children, sampled.
        gpu_utilization: Mean utilisation of the rank's GPU, a fraction, sampled; None without a GPU.
        gpu_memory_peak_bytes: Peak memory in use on that GPU, in bytes.
        gpu_memory_total_bytes: What that GPU has.
        node_memory_bytes: Memory of its node, or of the container that it ran in there.
        training: What the program said of its training.
    """

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    host: str
    job_id: str | None = None
    cluster: str | None = None
    restart_count: int = 0
    pid: int | None = None
    started_at_s: float
    ended_at_s: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    cpu_time_s: float | None = None
    children_cpu_time_s: float | None = None
    memory_peak_bytes: int | None = None
    gpu_utilization: float | None = None
    gpu_memory_peak_bytes: int | None = None
    gpu_memory_total_bytes: int | None = None
    node_memory_bytes: int | None = None
    training: TrainingMetrics | None = None


def sum_known(values: Sequence[float | None]) -> float | None:
    """The sum; None when any part is unknown, because a sum of the rest would be too small."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
