"""Why more GPUs did not help, by what a step consists of: one rule per cause.

A rule returns None where it has nothing to say. `verdict.explain_row` decides which of several causes is named.
"""

import statistics
from collections import Counter

from hpcdist.report.model import Statement, VariantRow
from hpcdist.report.scaling import EFFICIENCY_LINE
from hpcdist.report.verdict.results import (
    StudyResults,
    batch_per_rank,
    communication_s,
    compute_per_sample_s,
    is_slower,
    name_ranks,
    round_batch,
    size,
)
from hpcdist.units import format_percent, format_rate, format_size, format_time

COMMUNICATION_SHARE = 0.25
"""From here on communication alone keeps a layout under the 75 % line."""
LINK_SHARE = 0.5
"""The network is to blame where the probe says that it takes at least half of what the steps show; the rest is
threads that wake up late, which another network would not mend."""
DATA_SHARE = 0.2
"""A fifth of each step without a batch to work on: with enough loader workers it is next to nothing."""
OVERHEAD_SHARE = 0.4
"""So much of a step that does not shrink with the batch means that the batch is too small to be worth a step."""
COMPUTE_GROWTH = 1.5
"""A sample that costs half as much again in a smaller batch: the device is not filled."""
OVERSUBSCRIBED_GROWTH = 1.3
"""A sample that costs so much more with more ranks, while no more cores work, waits for a core."""
CORES_GROWTH = 1.2
"""Ranks that had cores of their own would keep in proportion more of them busy."""
SLOWDOWN = 1.2
"""Ranks of one machine differ by some percent at any time; from a fifth on it is the machine, or its neighbours."""
WAITING_SHARE = 0.05
"""A slow rank costs something only where the others wait for it."""


def find_data_starvation(row: VariantRow) -> Statement | None:
    """Steps that wait for their batch."""
    split = row.split
    if split is None or split.data_s < DATA_SHARE * split.step_s:
        return None
    share = split.data_s / split.step_s
    return Statement(
        code="data",
        sentence=f"{row.label} waits for data: {format_percent(share)} of each step, {format_time(split.data_s)} of "
        f"{format_time(split.step_s)}, passes before the batch is there.",
        variant=row.label,
        advice="more data-loader workers (with as many CPUs per task), or the data on a faster disk",
        evidence={"data_share": share, "data_s": split.data_s, "step_s": split.step_s},
    )


def find_straggler_cost(row: VariantRow) -> Statement | None:
    """A rank that is slower than the others in most runs, and makes them wait."""
    known = [trial.straggler for trial in row.trials if trial.state == "COMPLETED" and trial.straggler]
    if row.split is None or not known or row.ranks < 2:
        return None
    slowdown = statistics.median(one.slowdown for one in known)
    waiting_s = row.waiting_s or 0.0
    if slowdown < SLOWDOWN or waiting_s < WAITING_SHARE * row.split.step_s:
        return None
    (host, rank), _ = Counter((one.host, one.rank) for one in known).most_common(1)[0]
    share = waiting_s / row.split.step_s
    return Statement(
        code="straggler",
        sentence=f"In {row.label} rank {rank} on {host} holds the others up: its own work takes {slowdown:.2f} times "
        f"as long as theirs, and the ranks wait {format_percent(share)} of each step ({format_time(waiting_s)} of "
        f"{format_time(row.split.step_s)}, the mean over ranks).",
        variant=row.label,
        advice=f"look at what else runs on {host}, or leave it out: --exclude {host}",
        evidence={"host": host, "rank": rank, "slowdown": slowdown, "waiting_s": waiting_s, "waiting_share": share},
    )


