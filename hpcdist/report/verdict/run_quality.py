"""What else a study shows about its runs: start-up, batches, accuracy, missing ranks, failures, spreads."""

from collections.abc import Iterable
from operator import itemgetter

from hpcdist.report.model import Spread, Statement, TrialRow, VariantRow
from hpcdist.report.verdict.results import StudyResults, join_names
from hpcdist.studies.study import NOT_SUBMITTED
from hpcdist.units import format_accuracy, format_percent, format_time

STARTING_SHARE = 0.25
"""A quarter of a job that no GPU shortens: a comparison of its wall-clock is one of start-ups."""
WIDE_SPREAD = 0.2
"""Repeats that differ by a fifth hide the differences a doubling of ranks is to show."""
ACCURACY_LOSS = 0.001
"""A tenth of a percentage point: less, nobody cares about, however sure it is."""
SINGLE_ACCURACY_LOSS = 0.01
"""Of a single run: seeds alone make some tenths of a percentage point."""
_UNFINISHED = frozenset({"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", NOT_SUBMITTED})


def explain_runs(results: StudyResults) -> list[Statement]:
    """What the runs show, apart from their steps."""
    found = [find_starting_share(results), find_changed_batch(results), *find_lost_accuracy(results)]
    found += [*find_fewer_ranks(results), find_failures(results), find_unfinished(results)]
    found += [find_wide_spread(results), find_single_runs(results)]
    return [statement for statement in found if statement]


def find_starting_share(results: StudyResults) -> Statement | None:
    """Start-up that is a large part of the job."""
    known = [
        (row.starting_s.median / row.wall_s.median, row.label, row.starting_s.median, row.wall_s.median)
        for row in results.done
        if row.starting_s and row.wall_s and row.wall_s.median
    ]
    large = [one for one in known if one[0] >= STARTING_SHARE]
    if not large:
        return None
    share, label, starting_s, wall_s = max(large, key=itemgetter(0))
    others = [one[1] for one in large if one[1] != label]
    also = f" (also a quarter or more in {join_names(others)})" if others else ""
    return Statement(
        code="starting",
        sentence=f"Start-up takes {format_percent(share)} of {label}, {format_time(starting_s)} of "
        f"{format_time(wall_s)}{also}, and more GPUs do not shorten it.",
        variant=label,
        advice="compare with longer trainings; for trainings this short fewer GPUs are enough",
        evidence={"starting_share": share, "starting_s": starting_s, "wall_s": wall_s},
    )


def find_changed_batch(results: StudyResults) -> Statement | None:
    """A global batch that differs between layouts of the same settings."""
    for group in results.groups.values():
        known = [row for row in group if row.global_batch_size]
        batches = {row.global_batch_size or 0 for row in known}
        if len(batches) < 2:
            continue
        shown = ", ".join(f"{row.label} {row.global_batch_size:,}" for row in known[:4])
        weak = results.study.scaling == "weak"
        why = "as weak scaling means it to" if weak else "although the study is to keep it"
        return Statement(
            code="changed-batch",
            sentence=f"The global batch changes with the layout, {why}: {shown} samples per step. Fewer, larger steps "
            "are another training: accuracy and time to it are not those of the baseline.",
            advice=None if weak else "set the program's batch per rank to the global batch over the ranks",
            evidence={"batch_least": min(batches), "batch_most": max(batches)},
        )
    return None


def find_lost_accuracy(results: StudyResults) -> list[Statement]:
    """Rows with a larger global batch that end less accurate, beyond the spread, than the one with the smallest."""
    found = []
    for group in results.alike.values():
        known = [row for row in group if row.accuracy and row.global_batch_size]
        base = min(known, key=lambda row: row.global_batch_size or 0, default=None)
        if base is not None:
            larger = [row for row in known if (row.global_batch_size or 0) > (base.global_batch_size or 0)]
            found += [statement for row in larger if (statement := _lost_accuracy(row, base))]
    return found


def _lost_accuracy(row: VariantRow, base: VariantRow) -> Statement | None:
    own, before = row.accuracy, base.accuracy
    if own is None or before is None or not _is_lost(own, before):
        return None
    loss = before.median - own.median
    return Statement(
        code="accuracy",
        sentence=f"{row.label} ends less accurate: {format_accuracy(own.median)} with a global batch of "
        f"{row.global_batch_size:,}, {format_accuracy(before.median)} with {base.global_batch_size:,} in {base.label}"
        f"{'' if min(own.count, before.count) > 1 else ' (one run)'}.",
        variant=row.label,
        advice=f"keep the global batch at {base.global_batch_size:,}, or tune learning rate and epochs for the larger",
        evidence={"accuracy": own.median, "accuracy_before": before.median, "loss": loss},
    )


