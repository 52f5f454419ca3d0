"""Find the batch size and worker count of a layout by short trainings: a study that grows as it goes.

Throughput grows with the batch until the processors are busy, so batches are doubled until that no longer pays.
"""

import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from hpcdist.config.job import LAYOUT_KEYS, Backend, JobSpec, Layout, build_job, merge_options
from hpcdist.config.project import Project
from hpcdist.datasets import is_folder
from hpcdist.errors import UsageError
from hpcdist.jobs.status import pause_s
from hpcdist.records.job import JobRecord
from hpcdist.records.ranks import RankUsage, mean_split
from hpcdist.records.usage_curve import UsageCurve
from hpcdist.studies.run import Watch, cancel_study, run_study
from hpcdist.studies.state import StudyState, find_study
from hpcdist.studies.study import Limits, Study
from hpcdist.studies.trials import find_runs, query_trials, read_records
from hpcdist.units import format_percent, parse_slurm_memory

# A doubling that gains less is not worth the accuracy that it may cost.
GAIN = 0.05
MOST_MEMORY = 0.8
# Share of a step spent waiting for data from which more workers are tried.
STARVED = 0.1
NOT_PROMISED = (
    "Not promised: accuracy. A larger batch takes fewer steps in as many epochs and may learn less in them; the"
    " learning rate is left as it is (--scale-lr scales it). Each setting was measured once, for seconds, without"
    " tests and checkpoints: figures a few percent apart are the same."
)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, and what a short training with it measured; None is unknown.

    Attributes:
        batch_size: Samples per step over all ranks.
        workers: Processes of each rank that decode the images; None is as many as it takes by itself.
        run: The run that measured it.
        images_per_s: Throughput over all ranks.
        utilization: How busy the processors were meanwhile, the mean over ranks, a fraction.
        processor: Which processors that is of: GPUs where the ranks have any, else the CPUs asked for.
        is_crowded: Whether the node's CPUs were all busy while the ranks had not got theirs.
        memory_share: Peak memory over what there is, a fraction: of the fullest node, or GPU where that is fuller.
        data_share: Share of a step spent waiting for the data.
        failure: Why it measured nothing, one sentence.
        out_of_memory: Whether it was too large.
    """

    batch_size: int
    workers: int | None = None
    run: str | None = None
    images_per_s: float | None = None
    utilization: float | None = None
    processor: Literal["GPU", "CPU"] = "CPU"
    is_crowded: bool = False
    memory_share: float | None = None
    data_share: float | None = None
    failure: str | None = None
    out_of_memory: bool = False

    @property
    def fits(self) -> bool:
        """Whether it ran with memory to spare."""
        return self.images_per_s is not None and (self.memory_share is None or self.memory_share <= MOST_MEMORY)


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for.

    Attributes:
        start: Batch size to begin with.
        least, most: Batch sizes at the ends; `most` None is no end.
        multiple: What batch sizes are multiples of: the ranks, where the batch is given per rank.
        at_once: How many batch sizes are tried before the next look.
        target_utilization: How busy the processors are to be, a fraction; None looks for the best throughput.
    """

    start: int
    least: int = 1
    most: int | None = None
    multiple: int = 1
    at_once: int = 1
    target_utilization: float | None = None


def next_batches(search: Search, attempts: Sequence[Measurement]) -> tuple[int, ...]:
    """The batch sizes to try next; empty when enough is known."""
    tried = sorted(attempts, key=lambda one: one.batch_size)
    if not tried:
        return _doublings(search.start, search)
    if not tried[0].fits:
        half = tried[0].batch_size // 2 // search.multiple * search.multiple
        # What fails for another reason than memory fails with a smaller batch, too.
        is_too_large = tried[0].out_of_memory or tried[0].failure is None
        can_fit = (_least_memory(tried) or 0.0) <= MOST_MEMORY
        return (half,) if is_too_large and can_fit and half >= search.least else ()
    for before, one in zip([None, *tried], tried, strict=False):
        if not one.fits or _reaches(search, one) or (before and _gain(before, one) < GAIN):
            return ()
    return _doublings(2 * tried[-1].batch_size, search)


def _least_memory(tried: Sequence[Measurement]) -> float | None:
    """What would be taken without a batch: on a line through the two smallest ones; None where it can't be told."""
    if len(tried) < 2 or tried[0].memory_share is None or tried[1].memory_share is None:
        return None
    per_sample = (tried[1].memory_share - tried[0].memory_share) / (tried[1].batch_size - tried[0].batch_size)
    return tried[0].memory_share - max(0.0, per_sample) * tried[0].batch_size


