"""hpcdist tune."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hpcdist.cli.options import BACKEND, FILE, JSON, SITE, collect_options, job_options, open_here
from hpcdist.cli.output import format_table, print_json
from hpcdist.cli.progress import RunWatch
from hpcdist.cli.study import read_study
from hpcdist.config.job import Backend, merge_options
from hpcdist.config.project import Project
from hpcdist.config.toml import check_writable, parse_toml, read_text, set_options
from hpcdist.errors import HpcdistError
from hpcdist.files import write_atomically
from hpcdist.records.job import JobStatus, Progress
from hpcdist.studies.study import Trial
from hpcdist.studies.tune import Measurement, Tuned, tune
from hpcdist.submission.prepare import choose_backend
from hpcdist.text import dashed, printable_line

HEADER = ("BATCH", "PER RANK", "WORKERS", "IMAGES/S", "BUSY", "MEMORY", "DATA", "NOTE", "RUN")


@click.command(
    "tune",
    epilog="""Examples:

\b
  hpcdist tune --nodes 1 --gpus 2
  hpcdist tune jobs/mnist.toml --dry-run
  hpcdist tune jobs/mnist-layouts.toml --nodes 2 --gpus 1 --target-utilization 0.9
""",
)
@FILE
@job_options
@click.option(
    "--target-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="X",
    help="Take the smallest batch that keeps the GPUs (without any: the CPUs) so busy, a fraction.",
)
@click.option("--most", type=click.IntRange(min=1), metavar="N", help="Largest batch size to try, over all ranks.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=8.0,
    show_default=True,
    metavar="X",
    help="How long each setting is measured.",
)
@BACKEND
@SITE
@click.option("--dry-run", is_flag=True, help="Try, show the difference to FILE, and leave it as it is.")
@JSON
@click.pass_context
def tune_command(
    ctx: click.Context,
    /,
    file: Path | None,
    *,
    target_utilization: float | None,
    most: int | None,
    seconds: float,
    backend: Backend | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the batch size, and the workers that decode images, that a layout trains fastest with.

    Short trainings of the built-in networks, first with the batch size that there is, then with twice as much until
    that gains less than 5 %, takes over 80 % of the memory, or fails. FILE.toml is a job's or a study's file; what was
    found is written into it. Of a study, the first layout is tried unless --nodes, --gpus or --tasks-per-node name one.

    It says nothing of accuracy, which a larger batch may cost.
    """
    project = open_here()
    text = read_text(file) if file else ""
    given = _collect(file, text, options, project)
    watch = TuneWatch()
    found = tune(
        given,
        project,
        backend=choose_backend(backend),
        seconds=seconds,
        target_utilization=target_utilization,
        most=most,
        watch=watch,
    )
    watch.close()
    settings = _settings(found, given)
    changed = set_options(text, settings, str(file)) if file and settings else text
    difference = list(_compare(text, changed, file)) if file else []
    if as_json:
        print_json({"tuned": found, "settings": settings, "file": file and str(file), "difference": difference})
    else:
        _show(found, settings, difference)
    if any(one.is_crowded for one in found.attempts):
        advice = "measure again when the machine is quiet, or with --exclusive on Slurm"
        click.echo(f"nothing is written: {advice}", err=True)
        ctx.exit(1)
    if file and changed != text and not dry_run:
        _write(file, changed)
    ctx.exit(0 if found.chosen else 1)


class TuneWatch(RunWatch):
    """Progress of the trials: which one runs, and how fast it is."""

    def __init__(self) -> None:
        super().__init__("tune")
        self._told: set[object] = set()

    def prepared(self, prepared: Sequence[Any]) -> None:
        """Says what is amiss before the first trial, and not again before each of the others."""
        if not self._told:
            super().prepared(prepared[:1])
            self._told.add("prepared")

    def running(self, trial: Trial, done: int, total: int, status: JobStatus, progress: Progress | None) -> None:
        """Shows the trial that runs."""
        speed = f"  {progress.images_per_s:,.0f} images/s" if progress and progress.images_per_s else ""
        elapsed = "" if status.elapsed_s is None else f"  {status.elapsed_s:.0f} s"
        self.line.show(f"trying {trial.variant}: {status.state}{elapsed}{speed}", f"{trial.variant} {status.state}")


def _collect(file: Path | None, text: str, options: dict[str, Any], project: Project) -> dict[str, Any]:
    """The job's options: of a study those of its first layout, or of the one that was asked for.

    Raises:
        UsageError: The file has a fault, or leaves what is to be found no place.
    """
    values = parse_toml(text, str(file))
    check_writable(values, str(file))
    if file is None or "layouts" not in values:
        return collect_options(file, options)
    study = read_study(file, project)
    given = collect_options(None, options)
    shape = ("nodes", "gpus", "tasks_per_node")
    own = {} if any(given.get(key) is not None for key in shape) else study.layouts[0]
    return merge_options(study.options, own, {"name": study.name}, given)


def _settings(found: Tuned, given: Mapping[str, Any]) -> dict[str, int]:
    """What to write: the batch over all ranks, or per rank where that is what the file says."""
    settings = dict(found.options)
    if "batch_size" in settings and given.get("batch_size_per_rank") is not None:
        settings["batch_size_per_rank"] = settings.pop("batch_size") // found.ranks
    return settings


def _show(found: Tuned, settings: Mapping[str, int], difference: Sequence[str]) -> None:
    click.echo(format_table(HEADER, [_row(one, found) for one in found.attempts]))
    for sentence in (*found.sentences, found.not_promised):
        click.echo(printable_line(sentence))
    if settings:
        click.echo("use: " + " ".join(f"--{dashed(name)} {value}" for name, value in settings.items()))
    for line in difference:
        click.echo(printable_line(line))
    click.echo(f"compare with: hpcdist report {found.studies[0]}", err=True)


def _row(one: Measurement, found: Tuned) -> list[str | None]:
    mark = "*" if found.chosen and one == found.chosen else ""
    return [
        f"{one.batch_size}{mark}",
        f"{one.batch_size / found.ranks:g}",
        None if one.workers is None else str(one.workers),
        None if one.images_per_s is None else f"{one.images_per_s:,.0f}",
        None if one.utilization is None else f"{one.processor} {one.utilization:.0%}",
        None if one.memory_share is None else f"{one.memory_share:.0%}",
        None if one.data_share is None else f"{one.data_share:.0%}",
        "out of memory" if one.out_of_memory else one.failure or ("crowded" if one.is_crowded else None),
        one.run,
    ]


def _compare(before: str, after: str, file: Path | None) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), str(file), str(file), lineterm="", n=1)
    return list(lines)


def _write(file: Path, text: str) -> None:
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise HpcdistError(f"can't write {file}: {error.strerror}", "change it by hand") from None
    click.echo(f"written: {file}", err=True)