def find_oversubscription(row: VariantRow, results: StudyResults) -> Statement | None:
    """More ranks than cores: a sample takes longer, and no more cores work than with fewer ranks."""
    own_s, own_cores = compute_per_sample_s(row), _busy_cores(row)
    if own_s is None or own_cores is None or _computes_on_gpus(row):
        return None
    for other in results.smaller(row):
        others_s, others_cores = compute_per_sample_s(other), _busy_cores(other)
        if not others_s or not others_cores or row.ranks < 2 * other.ranks:
            continue
        growth = own_s / others_s
        if growth >= OVERSUBSCRIBED_GROWTH and own_cores < CORES_GROWTH * others_cores:
            return Statement(
                code="oversubscribed",
                sentence=f"The {row.ranks} ranks of {row.label} share cores: they keep {own_cores:.1f} cores busy "
                f"where {other.ranks} of {other.label} keep {others_cores:.1f} busy, and each sample takes a rank "
                f"{growth:.1f} times as long.",
                variant=row.label,
                advice="no more ranks than there are free cores for; these figures say nothing about more hardware",
                evidence={"cores_busy": own_cores, "cores_busy_before": others_cores, "compute_growth": growth},
            )
    return None


def _busy_cores(row: VariantRow) -> float | None:
    busy = [trial.cpu_busy for trial in row.trials if trial.state == "COMPLETED" and trial.cpu_busy is not None]
    return statistics.median(busy) * row.layout.world_size * row.layout.cpus_per_task if busy else None


def _computes_on_gpus(row: VariantRow) -> bool:
    return row.gpu_efficiency is not None and row.gpu_efficiency.median > 0


def find_communication(row: VariantRow, results: StudyResults) -> Statement | None:
    """Communication that makes a layout slower than a smaller one, waiting for slower ranks left out."""
    own_s, split = communication_s(row), row.split
    if own_s is None or split is None or own_s < COMMUNICATION_SHARE * split.step_s or not _is_network(row, own_s):
        return None
    faster = [one for one in results.smaller(row) if is_slower(row, one)]
    if not faster:
        return None
    alone = [one for one in faster if one.layout.nodes == 1 < row.layout.nodes]
    share = own_s / split.step_s
    advice = "communicate less: " + _less_communication(row, own_s)
    if alone:
        best = max(alone, key=lambda one: one.images_per_s.median if one.images_per_s else 0.0)
        advice = f"stay on one node ({best.label}). On several, {_less_communication(row, own_s)}"
    smallest = min(faster, key=size)
    than = f"{name_ranks(1, smallest)} ({smallest.label})" if smallest.ranks == 1 else smallest.label
    return Statement(
        code="communication",
        sentence=f"{row.label} is slower than {than}, {_pace(row, smallest)}, because of communication: "
        f"{format_percent(share)} of each step, {format_time(own_s)} of {format_time(split.step_s)}"
        f"{_describe_link(row)}.",
        variant=row.label,
        advice=advice,
        evidence=_figures(row, own_s) | {"communication_share": share, "faster": smallest.label},
    )


def _is_network(row: VariantRow, own_s: float) -> bool:
    """Whether the probe agrees that the network takes this long; without a probe it is believed."""
    link_s = _link_s(row)
    return link_s is None or link_s >= LINK_SHARE * own_s


def is_mostly_network(row: VariantRow) -> bool:
    """Whether, by the probe, the network alone takes half of each step or more."""
    link_s = _link_s(row)
    return link_s is not None and row.split is not None and link_s >= LINK_SHARE * row.split.step_s


def _link_s(row: VariantRow) -> float | None:
    """Seconds that the network takes for a step's bytes, by the probe."""
    if row.bytes_per_step is None or row.bandwidth_bytes_per_s is None:
        return None
    # Not their sum: the bandwidth was measured with the latency in it.
    return max(row.latency_s or 0.0, row.bytes_per_step / row.bandwidth_bytes_per_s)


def _describe_link(row: VariantRow) -> str:
    if row.bytes_per_step is None or row.bandwidth_bytes_per_s is None:
        return ""
    return f", for {format_size(row.bytes_per_step)} over a link of {format_rate(row.bandwidth_bytes_per_s)}"