def _doublings(first: int, search: Search) -> tuple[int, ...]:
    sizes = [first * 2**power for power in range(search.at_once)]
    return tuple(size for size in sizes if search.most is None or size <= search.most)


def _gain(before: Measurement, one: Measurement) -> float:
    if not before.images_per_s or one.images_per_s is None:
        return 0.0
    return one.images_per_s / before.images_per_s - 1


def _reaches(search: Search, one: Measurement) -> bool:
    target = search.target_utilization
    return target is not None and one.utilization is not None and one.utilization >= target


def choose_batch(search: Search, attempts: Sequence[Measurement]) -> Measurement | None:
    """The smallest batch that reaches the target, else the smallest one about as fast as the fastest.

    None where nothing ran with memory to spare.
    """
    fitting = sorted((one for one in attempts if one.fits), key=lambda one: one.batch_size)
    reaching = [one for one in fitting if _reaches(search, one)]
    return reaching[0] if reaching else _first_of_the_fastest(fitting)


def _first_of_the_fastest(attempts: Sequence[Measurement]) -> Measurement | None:
    fastest = max((one.images_per_s or 0.0 for one in attempts), default=0.0)
    return next((one for one in attempts if (one.images_per_s or 0.0) * (1 + GAIN) > fastest), None)


def next_workers(
    chosen: Measurement, attempts: Sequence[Measurement], cpus: int, *, has_workers: bool
) -> tuple[int, ...]:
    """List the numbers of workers to try with a batch: none, 1, 2, 4 and on to the rank's CPUs; empty if none can help.

    Where the chosen batch had too few steps to tell, what the other attempts waited counts.
    """
    told = [one.data_share for one in ([chosen] if chosen.data_share is not None else attempts)]
    if not has_workers or max((share for share in told if share is not None), default=0.0) <= STARVED:
        return ()
    return (0, *(2**power for power in range(16) if 2**power <= max(4, cpus)))


def choose_workers(chosen: Measurement, attempts: Sequence[Measurement]) -> Measurement:
    """The fewest workers about as fast as the fastest; the batch as it was measured first where none gains."""
    fitting = sorted((one for one in attempts if one.fits), key=lambda one: one.workers or 0)
    best = _first_of_the_fastest(fitting)
    return best if best and _gain(chosen, best) >= GAIN else chosen


def explain(
    search: Search, attempts: Sequence[Measurement], chosen: Measurement | None, *, has_workers: bool
) -> list[str]:
    """Why that one, and where the search ended; one sentence each."""
    tried = sorted((one for one in attempts if one.workers is None), key=lambda one: one.batch_size)
    if chosen is None:
        return _explain_none(tried)
    speed = f"{chosen.images_per_s:,.0f} images/s"
    busy = "" if chosen.utilization is None else f", {chosen.processor}s {_percent(chosen.utilization)} busy"
    said = [f"Batch {chosen.batch_size}: {speed}{busy}."]
    target = search.target_utilization
    if target is not None:
        reached = _reaches(search, chosen)
        said.append(
            f"It is the smallest that keeps the {chosen.processor}s {_percent(target)} busy."
            if reached
            else f"None keeps the {chosen.processor}s {_percent(target)} busy; this is the fastest."
        )
    larger = next((one for one in tried if one.batch_size > chosen.batch_size), None)
    if larger is not None and not (target is not None and _reaches(search, chosen)):
        said.append(_describe_larger(chosen, larger))
    if chosen.workers is not None:
        said.append(f"Workers {chosen.workers}: waiting for data took {_percent(chosen.data_share)} of a step.")
    elif has_workers and chosen.data_share is not None and chosen.data_share > STARVED:
        said.append(f"The data take {_percent(chosen.data_share)} of a step, and no number of workers gains 5 %.")
    if crowded := [one.batch_size for one in tried if one.is_crowded]:
        told = ", ".join(map(str, crowded))
        said.append(f"While {told} ran, other programs took the node's CPUs: these speeds can't be compared.")
    return said


