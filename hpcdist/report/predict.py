"""What a layout that did not run yet would take, and what a study would wait, take and cost.

The model: wall-clock = what is no step (start-up, validation, shutdown) + steps x (data + compute + other + exposed
communication). All but the communication comes from a smaller layout; the communication changes by what the probes
of both say that the gradients take. The more of it the backward pass hid in the smaller layout, the more it can hide
in the larger one, but never more than the backward pass lasts.

At most: by the time limits. Likely: as earlier trials of the same variant went, or as a prediction has it.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from hpcdist.config.job import JobSpec, build_job
from hpcdist.config.site import Prices
from hpcdist.records.job import JobRecord
from hpcdist.records.network import AllReduce
from hpcdist.records.ranks import PARTS, StepSplit, TrainingMetrics, mean_split, median_split, waiting_s
from hpcdist.report.model import Prediction, Spread
from hpcdist.report.scaling import SINGLE_MARGIN, scale, spread
from hpcdist.studies.batches import count_gpus, most_gpu_hours
from hpcdist.studies.study import Study, Trial, Variant, settings_key
from hpcdist.units import parse_slurm_time

# torch.distributed's DDP sends what is smaller in one bucket, whose all-reduce starts when the backward pass is over.
ONE_BUCKET_BYTES = 1024**2
# A backward pass computes two products of matrices where the forward pass computes one.
BACKWARD_SHARE = 2 / 3


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """All-reduces of several sizes between so many ranks, from a job's start or a probe of its own.

    Attributes:
        ranks: Ranks that took part.
        nodes: Nodes they were on.
        probe: At least one all-reduce.
    """

    ranks: int
    nodes: int
    probe: tuple[AllReduce, ...]


def choose_links(links: Sequence[Link], ranks: int, nodes: int) -> list[Link]:
    """All probes of the nearest shape: first in whether a network lies between them, then in nodes, then in ranks."""
    shapes = {(link.nodes, link.ranks) for link in links if link.probe and link.ranks > 1}
    if not shapes:
        return []
    best = min(shapes, key=lambda one: ((one[0] > 1) != (nodes > 1), abs(one[0] - nodes), abs(one[1] - ranks), one))
    return [link for link in links if (link.nodes, link.ranks) == best]


def all_reduce_s(probe: Sequence[AllReduce], size_bytes: float) -> float:
    """Seconds that an all-reduce of this size takes: between two probed sizes along their line, beyond them carried on.

    Latency and bytes over bandwidth, as far as the probe has both.
    """
    points = sorted((one.size_bytes, one.latency_s) for one in probe)
    if len(points) == 1 or size_bytes <= points[0][0]:
        return points[0][1]
    at = next((place for place, (size, _) in enumerate(points) if size >= size_bytes), len(points) - 1)
    (low, low_s), (high, high_s) = points[at - 1], points[at]
    if high == low:
        return high_s
    return max(0.0, low_s + (high_s - low_s) * (size_bytes - low) / (high - low))


def carry_to_ranks(probe: Sequence[AllReduce], size_bytes: float, measured: int, ranks: int) -> float:
    """Seconds of an all-reduce between other numbers of ranks than were probed, as in a ring.

    Each rank sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages (nccl-tests, PERFORMANCE.md).
    """
    latency_s = all_reduce_s(probe, 0)
    transfer_s = max(0.0, all_reduce_s(probe, size_bytes) - latency_s)
    messages = (ranks - 1) / (measured - 1)
    return latency_s * messages + transfer_s * messages * measured / ranks


def find_exposed_s(exposed_s: float, before_s: float, after_s: float, backward_s: float, size_bytes: float) -> float:
    """Communication that a step will show where the all-reduce takes another time.

    Args:
        exposed_s: What a step shows now, waiting left out.
        before_s: What the all-reduce takes now.
        after_s: What it will take.
        backward_s: The backward pass, which may hide some of it.
        size_bytes: Its size: of one bucket nothing is hidden.
    """
    if size_bytes <= ONE_BUCKET_BYTES or exposed_s >= before_s:
        # Nothing is hidden; what exceeds the probe (threads that wake up) stays as it is.
        return max(0.0, exposed_s + after_s - before_s)
    hidden_share = 1 - exposed_s / before_s
    return after_s - min(hidden_share * after_s, backward_s)


# The preflight all-reduces each size so often.
PROBE_REPEATS = 3
# How far the model is off, besides the spread of the runs it rests on: of the communication, and of the whole. Judged,
# not derived: inside a step an all-reduce also wakes threads and meets other traffic; doubled where it extrapolates.
COMMUNICATION_ERROR = 0.25
WHOLE_ERROR = 0.05


class _Known(NamedTuple):
    """What the runs of one layout say; the medians."""

    label: str
    ranks: int
    nodes: int
    wall: Spread
    steps: float
    split: StepSplit
    waiting_s: float
    bytes_per_step: int
    batch: int

    @property
    def batch_per_rank(self) -> float:
        return self.batch / self.ranks

    @property
    def rest_s(self) -> float:
        """Seconds that are no steady step."""
        return self.wall.median - self.steps * self.split.step_s


class _Guess(NamedTuple):
    wall_s: float
    communication_s: float
    all_reduce_s: float


def predict(
    target: Variant,
    known: Iterable[tuple[Variant, Sequence[JobRecord]]],
    links: Iterable[Link] = (),
    *,
    weak: bool = False,
) -> Prediction | None:
    """Predict what a layout would take.

    The best calibration is a layout with as many ranks on fewer nodes (1x2 for 2x1): its ranks do the same work. Else
    the one with the most ranks is taken, and its work per rank is carried on to the target's batch per rank along the
    line through a further layout (1x1).

    Args:
        target: The layout and its settings.
        known: Variants that ran, each with its completed jobs; those with other settings are left out.
        links: Probes besides those at the jobs' start: between as many nodes as the target has, if possible.
        weak: Whether the batch per rank stays, not the global batch.

    Returns:
        None where the calibration is missing: no smaller layout of several ranks with a split, no probe between
        nodes, or no second layout where the batch per rank changes.
    """
    runs = [(variant, records) for variant, records in known if variant.settings == target.settings]
    return _predict(target, _summarize_all(runs), [*links, *find_links(runs)], weak=weak)


def predict_measured(
    known: Iterable[tuple[Variant, Sequence[JobRecord]]], *, weak: bool = False
) -> tuple[Prediction, ...]:
    """For each variant that ran, what would have been predicted from the others and its own probe."""
    groups: dict[bytes, list[tuple[Variant, Sequence[JobRecord]]]] = {}
    for variant, records in known:
        groups.setdefault(settings_key(variant.settings), []).append((variant, records))
    found = []
    for group in groups.values():
        summaries, links = _summarize_all(group), find_links(group)
        for variant, records in group:
            measured = spread(record.efficiency.wall_time_s for record in records if record.efficiency)
            prediction = _predict(variant, summaries, links, weak=weak) if measured else None
            if prediction and measured:
                found.append(msgspec.structs.replace(prediction, measured_s=measured.median))
    return tuple(found)


def find_links(known: Iterable[tuple[Variant, Sequence[JobRecord]]]) -> list[Link]:
    """The probes at the start of jobs."""
    found = []
    for variant, records in known:
        for record in records:
            training = _first_training(record)
            if training and training.probe and (training.world_size or 0) > 1:
                ranks = training.world_size or variant.layout.world_size
                found.append(Link(ranks=ranks, nodes=variant.layout.nodes, probe=training.probe))
    return found


def _predict(target: Variant, known: Sequence[_Known], links: Sequence[Link], *, weak: bool) -> Prediction | None:
    others = [one for one in known if one.label != target.label]
    base = _choose_base(target, others)
    if base is None:
        return None
    ranks, nodes = target.layout.world_size, target.layout.nodes
    here, there = choose_links(links, base.ranks, base.nodes), choose_links(links, ranks, nodes)
    if not here or not there or (there[0].nodes > 1) != (nodes > 1) or (here[0].nodes > 1) != (base.nodes > 1):
        return None
    batch_per_rank = base.batch_per_rank if weak else base.batch / ranks
    work = _work(base, others, batch_per_rank)
    if work is None:
        return None
    steps = base.steps * base.batch / (batch_per_rank * ranks)
    sizes = [one.size_bytes for one in there[0].probe]
    guess = _guess(base, work, steps, (_timer(here, base.ranks), _timer(there, ranks)), sizes)
    as_probed = (there[0].ranks, there[0].nodes) == (ranks, nodes)
    return _describe(target, base, guess, steps, as_probed=as_probed)


def _timer(links: Sequence[Link], ranks: int) -> Callable[[float], float]:
    """Seconds of an all-reduce by its size: the median of the links."""
    return lambda size: statistics.median(carry_to_ranks(link.probe, size, link.ranks, ranks) for link in links)


def _summarize_all(runs: Iterable[tuple[Variant, Sequence[JobRecord]]]) -> list[_Known]:
    return [one for one in (_summarize(variant, records) for variant, records in runs) if one]


def _summarize(variant: Variant, records: Sequence[JobRecord]) -> _Known | None:
    """The medians of one layout's jobs; None where a figure that is needed was not measured."""
    found = [(record, training) for record in records if (training := _first_training(record)) and training.steps]
    split = median_split([split for record, _ in found if (split := mean_split(record.ranks))])
    wall = spread(record.efficiency.wall_time_s for record, _ in found if record.efficiency)
    batch = [training.global_batch_size for _, training in found if training.global_batch_size]
    worlds = {training.world_size for _, training in found}
    # A job that lacked ranks says nothing about its layout.
    if wall is None or split is None or not batch or worlds != {variant.layout.world_size}:
        return None
    waiting = spread(waiting_s(record.ranks) for record, _ in found)
    return _Known(
        label=variant.label,
        ranks=variant.layout.world_size,
        nodes=variant.layout.nodes,
        wall=wall,
        steps=statistics.median(training.steps or 0 for _, training in found),
        split=split,
        waiting_s=waiting.median if waiting else 0.0,
        bytes_per_step=max(training.bytes_per_step or 0 for _, training in found),
        batch=batch[0],
    )


