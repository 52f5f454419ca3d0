"""A study's report as values: its jobs and variants in figures, fits, predictions, and the verdict's statements."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from hpcdist.config.job import Layout
from hpcdist.records.ranks import StepSplit, Straggler, TestResult
from hpcdist.records.usage_curve import UsageCurve
from hpcdist.studies.study import Study


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A figure measured several times.

    Attributes:
        median: Of all repeats.
        low, high: The least and the largest.
        count: Repeats that measured it.
    """

    median: float
    low: float
    high: float
    count: int


class TrialRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the study, in figures.

    Attributes:
        repeat: From 1.
        run: Its run; None when it was never sent.
        job_id: Its job; None when it never existed.
        state: Slurm's word, or `NOT SUBMITTED`.
        reason: Why it failed, was denied or has not started, one sentence; None of one that is fine.
        ranks_worked: Ranks that trained together.
        wall_s: From start to end, seconds.
        starting_s: From the allocation through the first step, seconds.
        queued_s: From submission to start, seconds.
        images_per_s: Steady-state throughput over all ranks.
        time_to_target_s: From the job's start to the first test that reached the target accuracy, seconds.
        accuracy: Final test accuracy, a fraction.
        cpu_efficiency, memory_efficiency, gpu_efficiency: Fractions.
        gpu_hours: GPUs allocated (of a CPU layout: ranks) times wall-clock, hours.
        cost: What that costs, in the study's currency.
        cost_to_target: What it costs up to the target.
        ettr: Effective training time ratio, a fraction.
        loader_cpu_share: CPU time of the ranks' child processes, such as data loaders, over that of the CPUs allocated,
            a fraction; it is part of `cpu_efficiency`.
        split: Where a step goes, the mean over ranks.
        waiting_s: The part of the split's communication that is waiting for the slowest rank: what the ranks' mean
            exceeds the least of any rank by, seconds.
        straggler: The slowest rank.
        bytes_per_step: Bytes that each rank brings to the all-reduces of a step.
        latency_s, bandwidth_bytes_per_s: Of the job's own all-reduce before the training: the smallest, the largest.
        global_batch_size: Samples per step over all ranks.
        cpu_busy: CPUs in use of those allocated, a fraction.
        started_at_s, ended_at_s: Seconds since the epoch.
        nodes: Names of its nodes, in Slurm's short form.
        tests: Tests in the middle of the training, oldest first.
    """

    repeat: int
    run: str | None = None
    job_id: str | None = None
    state: str
    reason: str | None = None
    ranks_worked: int | None = None
    wall_s: float | None = None
    starting_s: float | None = None
    queued_s: float | None = None
    images_per_s: float | None = None
    time_to_target_s: float | None = None
    accuracy: float | None = None
    cpu_efficiency: float | None = None
    memory_efficiency: float | None = None
    gpu_efficiency: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    cost_to_target: float | None = None
    ettr: float | None = None
    loader_cpu_share: float | None = None
    split: StepSplit | None = None
    waiting_s: float | None = None
    straggler: Straggler | None = None
    bytes_per_step: int | None = None
    latency_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    global_batch_size: int | None = None
    cpu_busy: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    nodes: str | None = None
    tests: tuple[TestResult, ...] = ()

    def describe_end(self) -> str:
        """`FAILED: the reason`; the state alone where there is none."""
        return f"{self.state}: {self.reason}" if self.reason else self.state


class VariantRow(msgspec.Struct, frozen=True, kw_only=True):
    """One variant: its trials, and the spread of each figure over those that completed.

    Attributes:
        label: The variant's.
        layout: Its shape.
        settings: As in `Variant`.
        ranks_asked: Ranks of the layout.
        ranks_worked: Ranks that really trained together, the fewest of any completed trial.
        is_baseline: Whether speedups refer to it.
        trials: Its jobs, by repeat.
        wall_s, starting_s, images_per_s, time_to_target_s, accuracy, cpu_efficiency, memory_efficiency,
            gpu_efficiency, gpu_hours, cost, cost_to_target, ettr, loader_cpu_share: As in `TrialRow`.
        speedup: Steady images/s over the baseline's; the ends of the spread are the worst and the best pairing.
        efficiency: Speedup per rank that worked, relative to the baseline's ranks, a fraction.
        split: Where a step goes, the medians over trials.
        straggler: That of the trial with the largest slowdown.
        waiting_s, bytes_per_step, latency_s, bandwidth_bytes_per_s, global_batch_size: As in `TrialRow`, medians.
        same_as: Labels of variants whose wall-clock spreads overlap this one's: they are called equal.
    """

    label: str
    layout: Layout
    settings: dict[str, Any] = {}
    ranks_asked: int
    ranks_worked: int | None = None
    is_baseline: bool = False
    trials: tuple[TrialRow, ...] = ()
    wall_s: Spread | None = None
    starting_s: Spread | None = None
    images_per_s: Spread | None = None
    time_to_target_s: Spread | None = None
    accuracy: Spread | None = None
    cpu_efficiency: Spread | None = None
    memory_efficiency: Spread | None = None
    gpu_efficiency: Spread | None = None
    gpu_hours: Spread | None = None
    cost: Spread | None = None
    cost_to_target: Spread | None = None
    ettr: Spread | None = None
    loader_cpu_share: Spread | None = None
    speedup: Spread | None = None
    efficiency: Spread | None = None
    split: StepSplit | None = None
    waiting_s: float | None = None
    straggler: Straggler | None = None
    bytes_per_step: int | None = None
    latency_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    global_batch_size: int | None = None
    same_as: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks that worked; where nobody knows, those asked for."""
        return self.ranks_worked or self.ranks_asked