def _explain_none(tried: Sequence[Measurement]) -> list[str]:
    reasons = [one.failure or f"{_percent(one.memory_share)} of the memory" for one in tried]
    said = [f"No batch size ran with memory to spare: {'; '.join(dict.fromkeys(reasons))}."]
    least = _least_memory(tried)
    if least is not None and least > MOST_MEMORY:
        limit = _percent(MOST_MEMORY)
        said.append(f"Without any batch it would take {_percent(least)} of it, the limit being {limit}.")
        if tried[0].processor == "CPU":
            more = math.ceil(10 * (tried[0].memory_share or 0.0) / MOST_MEMORY) / 10
            said.append(f"Ask for at least {more:.1f} times the memory (--mem) and tune again.")
    return said


def _describe_larger(chosen: Measurement, larger: Measurement) -> str:
    if larger.out_of_memory:
        return f"Batch {larger.batch_size} ran out of memory."
    if larger.failure:
        return f"Batch {larger.batch_size} failed: {larger.failure}."
    if not larger.fits:
        return f"Batch {larger.batch_size} took {_percent(larger.memory_share)} of the memory, the limit being 80 %."
    if _gain(chosen, larger) < 0:
        return f"Batch {larger.batch_size} is {-100 * _gain(chosen, larger):.1f} % slower."
    return f"Batch {larger.batch_size} gains {100 * _gain(chosen, larger):+.1f} %, under the 5 % that is worth it."


def _percent(share: float | None) -> str:
    return "an unknown part" if share is None else format_percent(share)


# Above the one a node has nothing left to give; below the other a rank waits for CPUs.
_FULL, _SERVED = 0.9, 0.8
_TOO_LARGE = frozenset({"cuda-out-of-memory", "out-of-memory"})


def build_attempt(
    layout: Layout,
    record: JobRecord | None,
    curves: Sequence[UsageCurve],
    *,
    batch_size: int,
    workers: int | None = None,
    run: str | None = None,
) -> Measurement:
    """Return the measurement of one job, by its record (None of one never sent) and what its ranks used over time."""
    setting = Measurement(batch_size=batch_size, workers=workers, run=run)
    if record is None:
        return msgspec.structs.replace(setting, failure="it was not submitted")
    if record.status.state != "COMPLETED":
        cause = record.failure
        return msgspec.structs.replace(
            setting,
            failure=cause.sentence if cause else f"its job is {record.status.state}",
            out_of_memory=cause is not None and cause.kind in _TOO_LARGE,
        )
    split = mean_split(record.ranks)
    busy = [_find_busy(layout, rank, curves) for rank in record.ranks] or [_UNKNOWN]
    on_gpu, on_cpu, on_node = map(_mean, zip(*busy, strict=True))
    speeds = [rank.training.images_per_s for rank in record.ranks if rank.training]
    speed = next((one for one in speeds if one is not None), None)
    return msgspec.structs.replace(
        setting,
        images_per_s=speed,
        utilization=on_cpu if on_gpu is None else on_gpu,
        processor="CPU" if on_gpu is None else "GPU",
        is_crowded=on_cpu is not None and on_node is not None and on_node > _FULL and on_cpu < _SERVED,
        memory_share=find_memory_share(layout, record),
        data_share=split.data_s / split.step_s if split else None,
        failure=None if speed else "it ended before its second step",
    )


_Busy = tuple[float | None, float | None, float | None]
_UNKNOWN: _Busy = (None, None, None)


def _find_busy(layout: Layout, rank: RankUsage, curves: Sequence[UsageCurve]) -> _Busy:
    """How busy a rank's GPU, its CPUs and its whole node were in the steady state, fractions; None is unknown."""
    curve = next((one for one in curves if one.rank == rank.rank), None)
    if curve is None or rank.training is None or rank.training.steady_at_s is None:
        return _UNKNOWN
    begin_s = rank.training.steady_at_s - curve.started_at_s
    end_s = begin_s + rank.training.phases_s.get("steady", 0.0)
    figures = ("gpu_utilization", "cpu_cores", "node_cpu_utilization")
    gpu, cores, node = (curve.mean(name, begin_s, end_s) for name in figures)
    return gpu, None if cores is None else cores / layout.cpus_per_task, node


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def find_memory_share(layout: Layout, record: JobRecord) -> float | None:
    """Peak memory over what was asked for, of the fullest node; or that of the fullest GPU where it is larger.

    What was not asked for is what the cluster gave, else what the node has.
    """
    shares = []
    hosts: dict[str, list[RankUsage]] = {}
    for rank in record.ranks:
        hosts.setdefault(rank.host, []).append(rank)
        if rank.gpu_memory_peak_bytes is not None and rank.gpu_memory_total_bytes:
            shares.append(rank.gpu_memory_peak_bytes / rank.gpu_memory_total_bytes)
    for on_host in hosts.values():
        room = _find_room(layout, record, on_host)
        used = [rank.memory_peak_bytes for rank in on_host]
        if room and None not in used:
            shares.append(sum(one for one in used if one is not None) / room)
    return max(shares, default=None)