def _first_training(record: JobRecord) -> TrainingMetrics | None:
    return next((rank.training for rank in record.ranks if rank.training), None)


def _choose_base(target: Variant, known: Iterable[_Known]) -> _Known | None:
    """As many ranks on the fewest nodes; else the most ranks, on the most nodes."""
    ranks, nodes = target.layout.world_size, target.layout.nodes
    smaller = [one for one in known if 1 < one.ranks <= ranks and one.nodes <= nodes]
    smaller = [one for one in smaller if (one.ranks, one.nodes) != (ranks, nodes)]
    same = [one for one in smaller if one.ranks == ranks]
    if same:
        return min(same, key=lambda one: one.nodes)
    return max(smaller, key=lambda one: (one.ranks, one.nodes), default=None)


def _work(base: _Known, known: Iterable[_Known], batch_per_rank: float) -> StepSplit | None:
    """A step's own work at another batch per rank, along the line through the base and the layout most unlike it."""
    if batch_per_rank == base.batch_per_rank:
        return base.split
    others = [one for one in known if one.batch_per_rank != base.batch_per_rank and one.nodes <= base.nodes]
    if not others:
        return None
    other = max(others, key=lambda one: abs(one.batch_per_rank - base.batch_per_rank))
    share = (batch_per_rank - base.batch_per_rank) / (other.batch_per_rank - base.batch_per_rank)
    parts = {
        name: max(0.0, getattr(base.split, name) + share * (getattr(other.split, name) - getattr(base.split, name)))
        for name in ("data_s", "compute_s", "other_s")
    }
    return msgspec.structs.replace(base.split, **parts)