def _pace(row: VariantRow, other: VariantRow) -> str:
    """`4,100 against 21,000 images/s, 62.1 s against 15.2 s`."""
    parts = []
    if row.images_per_s and other.images_per_s:
        parts.append(f"{row.images_per_s.median:,.0f} against {other.images_per_s.median:,.0f} images/s")
    if row.wall_s and other.wall_s:
        parts.append(f"{format_time(row.wall_s.median)} against {format_time(other.wall_s.median)} from start to end")
    return ", ".join(parts)


def _less_communication(row: VariantRow, own_s: float) -> str:
    """What makes communication rarer or smaller; a batch of which it would be a quarter."""
    batch = find_batch(row, own_s)
    size = f"a global batch of {batch:,} or more" if batch else "a larger batch"
    return f"{size} or gradient accumulation to as much, or bf16 gradients (half the bytes)"


def find_batch(row: VariantRow, fixed_s: float) -> int | None:
    """The global batch from which on the fixed part of a step is a quarter of it; None where nobody measured."""
    sample_s = compute_per_sample_s(row)
    if not sample_s:
        return None
    return round_batch(row.ranks * fixed_s * EFFICIENCY_LINE / (1 - EFFICIENCY_LINE) / sample_s)


def _figures(row: VariantRow, own_s: float) -> dict[str, float | str]:
    figures = {name: getattr(row, name) for name in ("bytes_per_step", "bandwidth_bytes_per_s", "latency_s")}
    figures = {"communication_s": own_s, "step_s": row.split and row.split.step_s, **figures}
    return {name: value for name, value in figures.items() if value is not None}


def find_small_batch(row: VariantRow, results: StudyResults) -> Statement | None:
    """A step that is mostly what does not shrink with the batch, or samples that cost more in small batches."""
    batch, split = batch_per_rank(row), row.split
    on_line = row.efficiency is not None and row.efficiency.median >= EFFICIENCY_LINE
    if batch is None or split is None or not split.compute_s or (on_line and row.ranks > 1):
        return None
    fixed_s = split.other_s + (communication_s(row) or 0.0)
    share = fixed_s / split.step_s if split.step_s else 0.0
    growth, other = _sample_growth(row, results) or (1.0, row)
    if share >= OVERHEAD_SHARE:
        of = f"{format_time(fixed_s)} of {format_time(split.step_s)}"
        why = f"{format_percent(share)} of each step ({of}) is work that does not shrink with it"
    elif growth >= COMPUTE_GROWTH:
        why = f"a sample takes {growth:.1f} times as long as in {other.label} with {batch_per_rank(other):.0f}"
    else:
        return None
    wanted = find_batch(row, fixed_s)
    larger = f"a global batch of {wanted:,} or more" if wanted and wanted > row.ranks * batch else "a larger batch"
    return Statement(
        code="small-batch",
        sentence=f"The batch of {row.label} is too small: with {batch:.0f} samples per rank {why}.",
        variant=row.label,
        advice=f"{larger}, or fewer ranks for this one",
        evidence={"batch_per_rank": batch, "fixed_share": share, "fixed_s": fixed_s, "sample_growth": growth},
    )


def _sample_growth(row: VariantRow, results: StudyResults) -> tuple[float, VariantRow] | None:
    """How much longer a sample takes than in the fastest variant of at least twice the batch per rank.

    Only variants that differ in layout and batch alone, with as many ranks per node or more count: fewer would have
    more of the node to themselves.
    """
    own_s, batch = compute_per_sample_s(row), batch_per_rank(row)
    if own_s is None or batch is None:
        return None
    found = [
        (other_s, other)
        for other in results.but_batch(row)
        if (other_s := compute_per_sample_s(other))
        and (batch_per_rank(other) or 0.0) >= 2 * batch
        and other.layout.ranks_per_node >= row.layout.ranks_per_node
    ]
    if not found:
        return None
    least_s, fastest = min(found, key=lambda pair: pair[0])
    return own_s / least_s, fastest