def _find_room(layout: Layout, record: JobRecord, on_host: Sequence[RankUsage]) -> float | None:
    """Memory that the ranks of a host may use together, in bytes."""
    nodes_there = len({rank.node_rank for rank in on_host})  # without Slurm one machine is all nodes
    if layout.mem is not None and parse_slurm_memory(layout.mem):
        return parse_slurm_memory(layout.mem) * nodes_there
    if layout.mem_per_cpu is not None and parse_slurm_memory(layout.mem_per_cpu):
        return parse_slurm_memory(layout.mem_per_cpu) * layout.cpus_per_task * len(on_host)
    asked = record.efficiency.memory_requested_bytes if record.efficiency else None
    if asked:
        return asked / layout.nodes * nodes_there
    return next((rank.node_memory_bytes for rank in on_host if rank.node_memory_bytes), None)


POLL_INTERVAL_S = 2.0
# Together in the queue, since each wait there may be long.
AT_ONCE_ON_SLURM = 4
# Start-up on a slow disk, and the trial; a short limit starts sooner.
TIME_LIMIT = "15"
# What would make a trial something else than a few seconds of training.
_NOT_FOR_TRIALS = frozenset(
    {
        *("name", "batch_size", "batch_size_per_rank", "workers", "max_steps", "target_accuracy", "array"),
        *("dependency", "resume_from", "logger", "tasks", "task_env", "time", "stage_data", "mail_type", "comment"),
    }
)


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        layout: Name of the layout.
        ranks: Its ranks.
        studies: The studies that the trials are, for `hpcdist report`.
        attempts: What was tried, in that order.
        chosen: The one to take; None where none ran with memory to spare.
        options: What to set: `batch_size` and, where they matter, `workers`.
        sentences: Why.
        not_promised: What this says nothing of.
    """

    layout: str
    ranks: int
    studies: tuple[str, ...]
    attempts: tuple[Measurement, ...]
    chosen: Measurement | None
    options: dict[str, int]
    sentences: tuple[str, ...]
    not_promised: str = NOT_PROMISED


def tune(
    options: Mapping[str, Any],
    project: Project,
    *,
    backend: Backend,
    seconds: float,
    target_utilization: float | None = None,
    most: int | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Find the batch size and worker count of a job.

    Args:
        options: The job's options; its batch size is where the search begins.
        project, backend: Where the trials run, and what runs them.
        seconds: How long each is measured.
        target_utilization: How busy the processors are to be, a fraction; None looks for the best throughput.
        most: Largest batch size to try.
        watch: What is told meanwhile.

    Raises:
        UsageError: The job is not of the built-in networks, or an option can't be used.
    """
    job = build_job(merge_options(project.defaults, options))
    _check(job)
    search = msgspec.structs.replace(
        begin_search(job, most),
        at_once=AT_ONCE_ON_SLURM if backend == "slurm" else 1,
        target_utilization=target_utilization,
    )
    has_workers = is_folder(job.training.data or "mnist")
    bench = _Bench(job, options, project, backend=backend, seconds=seconds, watch=watch or Watch())
    attempts: list[Measurement] = []
    while sizes := next_batches(search, attempts):
        attempts = bench.measure("batch", {}, "batch_size", [*(one.batch_size for one in attempts), *sizes])
    chosen = choose_batch(search, attempts)
    tried = list(attempts)
    if chosen is not None:
        counts = next_workers(chosen, attempts, job.layout.cpus_per_task, has_workers=has_workers)
        if counts:
            more = bench.measure("workers", {"batch_size": chosen.batch_size}, "workers", list(counts))
            tried += more
            chosen = choose_workers(chosen, more)
    found = {"batch_size": chosen.batch_size, "workers": chosen.workers} if chosen else {}
    return Tuned(
        layout=job.layout.name,
        ranks=job.layout.world_size,
        studies=tuple(bench.names),
        attempts=tuple(tried),
        chosen=chosen,
        options={name: value for name, value in found.items() if value is not None},
        sentences=tuple(explain(search, tried, chosen, has_workers=has_workers)),
    )