def _guess(
    base: _Known,
    work: StepSplit,
    steps: float,
    all_reduces: tuple[Callable[[float], float], Callable[[float], float]],
    sizes: Iterable[float],
) -> _Guess:
    """What it will take; the all-reduces are those of the base and of the target, timed by their size."""
    here, there = all_reduces
    before_s, after_s = here(base.bytes_per_step), there(base.bytes_per_step)
    own_s = max(0.0, base.split.communication_s - base.waiting_s)
    exposed_s = find_exposed_s(own_s, before_s, after_s, BACKWARD_SHARE * work.compute_s, base.bytes_per_step)
    # What the parts leave of the measured step stays unexplained, as it was.
    unexplained_s = base.split.step_s - sum(getattr(base.split, part) for part in PARTS)
    step_s = work.data_s + work.compute_s + work.other_s + base.waiting_s + exposed_s + unexplained_s
    # The preflight and the first copy of the parameters take the network's time too.
    starting_s = after_s - before_s
    starting_s += PROBE_REPEATS * sum(there(size) - here(size) for size in sizes)
    wall_s = max(0.0, base.rest_s + starting_s) + steps * step_s
    return _Guess(wall_s=wall_s, communication_s=steps * exposed_s, all_reduce_s=after_s)


def _describe(target: Variant, base: _Known, guess: _Guess, steps: float, *, as_probed: bool) -> Prediction:
    ranks = target.layout.world_size
    extrapolated = ranks != base.ranks or not as_probed
    share = guess.wall_s / base.wall.median if base.wall.median else 1.0
    once = base.wall.count == 1
    below = SINGLE_MARGIN * guess.wall_s if once else share * (base.wall.median - base.wall.low)
    above = SINGLE_MARGIN * guess.wall_s if once else share * (base.wall.high - base.wall.median)
    error = COMMUNICATION_ERROR * guess.communication_s + WHOLE_ERROR * guess.wall_s
    error *= 2 if extrapolated else 1
    runs = "1 run" if once else f"{base.wall.count} runs"
    basis = (
        f"{base.label}'s step of {1e3 * base.split.step_s:.1f} ms ({runs}) and an all-reduce of "
        f"{base.bytes_per_step:,} bytes in {1e3 * guess.all_reduce_s:.1f} ms, {steps:,.0f} steps"
    )
    if ranks != base.ranks:
        basis += f"; extrapolated from {base.ranks} to {ranks} ranks"
    if not as_probed:
        basis += "; the network was probed in another shape"
    return Prediction(
        variant=target.label,
        wall_s=guess.wall_s,
        low_s=max(0.0, guess.wall_s - below - error),
        high_s=guess.wall_s + above + error,
        basis=basis,
    )