def name_rank(rows: Sequence[VariantRow]) -> str:
    """What a rank is called in a study: a GPU where every layout has them."""
    return "GPU" if all(row.layout.gpus for row in rows) else "rank"


SPREAD_FIGURES = (
    *("wall_s", "starting_s", "images_per_s", "speedup", "efficiency", "time_to_target_s", "accuracy"),
    *("cpu_efficiency", "memory_efficiency", "gpu_efficiency", "gpu_hours", "cost", "cost_to_target", "ettr"),
    "loader_cpu_share",
)
"""The figures of a variant that have a spread, in the order of a table."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A law of scaling fitted to the speedups of one choice of settings, over ranks.

    Attributes:
        law: "amdahl" (serial fraction), "karp-flatt" (its experimentally determined value per point) or "usl".
        settings: The swept options' values it is about.
        ranks: The points' numbers of ranks.
        parameters: By name: `serial_fraction`; `e_<ranks>` and `rises` (1 or 0); `alpha`, `beta`, `gamma` and
            `peak_ranks`.
        intervals: 95 % intervals of parameters, where they can be had.
        note: `not enough points`, with how many there are and are needed; None of a fit that was made.
    """

    law: Literal["amdahl", "karp-flatt", "usl"]
    settings: dict[str, Any] = {}
    ranks: tuple[int, ...] = ()
    parameters: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    note: str | None = None


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of the verdict.

    Attributes:
        code: What kind it is; stays the same between releases.
        sentence: For a supervisor, with its figures.
        variant: The variant it is about; None for the study.
        advice: The change that would help; None where there is none.
        evidence: The figures it rests on, units in their names.
    """

    code: str
    sentence: str
    variant: str | None = None
    advice: str | None = None
    evidence: dict[str, float | str] = {}


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What was predicted for a variant, beside what was measured.

    Attributes:
        variant: Its label.
        wall_s: Predicted wall-clock time, seconds.
        low_s, high_s: Its range.
        basis: What it was predicted from, one clause.
        measured_s: The median measured; None before it ran.
    """

    variant: str
    wall_s: float
    low_s: float
    high_s: float
    basis: str
    measured_s: float | None = None

    @property
    def wall(self) -> Spread:
        """The predicted time with its range; measured in no run."""
        return Spread(median=self.wall_s, low=self.low_s, high=self.high_s, count=0)


class VariantUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one job of a variant used over time.

    Attributes:
        run: The job's run.
        repeat: Which of the variant's jobs it is.
        curves: One per rank.
    """

    run: str
    repeat: int
    curves: tuple[UsageCurve, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A study's report.

    Attributes:
        study: What was asked.
        made_at_s: When this was put together, seconds since the epoch.
        rows: One per variant, in the study's order.
        verdict: Sentences, the most useful first.
        fits: Laws of scaling.
        predictions: For variants that could be predicted from others.
        currency: Of all costs; None where the study has no prices.
        not_measured: What the report would hold and nobody measured, one clause each.
        conditions: Versions, machine and dates, by name, as printed.
        scripts: Each run's exact script, by run; empty where they are not wanted.
        usage: What the first completed job of each variant used over time, by its label; empty likewise.
    """

    study: Study
    made_at_s: float
    rows: tuple[VariantRow, ...]
    verdict: tuple[Statement, ...] = ()
    fits: tuple[Fit, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    currency: str | None = None
    not_measured: tuple[str, ...] = ()
    conditions: dict[str, str] = {}
    scripts: dict[str, str] = {}
    usage: dict[str, VariantUsage] = {}
