"""A study's report as one HTML file that needs nothing else: no network, no scripts.

Readable on paper, on a phone and in the dark. Everything that comes from a study, a job or a cluster is escaped.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from hpcdist.records.job import ENDED_STATES
from hpcdist.report.format import Cell, Heading, Table, TableRow, efficiency_cell, format_evidence, spread_cell
from hpcdist.report.model import Comparison, Fit, Prediction, Statement, TrialRow, VariantRow, name_rank
from hpcdist.report.plot_figures import name_baseline
from hpcdist.report.plots import Plot, draw_plots, draw_usage_plots
from hpcdist.report.text import describe_references, tabulate_references
from hpcdist.report.verdict.results import join_names
from hpcdist.studies.study import format_settings
from hpcdist.submission.render import packaged_templates
from hpcdist.text import printable
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
_NO_PRICES = "no prices given"
_NONE = Cell(None)


class _Column(NamedTuple):
    """A column of a table: its heading, and the cell of each row."""

    heading: Heading
    cell: Callable[[Any], Cell]


def _tabulate(columns: Sequence[_Column], rows: Iterable[Any]) -> Table:
    lines = tuple(TableRow(tuple(column.cell(row) for column in columns)) for row in rows)
    return Table(tuple(column.heading for column in columns), lines)


def _spread(name: str, form: Callable[[float], str], title: str, unit: str = "") -> _Column:
    """A figure of the completed repeats."""
    return _Column(Heading(title, unit), lambda row: spread_cell(getattr(row, name), form, len(row.trials)))


def _figure(name: str, form: Callable[[float], str], title: str, unit: str = "") -> _Column:
    """A figure of its own."""

    def cell(row: VariantRow | TrialRow) -> Cell:
        value = getattr(row, name)
        return _NONE if value is None else Cell(form(value))

    return _Column(Heading(title, unit), cell)


def _name(row: VariantRow) -> Cell:
    notes = ["baseline"] if row.is_baseline else []
    if row.same_as:
        # Of hundreds of equals the names would be most of the page.
        notes.append(f"as fast as {join_names(row.same_as, _MOST_EQUALS)}")
    return Cell(row.label, "; ".join(notes) or None, "name")


def tabulate_speed(comparison: Comparison) -> Table:
    """How fast each variant was, and how well it scaled."""
    target = comparison.study.target_accuracy
    goal = "no target set" if target is None else format_accuracy(target)
    columns = (
        _Column(Heading("Layout"), _name),
        _Column(Heading(f"{name_rank(comparison.rows)}s worked", "of asked"), _worked),
        _spread("wall_s", format_seconds, "Wall-clock"),
        _spread("starting_s", format_seconds, "Start-up"),
        _spread("images_per_s", format_number, "Throughput", "images/s"),
        _Column(Heading("Speedup"), _speedup),
        _Column(Heading("Efficiency", "75 % line"), _efficiency),
        _spread("time_to_target_s", format_seconds, "To target", goal),
        _spread("accuracy", format_accuracy, "Accuracy"),
    )
    table = _tabulate(columns, comparison.rows)
    lines = zip(table.lines, comparison.rows, strict=True)
    return table._replace(lines=tuple(_explain(line, row) for line, row in lines))


def _worked(row: VariantRow) -> Cell:
    short = row.ranks_worked is not None and row.ranks_worked < row.ranks_asked
    worked = f"{row.ranks_worked if row.ranks_worked is not None else '–'} of {row.ranks_asked}"
    return Cell(worked, "fewer than asked" if short else None, "bad" if short else "")


def _speedup(row: VariantRow) -> Cell:
    cell = spread_cell(row.speedup, format_factor, len(row.trials))
    return cell._replace(note=None) if row.is_baseline else cell  # 1 by definition, however often it was run


def _efficiency(row: VariantRow) -> Cell:
    cell = efficiency_cell(row.efficiency, len(row.trials))
    return cell._replace(note=None) if row.is_baseline else cell


def _explain(line: TableRow, row: VariantRow) -> TableRow:
    """Adds to a variant of which no job completed why that is."""
    if any(trial.state == "COMPLETED" for trial in row.trials):
        return line
    reasons = dict.fromkeys(trial.describe_end() for trial in row.trials)
    failed = any(trial.state in ENDED_STATES for trial in row.trials)
    return line._replace(remark="; ".join(reasons) or "no job of it was sent", mark="failed" if failed else "")


def tabulate_use(comparison: Comparison) -> Table:
    """What each variant took, and how much of that it used."""
    money = comparison.currency or _NO_PRICES
    columns = (
        _Column(Heading("Layout"), _name),
        _spread("cpu_efficiency", format_share, "CPU used", "of requested"),
        _spread("loader_cpu_share", format_share, "by loaders", "of requested"),
        _spread("memory_efficiency", format_share, "Memory used", "of requested"),
        _spread("gpu_efficiency", format_share, "GPU used", "mean"),
        _spread("gpu_hours", format_number, f"{name_rank(comparison.rows)}-hours"),
        _spread("cost", format_money, "Cost", money),
        _spread("cost_to_target", format_money, "Cost to target", money),
        _spread("ettr", format_share, "Goodput", "ETTR"),
    )
    return _tabulate(columns, comparison.rows)


def tabulate_steps(comparison: Comparison) -> Table:
    """Where a steady-state step goes, and what the network made of the all-reduce."""
    columns = (
        _Column(Heading("Layout"), lambda row: Cell(row.label, None, "name")),
        _figure("global_batch_size", format_number, "Global batch"),
        _Column(Heading("Step"), lambda row: Cell(format_seconds(row.split.step_s)) if row.split else _NONE),
        _part("data_s", "Data", "waiting for it"),
        _part("compute_s", "Compute"),
        _part("communication_s", "Communication", "exposed"),
        _part("waiting_s", "of it waiting", "for the slowest rank"),
        _part("other_s", "Other"),
        _figure("bytes_per_step", format_size, "All-reduced", "per step"),
        _Column(Heading("Network", "and latency"), _network),
        _Column(Heading("Slowest rank"), _straggler),
    )
    return _tabulate(columns, comparison.rows)


def _part(name: str, title: str, unit: str = "") -> _Column:
    """A part of the step, with its share of it."""

    def cell(row: VariantRow) -> Cell:
        seconds = row.waiting_s if name == "waiting_s" else getattr(row.split, name, None)
        if seconds is None:
            return _NONE
        step_s = row.split.step_s if row.split else None
        return Cell(format_seconds(seconds), format_share(seconds / step_s) if step_s else None)

    return _Column(Heading(title, unit), cell)


def _network(row: VariantRow) -> Cell:
    rate = None if row.bandwidth_bytes_per_s is None else format_rate(row.bandwidth_bytes_per_s)
    return Cell(rate, None if row.latency_s is None else format_seconds(row.latency_s))


def _straggler(row: VariantRow) -> Cell:
    slowest = row.straggler
    if slowest is None:
        return _NONE
    return Cell(f"{slowest.rank} on {slowest.host}", f"{format_factor(slowest.slowdown)} the median")


def tabulate_fits(comparison: Comparison) -> Table:
    """The laws of scaling that were fitted, and those that could not be."""
    swept = any(fit.settings for fit in comparison.fits)
    columns = (
        _Column(
            Heading("Law"), lambda fit: Cell(_LAWS[fit.law], format_settings(fit.settings) if swept else None, "name")
        ),
        _Column(Heading("Ranks measured"), lambda fit: Cell(", ".join(map(str, fit.ranks)) or None)),
        _Column(Heading("Result", "", "wide"), lambda fit: Cell(fit.note or describe_fit(fit), None, "wide")),
    )
    return _tabulate(columns, comparison.fits)


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
    columns = (
        _Column(Heading("Layout"), lambda one: Cell(one.variant, None, "name")),
        _Column(
            Heading("Predicted", "wall-clock"),
            lambda one: Cell(format_seconds(one.wall_s), f"{format_seconds(one.low_s)}–{format_seconds(one.high_s)}"),
        ),
        _Column(
            Heading("Measured", "median"),
            lambda one: Cell(None, "not run yet") if one.measured_s is None else Cell(format_seconds(one.measured_s)),
        ),
        _Column(Heading("Off by", "of measured"), _error),
        _Column(Heading("Predicted from", "", "wide"), lambda one: Cell(one.basis, None, "wide")),
    )
    return _tabulate(columns, comparison.predictions)


def _error(one: Prediction) -> Cell:
    if not one.measured_s:
        return _NONE
    inside = one.low_s <= one.measured_s <= one.high_s
    off = (one.wall_s - one.measured_s) / one.measured_s
    return Cell(f"{100 * off:+.1f} %", "in the range" if inside else "outside the range")


def tabulate_trials(comparison: Comparison) -> Table:
    """Every job, those that failed or never ran too, each with its reason."""
    columns = (
        _Column(Heading("Run", "", "wide"), _run),
        _Column(Heading("State"), lambda one: Cell(one.state, None, "bad" if _is_failed(one) else "")),
        _Column(Heading("Nodes", "and start"), lambda one: Cell(one.nodes, _start(one))),
        _figure("queued_s", format_seconds, "Queued"),
        _figure("starting_s", format_seconds, "Start-up"),
        _figure("wall_s", format_seconds, "Wall-clock"),
        _figure("images_per_s", format_number, "Throughput", "images/s"),
        _figure("accuracy", format_accuracy, "Accuracy"),
        _figure("gpu_hours", format_number, f"{name_rank(comparison.rows)}-hours"),
        _figure("cost", format_money, "Cost", comparison.currency or _NO_PRICES),
    )
    lines = []
    for row in comparison.rows:
        for trial in row.trials:
            name = Cell(row.label, f"repeat {trial.repeat}", "name")
            cells = (name, *(column.cell(trial) for column in columns))
            lines.append(TableRow(cells, trial.reason, "failed" if _is_failed(trial) else ""))
    return Table((Heading("Layout"), *(column.heading for column in columns)), tuple(lines))


def _run(trial: TrialRow) -> Cell:
    return Cell(trial.run, f"job {trial.job_id}" if trial.job_id else "no job", "wide")


def _is_failed(trial: TrialRow) -> bool:
    return trial.state in ENDED_STATES and trial.state != "COMPLETED"


def _start(trial: TrialRow) -> str | None:
    return None if trial.started_at_s is None else format_moment(trial.started_at_s)


DASH = "–"
# What no HTML text may hold (HTML standard, "preprocessing the input stream"), and what no UTF-8 file can.
_IMPOSSIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def render_html(comparison: Comparison, plots: Sequence[Plot] | None = None) -> str:
    """Render the report as a whole HTML page, its plots where they are drawn already; it is the same each time."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(packaged_templates() / "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_print,
    )
    plots = draw_plots(comparison) if plots is None else plots
    usage = draw_usage_plots(comparison)
    return environment.get_template("report.html.j2").render(
        study=comparison.study,
        made_at=format_moment(comparison.made_at_s),
        baseline=name_baseline(comparison.rows),
        subtitle=_subtitle(comparison),
        tiles=_tiles(comparison),
        verdict=[_statement(one) for one in comparison.verdict],
        speed=tabulate_speed(comparison),
        use=tabulate_use(comparison),
        printed=tabulate_references(comparison),
        printed_notes=describe_references(comparison),
        steps=tabulate_steps(comparison),
        fits=tabulate_fits(comparison),
        predictions=tabulate_predictions(comparison),
        trials=tabulate_trials(comparison),
        figures=_embed(plots),
        over_time=_embed(usage),
        not_drawn=[plot for plot in (*plots, *usage) if not plot.svg],
        not_measured=comparison.not_measured,
        conditions=comparison.conditions,
        request=_request(comparison),
        scripts=_scripts(comparison),
    )


