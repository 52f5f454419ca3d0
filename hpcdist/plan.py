"""What a study would wait, take and cost, before it is run. Pure.

At most: by the time limits. Likely: as earlier trials of the same variant went, or as a prediction has it.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from hpcdist.comparison import Prediction, Spread
from hpcdist.config.job import JobSpec, build_job
from hpcdist.config.site import Prices
from hpcdist.link import Link
from hpcdist.prediction import predict
from hpcdist.records.job import JobRecord
from hpcdist.scaling import scale, spread
from hpcdist.studies.batches import count_gpus, most_gpu_hours
from hpcdist.studies.study import Study, Trial, Variant
from hpcdist.units import parse_slurm_time

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
    """One row per variant.

    Args:
        study: The study.
        variants: Its variants.
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
    """What variants that no trial has measured will take, where the others' trials and a probe say it.

    Args:
        study: The study.
        variants: Its variants.
        records: What happened to earlier trials.
        links: Probes of the network besides those at the trials' start.
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