_START = re.compile(r"to start at ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8})")


class PlanRow(msgspec.Struct, frozen=True, kw_only=True):
    """One variant, before it is run.

    Attributes:
        label: The variant's.
        trials: How often it is run.
        missing: How many of them were not sent yet.
        start: When Slurm would start one that is submitted now, in its own local time; None where it does not say.
        refusal: Slurm's words where it would refuse it.
        time_limit_s: Of each trial; None without one.
        gpu_hours: Of all its trials at most (of a CPU layout: rank-hours), by the time limit.
        cost: What those cost at most.
        wall_s: Wall-clock of earlier trials of this very variant; None before one completed.
        likely_cost: What all its trials cost if they take as long.
        predicted: What other variants' trials say of it; None where it was measured, or nothing says anything.
        predicted_cost: What all its trials cost by that: the predicted time, and its range's ends.
    """

    label: str
    trials: int
    missing: int
    start: str | None = None
    refusal: str | None = None
    time_limit_s: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    wall_s: Spread | None = None
    likely_cost: Spread | None = None
    predicted: Prediction | None = None
    predicted_cost: Spread | None = None


def make_plan(
    study: Study,
    variants: Sequence[Variant],
    trials: Sequence[Trial],
    *,
    answers: Mapping[str, tuple[str | None, str | None]],
    records: Sequence[tuple[Trial, JobRecord | None]] = (),
    predictions: Sequence[Prediction] = (),
) -> tuple[PlanRow, ...]:
    """Make one row per variant.

    Args:
        study, variants: The study, and its variants.
        trials: Its trials, with the runs of those that were sent.
        answers: By the variants' labels: when one would start, and Slurm's words where it would refuse it.
        records: What happened to earlier trials.
        predictions: For variants that no trial has measured.
    """
    walls = measured_walls(records)
    predicted = {one.variant: one for one in predictions}
    rows = []
    for variant in variants:
        job = build_job(variant.options)
        own = [trial for trial in trials if trial.variant == variant.label]
        limit_s = parse_slurm_time(job.layout.time) if job.layout.time else None
        hours = most_gpu_hours(job)
        wall = walls.get(variant.label)
        guess = None if wall else predicted.get(variant.label)
        start, refusal = answers.get(variant.label, (None, None))
        longest_s = None if hours is None else hours * 3600 / count_gpus(job.layout) * len(own)
        rows.append(
            PlanRow(
                label=variant.label,
                trials=len(own),
                missing=sum(trial.run is None for trial in own),
                start=start,
                refusal=refusal,
                time_limit_s=limit_s,
                gpu_hours=None if hours is None else hours * len(own),
                cost=price_of(study.prices, job, longest_s),
                wall_s=wall,
                likely_cost=_prices(study.prices, job, wall, len(own)),
                predicted=guess,
                predicted_cost=_prices(study.prices, job, guess.wall if guess else None, len(own)),
            )
        )
    return tuple(rows)


