"""A report's tables, each a value that a page only has to print. Pure."""

from collections.abc import Callable

from hpcdist.comparison import Comparison, Fit, TrialRow, VariantRow, name_rank
from hpcdist.job_status import ENDED_STATES
from hpcdist.report_cells import Cell, Heading, Line, Mark, Table, efficiency_cell, spread_cell
from hpcdist.study import format_settings
from hpcdist.units import (
    format_accuracy,
    format_factor,
    format_moment,
    format_money,
    format_number,
    format_rate,
    format_seconds,
    format_share,
    format_size,
)

_LAWS = {"amdahl": "Amdahl", "karp-flatt": "Karp-Flatt", "usl": "Universal scalability law"}
_MOST_EQUALS = 4


def _name(row: VariantRow) -> Cell:
    notes = ["baseline"] if row.is_baseline else []
    if row.same_as:
        # Of hundreds of equals the names would be most of the page.
        more = f" and {len(row.same_as) - _MOST_EQUALS} more" if len(row.same_as) > _MOST_EQUALS else ""
        notes.append(f"as fast as {', '.join(row.same_as[:_MOST_EQUALS])}{more}")
    return Cell(row.label, "; ".join(notes) or None, "name")


def _headings(*headings: str | tuple[str, str] | tuple[str, str, Mark]) -> tuple[Heading, ...]:
    return tuple(Heading(one) if isinstance(one, str) else Heading(*one) for one in headings)


def tabulate_speed(comparison: Comparison) -> Table:
    """How fast each variant was, and how well it scaled."""
    kind = name_rank(comparison.rows)
    headings = _headings(
        "Layout",
        (f"{kind}s worked", "of asked"),
        "Wall-clock",
        "Start-up",
        ("Throughput", "images/s"),
        "Speedup",
        ("Efficiency", "75 % line"),
        ("To target", _target(comparison)),
        "Accuracy",
    )
    return Table(headings, tuple(_speed_line(row) for row in comparison.rows))


def _target(comparison: Comparison) -> str:
    target = comparison.study.target_accuracy
    return "no target set" if target is None else format_accuracy(target)


def _speed_line(row: VariantRow) -> Line:
    repeats = len(row.trials)
    short = row.ranks_worked is not None and row.ranks_worked < row.ranks_asked
    speedup, efficiency = spread_cell(row.speedup, format_factor, repeats), efficiency_cell(row.efficiency, repeats)
    if row.is_baseline:  # 1 by definition, however often it was run
        speedup, efficiency = speedup._replace(note=None), efficiency._replace(note=None)
    worked = f"{row.ranks_worked if row.ranks_worked is not None else '–'} of {row.ranks_asked}"
    cells = (
        _name(row),
        Cell(worked, "fewer than asked" if short else None, "bad" if short else ""),
        spread_cell(row.wall_s, format_seconds, repeats),
        spread_cell(row.starting_s, format_seconds, repeats),
        spread_cell(row.images_per_s, format_number, repeats),
        speedup,
        efficiency,
        spread_cell(row.time_to_target_s, format_seconds, repeats),
        spread_cell(row.accuracy, format_accuracy, repeats),
    )
    if any(trial.state == "COMPLETED" for trial in row.trials):
        return Line(cells)
    reasons = dict.fromkeys(trial.describe_end() for trial in row.trials)
    failed = any(trial.state in ENDED_STATES for trial in row.trials)
    return Line(cells, "; ".join(reasons) or "no job of it was sent", "failed" if failed else "")


def tabulate_use(comparison: Comparison) -> Table:
    """What each variant took, and how much of that it used."""
    money = comparison.currency or "no prices given"
    headings = _headings(
        "Layout",
        ("CPU used", "of requested"),
        ("by loaders", "of requested"),
        ("Memory used", "of requested"),
        ("GPU used", "mean"),
        f"{name_rank(comparison.rows)}-hours",
        ("Cost", money),
        ("Cost to target", money),
        ("Goodput", "ETTR"),
    )
    lines = []
    for row in comparison.rows:
        repeats = len(row.trials)
        cells = (
            _name(row),
            spread_cell(row.cpu_efficiency, format_share, repeats),
            spread_cell(row.loader_cpu_share, format_share, repeats),
            spread_cell(row.memory_efficiency, format_share, repeats),
            spread_cell(row.gpu_efficiency, format_share, repeats),
            spread_cell(row.gpu_hours, format_number, repeats),
            spread_cell(row.cost, format_money, repeats),
            spread_cell(row.cost_to_target, format_money, repeats),
            spread_cell(row.ettr, format_share, repeats),
        )
        lines.append(Line(cells))
    return Table(headings, tuple(lines))


def tabulate_steps(comparison: Comparison) -> Table:
    """Where a steady-state step goes, and what the network made of the all-reduce."""
    headings = _headings(
        "Layout",
        "Global batch",
        "Step",
        ("Data", "waiting for it"),
        "Compute",
        ("Communication", "exposed"),
        ("of it waiting", "for the slowest rank"),
        "Other",
        ("All-reduced", "per step"),
        ("Network", "and latency"),
        "Slowest rank",
    )
    return Table(headings, tuple(_step_line(row) for row in comparison.rows))


def _step_line(row: VariantRow) -> Line:
    split = row.split
    step_s = split.step_s if split else None
    names = ("data_s", "compute_s", "communication_s", "other_s")
    data, compute, communication, other = (_part(getattr(split, name, None), step_s) for name in names)
    cells = (
        Cell(row.label, None, "name"),
        _plain(row.global_batch_size, format_number),
        _plain(step_s, format_seconds),
        *(data, compute, communication),
        _part(row.waiting_s, step_s),
        other,
        _plain(row.bytes_per_step, format_size),
        _network(row),
        _straggler(row),
    )
    return Line(cells)