def _is_lost(own: Spread, before: Spread) -> bool:
    loss = before.median - own.median
    if min(own.count, before.count) < 2:
        return loss >= SINGLE_ACCURACY_LOSS
    return own.high < before.low and loss >= ACCURACY_LOSS


def find_fewer_ranks(results: StudyResults) -> list[Statement]:
    """Rows whose ranks did not all train together."""
    return [
        Statement(
            code="fewer-ranks",
            sentence=f"{row.label} was asked for {row.ranks_asked} ranks, and {row.ranks_worked} trained together: its "
            f"figures are those of {row.ranks_worked}.",
            variant=row.label,
            advice="see hpcdist why and status for the job; the script must start one rank per GPU",
            evidence={"ranks_asked": row.ranks_asked, "ranks_worked": row.ranks_worked},
        )
        for row in results.done
        if row.ranks_worked is not None and row.ranks_worked < row.ranks_asked
    ]


def find_failures(results: StudyResults) -> Statement | None:
    """Jobs that ended badly or were refused."""
    all_trials = list(_trials(results))
    bad = [pair for pair in all_trials if pair[1].state not in {"COMPLETED", *_UNFINISHED}]
    if not bad:
        return None
    shown = "; ".join(
        f"{label} run {trial.repeat} {trial.state}: {trial.reason or 'no reason'}" for label, trial in bad[:2]
    )
    more = f"; and {len(bad) - 2} more" if len(bad) > 2 else ""
    return Statement(
        code="failed",
        sentence=f"{len(bad)} of {len(all_trials)} jobs did not complete ({shown}{more}); the figures are of the "
        "others.",
        advice="hpcdist why JOB says more; hpcdist study run again submits what is missing",
        evidence={"failed": len(bad), "jobs": len(all_trials)},
    )


def find_unfinished(results: StudyResults) -> Statement | None:
    """Jobs that have not ended, or were never sent."""
    all_trials = list(_trials(results))
    open_ones = [pair for pair in all_trials if pair[1].state in _UNFINISHED]
    if not open_ones:
        return None
    names = join_names(dict.fromkeys(label for label, _ in open_ones))
    return Statement(
        code="unfinished",
        sentence=f"{len(open_ones)} of {len(all_trials)} jobs have not ended or were not submitted, of {names}: this "
        "verdict may change.",
        evidence={"unfinished": len(open_ones), "jobs": len(all_trials)},
    )


def _trials(results: StudyResults) -> Iterable[tuple[str, TrialRow]]:
    return ((row.label, trial) for row in results.rows for trial in row.trials)


def find_wide_spread(results: StudyResults) -> Statement | None:
    """Repeats that differ too much to show anything."""
    wide = [
        ((row.wall_s.high - row.wall_s.low) / row.wall_s.median, row.label, row.wall_s.low, row.wall_s.high)
        for row in results.done
        if row.wall_s and row.wall_s.median and row.wall_s.high - row.wall_s.low > WIDE_SPREAD * row.wall_s.median
    ]
    if not wide:
        return None
    share, label, low, high = max(wide, key=itemgetter(0))
    others = [one[1] for one in wide if one[1] != label]
    also = f" (likewise {join_names(others)})" if others else ""
    return Statement(
        code="wide-spread",
        sentence=f"The runs of {label} differ by {format_percent(share)}, {format_time(low)} to {format_time(high)}"
        f"{also}; smaller differences between layouts can't be seen.",
        variant=label,
        advice="more repeats, on nodes that nobody else uses",
        evidence={"spread_share": share, "low_s": low, "high_s": high},
    )


def find_single_runs(results: StudyResults) -> Statement | None:
    """Layouts that ran once: their differences are not called significant."""
    once = [row.label for row in results.done if row.wall_s and row.wall_s.count == 1]
    if not once or len(results.done) < 2:
        return None
    return Statement(
        code="single-run",
        sentence=f"{join_names(once)} completed once only: a figure without a spread; differences under 10 % are taken "
        "for none.",
        advice="repeat = 3 in the study file",
        evidence={"variants": len(once)},
    )