def measured_walls(records: Sequence[tuple[Trial, JobRecord | None]]) -> dict[str, Spread]:
    """Wall-clock seconds of completed trials, by their variants' labels."""
    walls = {
        label: spread(one.efficiency.wall_time_s for one in several if one.efficiency)
        for label, several in _completed(records).items()
    }
    return {label: wall for label, wall in walls.items() if wall}


def _completed(records: Sequence[tuple[Trial, JobRecord | None]]) -> dict[str, list[JobRecord]]:
    found: dict[str, list[JobRecord]] = {}
    for trial, record in records:
        if record is not None and record.status.state == "COMPLETED":
            found.setdefault(trial.variant, []).append(record)
    return found


def predict_unmeasured(
    study: Study,
    variants: Sequence[Variant],
    records: Sequence[tuple[Trial, JobRecord | None]],
    links: Sequence[Link] = (),
) -> tuple[Prediction, ...]:
    """Predict what variants that no trial has measured will take, where the others' trials and a probe say it.

    `links` are probes of the network besides those at the trials' start.
    """
    completed = _completed(records)
    known = [(variant, completed[variant.label]) for variant in variants if variant.label in completed]
    missing = [variant for variant in variants if variant.label not in completed]
    guesses = [predict(variant, known, links, weak=study.scaling == "weak") for variant in missing]
    return tuple(guess for guess in guesses if guess)


def price_of(prices: Prices, job: JobSpec, duration_s: float | None) -> float | None:
    """What a job costs; None where no price is known of anything it has, or the time is not."""
    nodes, gpus = job.layout.nodes, job.layout.nodes * job.layout.gpus
    per_hour = prices.per_hour(nodes=nodes, gpus=gpus, node_type=job.constraint)
    return None if per_hour is None or duration_s is None else per_hour * duration_s / 3600


def _prices(prices: Prices, job: JobSpec, wall: Spread | None, trials: int) -> Spread | None:
    if wall is None:
        return None
    per_second = price_of(prices, job, trials)
    return None if per_second is None else scale(wall, per_second)


def parse_start(words: str) -> str | None:
    """When a job would start, from what `sbatch --test-only` says."""
    match = _START.search(words)
    return match[1].replace("T", " ") if match else None