def _print(value: object) -> object:
    """What an expression of the template prints: a dash for None, other texts on one line and without controls."""
    if value is None:
        return DASH
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _embed(plots: Sequence[Plot]) -> list[dict[str, Any]]:
    return [{**plot._asdict(), "svg": Markup(plot.svg)} for plot in plots if plot.svg]  # noqa: S704 drawn here


def _subtitle(comparison: Comparison) -> str:
    study = comparison.study
    variants, repeats = len(comparison.rows), study.repeat
    kept = "the global batch stays" if study.scaling == "strong" else "the batch per rank stays"
    times = "once" if repeats == 1 else f"{repeats} times"
    small = "small scale: cut down to run in minutes on CPUs; " if study.scale == "small" else ""
    return f"{small}{variants} variant{'s' * (variants != 1)}, each run {times}; {study.scaling} scaling: {kept}"


def _tiles(comparison: Comparison) -> list[tuple[str, str | None]]:
    """What the whole study took, failed jobs included."""
    trials = [trial for row in comparison.rows for trial in row.trials]
    states = Counter(trial.state for trial in trials)
    hours = [trial.gpu_hours for trial in trials if trial.gpu_hours is not None]
    costs = [trial.cost for trial in trials if trial.cost is not None]
    tiles: list[tuple[str, str | None]] = [("Jobs completed", f"{states['COMPLETED']} of {len(trials)}")]
    others = [f"{count} {state.lower()}" for state, count in states.items() if state != "COMPLETED"]
    if others:
        tiles.append(("Jobs not completed", ", ".join(others)))
    known = "" if len(hours) == len(trials) else f" (of {len(hours)} jobs)"
    tiles.append((f"{name_rank(comparison.rows)}-hours in all", format_number(sum(hours)) + known if hours else None))
    if comparison.currency is not None:
        known = "" if len(costs) == len(trials) else f" (of {len(costs)} jobs)"
        tiles.append(("Cost in all", f"{format_money(sum(costs))} {comparison.currency}{known}" if costs else None))
    return tiles