def begin_search(job: JobSpec, most: int | None) -> Search:
    """Where the search begins and ends: at the job's batch size, at `most` where that is smaller.

    Raises:
        UsageError: `most` leaves a rank without a sample.
    """
    ranks = job.layout.world_size
    if most is not None and most < ranks:
        raise UsageError(f"most is {most}, and {ranks} ranks train at least one image each", f"use --most {ranks}")
    # What is given per rank is written down per rank.
    multiple = ranks if job.training.batch_size_per_rank is not None else 1
    batch = job.training.global_batch_size(ranks)
    start = batch if most is None else min(batch, most // multiple * multiple)
    return Search(start=start, least=ranks, most=most, multiple=multiple)


def _check(job: JobSpec) -> None:
    if job.command:
        raise UsageError("tune tries the built-in training alone, and this has a COMMAND", "sweep it in a study")
    if job.training.module:
        raise UsageError("tune sets the batch size, and a module's data has its own", "sweep it in a study")
    if job.training.ps_mode == "async":
        raise UsageError("tune measures ranks that keep step, and ps_mode is async", "tune it with --ps-mode sync")


class _Bench:
    """Short trainings of one job, run in studies of its own with the job's options as they were given.

    Attributes:
        names: The studies so far.
    """

    def __init__(
        self,
        job: JobSpec,
        options: Mapping[str, Any],
        project: Project,
        *,
        backend: Backend,
        seconds: float,
        watch: Watch,
    ) -> None:
        self._job, self._project, self._backend, self._watch = job, project, backend, watch
        given = {key: value for key, value in options.items() if key not in _NOT_FOR_TRIALS and value is not None}
        self._layout = {key: value for key, value in given.items() if key in LAYOUT_KEYS}
        self._options = {key: value for key, value in given.items() if key not in LAYOUT_KEYS}
        # More epochs than fit into the time; the trial ends by the clock.
        self._options |= {"epochs": 10_000, "speed_trial": f"{seconds:g}s", "time": TIME_LIMIT}
        self._name = f"tune-{job.slug[:24]}-{job.layout.name}-{secrets.token_hex(2)}"
        self.names: list[str] = []

    def measure(self, stage: str, fixed: Mapping[str, int], swept: str, values: list[int]) -> list[Measurement]:
        """Runs what of a stage has not run yet; returns all of its attempts."""
        study = Study(
            name=f"{self._name}-{stage}",
            options={**self._options, **fixed},
            layouts=(self._layout,),
            grid={swept: tuple(values)},
            limits=Limits(max_concurrent=1),
        )
        self.names += [] if study.name in self.names else [study.name]
        try:
            state = run_study(study, self._project, backend=self._backend, watch=self._watch)
            if self._backend == "slurm":
                self._wait(state)
        except KeyboardInterrupt:
            # Nobody wants the rest of a measurement.
            if begun := find_study(study.name, self._project.root):
                cancel_study(begun)
            raise
        return self._read(state, values, {"batch_size": fixed.get("batch_size", 0), "workers": None}, swept)

    def _wait(self, state: StudyState) -> None:
        """Until all jobs are over; the trial that is furthest is told about."""
        began = time.monotonic()
        while True:
            statuses = query_trials(state)
            living = [(trial, status) for trial, status in statuses if status.job_id and not status.is_over]
            if not living:
                break
            trial, status = next((pair for pair in living if pair[1].state != "PENDING"), living[0])
            self._watch.running(trial, len(statuses) - len(living), len(statuses), status, None)
            time.sleep(pause_s(time.monotonic() - began, POLL_INTERVAL_S))
        for name, run in find_runs(state).items():
            for trial in state.trials:
                if trial.run == name:
                    run.task(trial.task).wait_for_ranks(self._job.layout.world_size)

    def _read(self, state: StudyState, values: list[int], common: dict[str, Any], swept: str) -> list[Measurement]:
        runs = find_runs(state)
        found = []
        for value, (trial, record) in zip(values, read_records(state), strict=True):
            run = runs.get(trial.run or "")
            # As it ran: without Slurm a rank may have got fewer CPUs than were asked for.
            layout = run.record().job.layout if run else self._job.layout
            curves = run.task(trial.task).curves() if run else []
            setting = {**common, swept: value}
            found.append(build_attempt(layout, record, curves, run=trial.run, **setting))
        return found
