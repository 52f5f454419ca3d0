"""What each rank measured of itself, and where the steps of a training go over all ranks."""

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from hpcdist.records.network import AllReduce, Fault, NodeFacts


class Straggler(msgspec.Struct, frozen=True, kw_only=True):
    """The slowest rank of a job.

    Attributes:
        rank: Its global rank.
        host: Its node.
        slowdown: Its own work per step (data, compute, other) over the median of the other ranks, 1 is none.
    """

    rank: int
    host: str
    slowdown: float


# Exit statuses with a meaning, named as in sysexits.h.
LOST_PEER_STATUS = 69  # EX_UNAVAILABLE: another rank is gone; this one is not to blame
HANG_STATUS = 70  # EX_SOFTWARE: no step for too long
BAD_NODE_STATUS = 71  # EX_OSERR: the preflight found a node that is not fit
STOPPED_STATUS = 75  # EX_TEMPFAIL: stopped as it was asked to, unfinished and saved

RESTART_LINE = "--- restart {} ---"
"""What a requeued job's rank prints before its program starts again, since it goes on in the same log."""


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
    """Return the sum; None when any part is unknown, because a sum of the rest would be too small."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


PARTS = ("data_s", "compute_s", "communication_s", "other_s")
"""The parts of a `StepSplit` that add up to its step."""


def mean_split(ranks: Sequence[RankUsage]) -> StepSplit | None:
    """Return the mean of the ranks' splits, its `steps` the fewest of any; None where no rank has one."""
    return _combine([split for _, split in _measured(ranks)], statistics.fmean)


def median_split(splits: Sequence[StepSplit]) -> StepSplit | None:
    """Return the median of each part over several jobs, its `steps` the fewest of any; None where no job has one."""
    return _combine(splits, statistics.median)


def _combine(splits: Sequence[StepSplit], middle: Callable[[Iterable[float]], float]) -> StepSplit | None:
    if not splits:
        return None
    parts = {name: middle(getattr(split, name) for split in splits) for name in (*PARTS, "step_s")}
    return StepSplit(steps=min(split.steps for split in splits), **parts)


def waiting_s(ranks: Sequence[RankUsage]) -> float | None:
    """Return the part of the mean exposed communication that is waiting for slower ranks, in seconds.

    The rank that comes last waits for nobody: what it spends is the all-reduce itself, what the others spend beyond
    that is waiting for it. None where fewer than two ranks have a split.
    """
    exposed_s = [split.communication_s for _, split in _measured(ranks)]
    return statistics.fmean(exposed_s) - min(exposed_s) if len(exposed_s) > 1 else None


def find_straggler(ranks: Sequence[RankUsage]) -> Straggler | None:
    """Return the rank with the most work of its own per step, by how much more than the median of the others.

    It is the slowest also where it is hardly slower: whether that matters is for the reader of `slowdown`. The rank
    itself is left out of the median: of two ranks the median of both would hide half of the difference. None where
    fewer than two ranks have a split.
    """
    measured = _measured(ranks)
    if len(measured) < 2:
        return None
    own_s = [split.data_s + split.compute_s + split.other_s for _, split in measured]
    slowest = own_s.index(max(own_s))
    others_s = statistics.median(own_s[:slowest] + own_s[slowest + 1 :])
    if not others_s:
        return None
    rank = measured[slowest][0]
    return Straggler(rank=rank.rank, host=rank.host, slowdown=own_s[slowest] / others_s)


def _measured(ranks: Sequence[RankUsage]) -> list[tuple[RankUsage, StepSplit]]:
    return [(rank, rank.training.split) for rank in ranks if rank.training and rank.training.split]