_NONE = Cell(None)


def _part(seconds: float | None, step_s: float | None) -> Cell:
    if seconds is None:
        return _NONE
    return Cell(format_seconds(seconds), format_share(seconds / step_s) if step_s else None)


def _network(row: VariantRow) -> Cell:
    latency = None if row.latency_s is None else format_seconds(row.latency_s)
    if row.bandwidth_bytes_per_s is None:
        return Cell(None, latency)
    return Cell(format_rate(row.bandwidth_bytes_per_s), latency)


def _straggler(row: VariantRow) -> Cell:
    slowest = row.straggler
    if slowest is None:
        return _NONE
    return Cell(f"{slowest.rank} on {slowest.host}", f"{format_factor(slowest.slowdown)} the median")


def _plain(value: float | None, form: Callable[[float], str]) -> Cell:
    return _NONE if value is None else Cell(form(value))


def tabulate_fits(comparison: Comparison) -> Table:
    """The laws of scaling that were fitted, and those that could not be."""
    swept = any(fit.settings for fit in comparison.fits)
    headings = _headings(
        "Law",
        "Ranks measured",
        ("Result", "", "wide"),
    )
    lines = []
    for fit in comparison.fits:
        settings = format_settings(fit.settings) if swept else None
        ranks = ", ".join(str(number) for number in fit.ranks) or None
        cells = (Cell(_LAWS[fit.law], settings, "name"), Cell(ranks), Cell(fit.note or describe_fit(fit), None, "wide"))
        lines.append(Line(cells))
    return Table(headings, tuple(lines))


def describe_fit(fit: Fit) -> str:
    """The parameters of a fitted law in words, with their 95 % intervals where there are any."""
    found = fit.parameters
    parts = []
    for name, value in found.items():
        if name == "rises":
            continue
        shown = f"after {value:.4g} ranks no more gain" if name == "peak_ranks" else f"{_parameter(name)} {value:.4g}"
        if name in fit.intervals:
            low, high = fit.intervals[name]
            shown += f" (95 %: {low:.4g} to {high:.4g})"
        parts.append(shown)
    if fit.law == "amdahl" and (serial := found.get("serial_fraction")):
        parts.append(f"so at most {1 / serial:.3g} times as fast, extrapolated to any number of ranks")
    if "rises" in found:
        parts.append("rising with the ranks: overhead" if found["rises"] else "not rising: serial work, not overhead")
    return "; ".join(parts)


def _parameter(name: str) -> str:
    if name.startswith("e_"):
        return f"e at {name.removeprefix('e_')} ranks"
    return {"alpha": "contention α", "beta": "coherency β", "gamma": "γ"}.get(name, name.replace("_", " "))


def tabulate_predictions(comparison: Comparison) -> Table:
    """What was predicted, and how far off it was."""
    headings = _headings(
        "Layout",
        ("Predicted", "wall-clock"),
        ("Measured", "median"),
        ("Off by", "of measured"),
        ("Predicted from", "", "wide"),
    )
    lines = []
    for one in comparison.predictions:
        off = (one.wall_s - one.measured_s) / one.measured_s if one.measured_s else None
        inside = one.measured_s is not None and one.low_s <= one.measured_s <= one.high_s
        cells = (
            Cell(one.variant, None, "name"),
            Cell(format_seconds(one.wall_s), f"{format_seconds(one.low_s)}–{format_seconds(one.high_s)}"),
            Cell(None, "not run yet") if one.measured_s is None else Cell(format_seconds(one.measured_s)),
            _NONE if off is None else Cell(f"{100 * off:+.1f} %", "in the range" if inside else "outside the range"),
            Cell(one.basis, None, "wide"),
        )
        lines.append(Line(cells))
    return Table(headings, tuple(lines))


def tabulate_trials(comparison: Comparison) -> Table:
    """Every job, those that failed or never ran too, each with its reason."""
    headings = _headings(
        "Layout",
        ("Run", "", "wide"),
        "State",
        ("Nodes", "and start"),
        "Queued",
        "Start-up",
        "Wall-clock",
        ("Throughput", "images/s"),
        "Accuracy",
        f"{name_rank(comparison.rows)}-hours",
        ("Cost", comparison.currency or "no prices given"),
    )
    lines = tuple(_trial_line(row, trial) for row in comparison.rows for trial in row.trials)
    return Table(headings, lines)


def _trial_line(row: VariantRow, trial: TrialRow) -> Line:
    failed = trial.state in ENDED_STATES and trial.state != "COMPLETED"
    cells = (
        Cell(row.label, f"repeat {trial.repeat}", "name"),
        Cell(trial.run, f"job {trial.job_id}" if trial.job_id else "no job", "wide"),
        Cell(trial.state, None, "bad" if failed else ""),
        Cell(trial.nodes, None if trial.started_at_s is None else format_moment(trial.started_at_s)),
        _plain(trial.queued_s, format_seconds),
        _plain(trial.starting_s, format_seconds),
        _plain(trial.wall_s, format_seconds),
        _plain(trial.images_per_s, format_number),
        _plain(trial.accuracy, format_accuracy),
        _plain(trial.gpu_hours, format_number),
        _plain(trial.cost, format_money),
    )
    return Line(cells, trial.reason, "failed" if failed else "")
