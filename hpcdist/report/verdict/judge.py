"""The verdict: a few sentences with their evidence, the answers first, then why."""

from collections.abc import Iterable, Sequence

import msgspec

from hpcdist.report.model import Statement, VariantRow
from hpcdist.report.scaling import EFFICIENCY_LINE
from hpcdist.report.verdict.bottlenecks import (
    find_communication,
    find_data_starvation,
    find_oversubscription,
    find_small_batch,
    find_straggler_cost,
    is_mostly_network,
)
from hpcdist.report.verdict.recommendation import answer
from hpcdist.report.verdict.results import StudyResults, build_results, name_ranks
from hpcdist.report.verdict.run_quality import explain_runs
from hpcdist.report.verdict.strategies import find_strategies
from hpcdist.studies.study import Study
from hpcdist.units import format_percent, format_time

MOST_PER_RULE = 3
"""A rule that fires for every variant of a large sweep says the same each time."""
_PARTS = ("step_s", "compute_s", "communication_s", "data_s", "other_s")


def judge(rows: Sequence[VariantRow], study: Study) -> tuple[Statement, ...]:
    """Say what a study's rows show.

    What to use for the fastest result, for the cheapest and how much at most; then why more did not help, and what
    would.
    """
    results = build_results(rows, study)
    reasons = [statement for row in results.done for statement in explain_row(row, results)]
    reasons += explain_runs(results)
    return (*answer(results), *_cut([*find_strategies(results), *reasons]))


def explain_row(row: VariantRow, results: StudyResults) -> list[Statement]:
    """What the steps of one variant explain."""
    found = [find_data_starvation(row), find_straggler_cost(row)]
    crowded = find_oversubscription(row, results)
    communication = find_communication(row, results)
    # Ranks without a core of their own answer late: then the network is named only where the probe alone convicts it.
    if communication and (crowded is None or is_mostly_network(row)):
        found.append(communication)
    found.append(crowded)
    # What either explains would look like a batch too small for its step.
    if not crowded and not communication:
        found.append(find_small_batch(row, results))
    statements = [statement for statement in found if statement]
    if not statements and (unexplained := find_unexplained(row, results)):
        statements.append(unexplained)
    return statements


def find_unexplained(row: VariantRow, results: StudyResults) -> Statement | None:
    """Under the 75 % line, and no rule says why: where the steps go, for the reader to judge."""
    split, efficiency = row.split, row.efficiency
    if split is None or efficiency is None or efficiency.median >= EFFICIENCY_LINE or not results.smaller(row):
        return None
    parts = f"compute {format_time(split.compute_s)}, communication {format_time(split.communication_s)}"
    if row.waiting_s:
        parts += f" (of it waiting for slower ranks {format_time(row.waiting_s)})"
    parts += f", data {format_time(split.data_s)}, other {format_time(split.other_s)}"
    return Statement(
        code="unexplained",
        sentence=f"{row.label} has {format_percent(efficiency.median)} efficiency with "
        f"{name_ranks(row.ranks, row)}, and no single cause stands out: of each step of {format_time(split.step_s)} "
        f"{parts}.",
        variant=row.label,
        evidence={"efficiency": efficiency.median} | {name: getattr(split, name) for name in _PARTS},
    )


def _cut(statements: Iterable[Statement]) -> list[Statement]:
    """The first statements of each kind; the last of them says how many more there are."""
    by_code: dict[str, list[Statement]] = {}
    for statement in statements:
        by_code.setdefault(statement.code, []).append(statement)
    found: list[Statement] = []
    for several in by_code.values():
        shown, more = several[:MOST_PER_RULE], len(several) - MOST_PER_RULE
        if more > 0:
            last = shown[-1]
            noun = "variant" if more == 1 else "variants"
            shown[-1] = msgspec.structs.replace(last, sentence=f"{last.sentence} ({more} more {noun} likewise.)")
        found += shown
    return found