def _statement(one: Statement) -> dict[str, Any]:
    evidence = [format_evidence(name, value) for name, value in one.evidence.items()]
    return {"sentence": one.sentence, "variant": one.variant, "advice": one.advice, "evidence": evidence}


def _request(comparison: Comparison) -> list[tuple[str, str | None]]:
    """What was asked, as the study's file has it."""
    study = comparison.study
    of_nodes = {f"hour of a {name} node": price for name, price in study.prices.node_types.items()}
    by_unit = {"GPU-hour": study.prices.per_gpu_hour, "node-hour": study.prices.per_node_hour, **of_nodes}
    prices = [f"{price:g} per {unit}" for unit, price in by_unit.items() if price is not None]
    most = {"jobs at once": study.limits.max_concurrent, "GPU-hours": study.limits.max_gpu_hours}
    limits = [f"{limit:g} {what}" for what, limit in most.items() if limit is not None]
    target = None if study.target_accuracy is None else format_accuracy(study.target_accuracy)
    return [
        ("Layouts", "; ".join(_pairs(layout) for layout in study.layouts)),
        ("Shared options", _pairs(study.options) or None),
        ("Every combination of", _choices(study.grid)),
        ("Together", _choices(study.zip)),
        ("Repeats", f"{study.repeat}, each with a seed of its own" if study.repeat > 1 else "1"),
        ("Scaling", study.scaling),
        ("Target accuracy", target),
        ("Prices", f"{', '.join(prices)} ({study.prices.currency})" if prices else None),
        ("Limits", ", ".join(limits) or None),
    ]


def _pairs(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in options.items())


def _choices(options: dict[str, tuple[Any, ...]]) -> str | None:
    return "; ".join(f"{name}: {', '.join(_value(one) for one in values)}" for name, values in options.items()) or None


def _value(value: object) -> str:
    return " ".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)


def _scripts(comparison: Comparison) -> list[dict[str, Any]]:
    """Each run's script with the jobs it made; first the runs of the table, then any other."""
    jobs: dict[str, list[str]] = {}
    for row in comparison.rows:
        for trial in row.trials:
            if trial.run is not None and trial.run in comparison.scripts:
                jobs.setdefault(trial.run, []).append(f"{row.label}, repeat {trial.repeat}")
    return [
        {
            "run": run,
            "jobs": f"{made[0]} and {len(made) - 1} more" if len(made) > 3 else "; ".join(made),
            "lines": comparison.scripts[run].count("\n"),
            "text": escape(_IMPOSSIBLE.sub("\ufffd", comparison.scripts[run])),
        }
        for run, made in {**jobs, **{run: jobs.get(run, []) for run in comparison.scripts}}.items()
    ]
