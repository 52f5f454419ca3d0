"""A study's report as one HTML file that needs nothing else: no network, no scripts.

Readable on paper, on a phone and in the dark. Everything that comes from a study, a job or a cluster is escaped.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from hpcdist.comparison import Comparison, Statement, VariantRow, name_rank
from hpcdist.plot_scaling import name_baseline
from hpcdist.plots import Plot, draw_plots, draw_usage_plots
from hpcdist.report_cells import format_evidence
from hpcdist.report_reference import describe_references, tabulate_references
from hpcdist.report_tables import (
    tabulate_fits,
    tabulate_predictions,
    tabulate_speed,
    tabulate_steps,
    tabulate_trials,
    tabulate_use,
)
from hpcdist.submission.render import packaged_templates
from hpcdist.text import printable
from hpcdist.units import format_accuracy, format_moment, format_money, format_number

DASH = "–"
# What no HTML text may hold (HTML standard, "preprocessing the input stream"), and what no UTF-8 file can.
_IMPOSSIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def render_html(comparison: Comparison, plots: Sequence[Plot] | None = None) -> str:
    """The report as a whole HTML page; the same comparison gives the same text.

    Args:
        comparison: The report.
        plots: Its plots, where they are drawn already.
    """
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
    jobs: dict[str, list[str]] = {run: [] for run in _runs(comparison.rows) if run in comparison.scripts}
    for row in comparison.rows:
        for trial in row.trials:
            if trial.run in jobs:
                jobs[trial.run].append(f"{row.label}, repeat {trial.repeat}")
    return [
        {
            "run": run,
            "jobs": f"{made[0]} and {len(made) - 1} more" if len(made) > 3 else "; ".join(made),
            "lines": comparison.scripts[run].count("\n"),
            "text": escape(_IMPOSSIBLE.sub("\ufffd", comparison.scripts[run])),
        }
        for run, made in {**jobs, **{run: jobs.get(run, []) for run in comparison.scripts}}.items()
    ]


def _runs(rows: tuple[VariantRow, ...]) -> list[str]:
    return [trial.run for row in rows for trial in row.trials if trial.run is not None]
