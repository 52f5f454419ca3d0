"""The records in sacct's answer. Pure: nothing here runs sacct.

`sacct -P` with fixed fields works on every Slurm release, streams, and costs a quarter of `--json`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import msgspec

from hpcdist.records.efficiency import Efficiency, Gathering
from hpcdist.records.job import CONTINUED_STATES
from hpcdist.sacct_job import fold_rows
from hpcdist.sacct_question import DELIMITER
from hpcdist.sacct_rows import iter_rows
from hpcdist.text import printable


def parse_sacct(
    rows: str | Iterable[str], delimiter: str = DELIMITER, group_name: Callable[[str], str] = printable
) -> list[Efficiency]:
    """A record per job (array task, component), in order of submission, from what `sacct_arguments` asks for.

    The runs of a requeued job are one record: the last run's, with the others as `earlier_runs`. Ids are used again
    once a cluster reached its highest; of unrelated jobs with one id the last is kept, as sacct does on its own.
    A first line with field names is understood too, in any order and with any delimiter, and so is `sacct --json`.

    Args:
        rows: sacct's output, or its lines.
        delimiter: What parts the fields.
        group_name: What to call the group in a row, a number where `sacct_arguments` asked.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    lines = rows.split("\n") if isinstance(rows, str) else rows
    runs = sorted(_iter_runs(lines, delimiter, group_name), key=lambda run: run.submitted_at_s or 0.0)
    found: dict[tuple[str | None, str], Efficiency] = {}
    for one in _chain(runs):
        found.pop((one.cluster, one.job_id), None)
        found[one.cluster, one.job_id] = one
    return list(found.values())


def iter_sacct(
    lines: Iterable[str],
    delimiter: str = DELIMITER,
    group_name: Callable[[str], str] = printable,
    gathering: Gathering | None = None,
) -> Iterator[Efficiency]:
    """As `parse_sacct`, as the rows come, for any number of jobs: only runs that were requeued are held back.

    Unrelated jobs with one id are all given out, and the rows must be in order of time, as sacct prints them.

    Args:
        lines: sacct's lines.
        delimiter: What parts the fields.
        group_name: As in `parse_sacct`.
        gathering: How the cluster gathers usage, where it was asked.

    Raises:
        ParseError: A line is no row of sacct's.
    """
    return _chain(_iter_runs(lines, delimiter, group_name, gathering))


def _iter_runs(
    lines: Iterable[str], delimiter: str, group_name: Callable[[str], str], gathering: Gathering | None = None
) -> Iterator[Efficiency]:
    """Every run, whether the lines are rows or `sacct --json`."""
    rest = iter(lines)
    first = next(rest, "")
    if not first.lstrip().startswith("{"):
        yield from fold_rows(iter_rows(itertools.chain([first], rest), delimiter), group_name, gathering)
        return
    from hpcdist.sacct_json import read_json_rows  # a dozen types that rows of text do not need

    release, rows = read_json_rows("\n".join([first, *rest]))
    for run in fold_rows(rows, group_name):
        yield msgspec.structs.replace(run, gathering=Gathering(slurm_version=release))


def _chain(runs: Iterable[Efficiency]) -> Iterator[Efficiency]:
    """Puts the runs of a requeued job together: one user's, each but the last ended by a requeue."""
    open_runs: dict[tuple[str | None, str], list[Efficiency]] = {}
    for run in runs:
        if not open_runs and run.state not in CONTINUED_STATES:
            yield run
            continue
        key = (run.cluster, run.job_id)
        before = open_runs.pop(key, [])
        if before and (before[-1].user != run.user or before[-1].array_job_id != run.array_job_id):
            yield _join(before)
            before = []
        if run.state in CONTINUED_STATES:
            open_runs[key] = [*before, run]
        else:
            yield _join([*before, run])
    for held in open_runs.values():
        yield _join(held)


def _join(runs: list[Efficiency]) -> Efficiency:
    if len(runs) == 1:
        return runs[0]
    return msgspec.structs.replace(runs[-1], earlier_runs=tuple(runs[:-1]))
