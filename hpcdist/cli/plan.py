"""hpcdist plan."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from hpcdist.cli.options import JSON, SITE, open_here
from hpcdist.cli.output import format_table, print_json
from hpcdist.cli.study import FILE, SCALE, read_study
from hpcdist.config.job import Backend, build_job
from hpcdist.config.project import Project
from hpcdist.errors import SubmitError
from hpcdist.records.job import JobRecord
from hpcdist.records.network import read_probes
from hpcdist.report.model import Spread
from hpcdist.report.predict import Link, PlanRow, make_plan, parse_start, predict_unmeasured
from hpcdist.slurm import sbatch
from hpcdist.studies.batches import make_batches
from hpcdist.studies.state import find_study
from hpcdist.studies.study import Scale, Study, Trial, Variant
from hpcdist.studies.trials import read_records
from hpcdist.studies.variants import expand, list_trials, reconcile
from hpcdist.submission.prepare import choose_backend, complete_job, prepare
from hpcdist.units import format_duration

HEADER = ("VARIANT", "TRIALS", "MISSING", "START", "LIMIT", "GPU-HOURS <=", "COST <=", "WALL", "COST", "BASIS")


@click.command(epilog="Example: hpcdist plan jobs/mnist-layouts.toml")
@FILE
@click.option("--backend", type=click.Choice(["slurm", "local"]), help="Where it would run [Slurm if it is there].")
@SCALE
@SITE
@JSON
def plan(file: Path, *, backend: Backend | None, scale: Scale, as_json: bool) -> None:
    """Say what each variant of a study would wait, take and cost; nothing is sent.

    START is when Slurm would start a job that is submitted now. What it takes at most is by the time limits; WALL and
    COST are as earlier trials of the same variant went, with their range, or as predicted from others.
    """
    project = open_here()
    study = read_study(file, project, scale)
    variants = expand(study, project.defaults)
    known = find_study(study.name, project.root)
    wanted = list_trials(study, variants)
    trials, _ = reconcile(wanted, known.trials if known else (), known.former if known else ())
    records = _records(trials, read_records(known) if known else [])
    chosen = choose_backend(backend)
    answers = _ask_slurm(study, variants, trials, project) if chosen == "slurm" else {}
    predictions = predict_unmeasured(study, variants, records, _links(variants, project))
    rows = make_plan(study, variants, trials, answers=answers, records=records, predictions=predictions)
    if as_json:
        print_json({"study": study.name, "currency": study.prices.currency, "rows": rows})
        return
    click.echo(format_table(HEADER, [_row(row) for row in rows]))
    _show_sums(study, rows)


def _records(
    trials: Sequence[Trial], records: Sequence[tuple[Trial, JobRecord | None]]
) -> list[tuple[Trial, JobRecord | None]]:
    """The records of trials that the file still has, unchanged."""
    current = {(trial.run, trial.task) for trial in trials if trial.run is not None}
    return [(trial, record) for trial, record in records if (trial.run, trial.task) in current]


def _links(variants: Sequence[Variant], project: Project) -> list[Link]:
    """What `hpcdist doctor --deep` measured of the network that these variants' gradients will cross."""
    jobs = [build_job(variant.options) for variant in variants]
    devices = {"cpu" if not job.layout.gpus or job.training.accelerator == "cpu" else "cuda" for job in jobs}
    partitions = {job.partition for job in jobs}
    return [
        Link(ranks=probe.nodes * max(1, probe.gpus), nodes=probe.nodes, probe=probe.all_reduce)
        for probe in read_probes(project.root)
        if probe.device in devices and probe.partition in partitions
    ]


def _ask_slurm(
    study: Study, variants: Sequence[Variant], trials: Sequence[Trial], project: Project
) -> dict[str, tuple[str | None, str | None]]:
    """When one job of each kind of request would start, and Slurm's words where it would refuse it."""
    first = [msgspec.structs.replace(trial, run=None, task=None) for trial in trials if trial.repeat == 1]
    found: dict[str, tuple[str | None, str | None]] = {}
    for batch in make_batches(study, variants, first, largest_array=len(first)):
        alone = {key: value for key, value in batch.options.items() if key not in ("array", "tasks", "task_env")}
        script = prepare(complete_job(alone, project), project, backend="slurm", run=None).script
        answer: tuple[str | None, str | None]
        try:
            answer = (parse_start(sbatch.test_only(script)), None)
        except SubmitError as error:
            answer = (None, error.message)
        found |= {trial.variant: answer for trial in batch.trials}
    return found


def _row(row: PlanRow) -> list[str | None]:
    wall = row.wall_s
    cost, basis = row.likely_cost, f"{wall.count} earlier trial(s)" if wall else None
    if row.predicted:
        wall = row.predicted.wall
        cost, basis = row.predicted_cost, row.predicted.basis
    return [
        row.label,
        str(row.trials),
        str(row.missing),
        row.start or ("refused" if row.refusal else None),
        None if row.time_limit_s is None else format_duration(row.time_limit_s),
        None if row.gpu_hours is None else f"{row.gpu_hours:.2f}",
        None if row.cost is None else f"{row.cost:.2f}",
        _range(wall, "{:.0f}", " s"),
        _range(cost, "{:.2f}", ""),
        basis,
    ]


def _range(spread: Spread | None, form: str, unit: str) -> str | None:
    if spread is None:
        return None
    low, median, high = (form.format(one) for one in (spread.low, spread.median, spread.high))
    return f"{median}{unit}" if low == high else f"{median} ({low}..{high}){unit}"


def _show_sums(study: Study, rows: Sequence[PlanRow]) -> None:
    for row in rows:
        if row.refusal:
            click.echo(f"{row.label} would be refused: {row.refusal}", err=True)
    hours = [row.gpu_hours for row in rows if row.gpu_hours is not None]
    costs = [row.cost for row in rows if row.cost is not None]
    parts = [f"{sum(row.trials for row in rows)} trials"]
    parts.append(f"at most {sum(hours):.2f} GPU-hours" if len(hours) == len(rows) else "no time limit: add time")
    if len(costs) == len(rows):
        parts.append(f"at most {sum(costs):.2f} {study.prices.currency}")
    click.echo("; ".join(parts), err=True)
