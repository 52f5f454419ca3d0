"""What a report is made from: a study's records or some jobs', their scripts, versions and dates."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.config.job import JobSpec, Layout
from hpcdist.errors import HpcdistError, NotFoundError
from hpcdist.jobs.job import Job
from hpcdist.records.job import JobRecord, split_task
from hpcdist.records.store import RunRecord, Store
from hpcdist.report.compare import compare
from hpcdist.report.model import Comparison, VariantUsage
from hpcdist.studies.state import load_study
from hpcdist.studies.study import Study, Trial, Variant
from hpcdist.studies.trials import read_records

# What differs from job to job without making another training of it.
_IRRELEVANT = frozenset(
    {"name", "layout", "training", "seed", "data_dir", "resume_from", "comment", "dependency", "time", "array"}
)
_SHAPE = frozenset({"nodes", "gpus", "tasks_per_node"})


def make_study(jobs: Sequence[JobSpec]) -> tuple[Study, list[Variant], list[str]]:
    """Return the study that these jobs are the trials of, its variants, and of each job its variant's label.

    Each layout is a variant; what else differs between the jobs is taken for swept.
    """
    options = [_flatten(job) for job in jobs]
    swept = _find_swept([job.layout.name for job in jobs], options)
    variants: dict[str, Variant] = {}
    labels = []
    for job, one in zip(jobs, options, strict=True):
        settings = {name: one.get(name) for name in swept}
        label = " ".join([job.layout.name, *[f"{name}={format_setting(value)}" for name, value in settings.items()]])
        variants.setdefault(label, Variant(label=label, layout=job.layout, settings=settings, options=one))
        labels.append(label)
    per_rank = [job.training.batch_size_per_rank is not None for job in jobs if not job.command]
    study = Study(
        name=" ".join(dict.fromkeys(job.name for job in jobs)),
        layouts=tuple(_shape(variant.layout) for variant in variants.values()),
        scaling="weak" if per_rank and all(per_rank) else "strong",
    )
    return study, list(variants.values()), labels


def _find_swept(shapes: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options whose values differ; CPUs and memory go with the layout, and count only where they differ in one."""
    found = []
    for name in sorted({name for one in options for name in one}):
        of_layout = name in Layout.__struct_fields__
        first: dict[str, Any] = {}
        for shape, one in zip(shapes, options, strict=True):
            if first.setdefault(shape if of_layout else "", one.get(name)) != one.get(name):
                found.append(name)
                break
    return found


def _flatten(job: JobSpec) -> dict[str, Any]:
    """A job's options that can matter for its figures, by their names, without those nobody changed."""
    parts: tuple[msgspec.Struct, ...] = (job, job.layout) if job.command else (job, job.layout, job.training)
    found: dict[str, Any] = {}
    for part in parts:
        plain: Mapping[str, Any] = msgspec.to_builtins(part)
        usual: Mapping[str, Any] = msgspec.to_builtins(JobSpec(name="x") if part is job else type(part)())
        found |= {name: value for name, value in plain.items() if value != usual.get(name)}
    return {name: value for name, value in found.items() if name not in _IRRELEVANT | _SHAPE}


def _shape(layout: Layout) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(layout)
    return {name: value for name, value in plain.items() if name in _SHAPE and value is not None}


def format_setting(value: object) -> str:
    """A setting's value in a label: of a list its words, of what was left out a dash."""
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


_VERSIONS = ("python", "hpcdist", "torch", "pytorch-lightning", "numpy")
Trials = list[tuple[Trial, JobRecord | None]]


def report_on(names: Sequence[str], root: Path, *, details: bool = False) -> Comparison:
    """Compare a study by its name, or several jobs by runs or job ids.

    `details` takes up each run's script, and what one job of each variant used over time.

    Raises:
        NotFoundError: No study and no job here is called that.
    """
    found = _read_study(names[0], root) if len(names) == 1 else None
    study, variants, trials = found or _read_jobs(names, root)
    runs = _read_runs(trials, root)
    texts = {name: text for name in runs if (text := _read_script(name, root))} if details else {}
    comparison = compare(
        study,
        variants,
        trials,
        made_at_s=time.time(),
        conditions=describe_conditions(list(runs.values()), [record for _, record in trials if record]),
        scripts=texts,
    )
    return msgspec.structs.replace(comparison, usage=_read_usage(trials, root)) if details else comparison


def _read_study(name: str, root: Path) -> tuple[Study, Sequence[Variant], Trials] | None:
    """A study that was run here; None where none is called that."""
    if not (root / "jobs" / "studies" / name / "study.json").is_file():
        return None
    state = load_study(name, root)
    return state.study, state.variants, read_records(state)


def _read_jobs(names: Sequence[str], root: Path) -> tuple[Study, Sequence[Variant], Trials]:
    """Jobs of this project as a study."""
    jobs = [task for name in names for task in _find_tasks(name, root)]
    specs = [job.run.record().job for job in jobs]
    study, variants, labels = make_study(specs)
    trials: Trials = []
    counts: dict[str, int] = {}
    for job, label in zip(jobs, labels, strict=True):
        counts[label] = counts.get(label, 0) + 1
        trial = Trial(variant=label, repeat=counts[label], run=job.run.name, task=job.task)
        trials.append((trial, job.record()))
    return study, variants, trials


def _find_tasks(name: str, root: Path) -> list[Job]:
    """The job a person means; of an array all its tasks."""
    try:
        job = Job.find(name, root)
    except NotFoundError:
        raise NotFoundError(
            f"no study and no run here is called {name!r}", "hpcdist study list, or hpcdist status for the runs"
        ) from None
    if job.task is not None:
        return [job]
    tasks = [split_task(status.job_id)[1] for status in job.statuses()]
    return [Job(job.run, task) for task in tasks] if tasks and all(tasks) else [job]


def _read_runs(trials: Iterable[tuple[Trial, JobRecord | None]], root: Path) -> dict[str, RunRecord]:
    """What each run was, those without a readable `job.json` left out."""
    store, found = Store(root), {}
    for name in dict.fromkeys(trial.run for trial, _ in trials if trial.run):
        with suppress(HpcdistError):
            found[name] = store.run(name).record()
    return found


def _read_script(name: str, root: Path) -> str | None:
    try:
        return Store(root).run(name).script.read_text(errors="replace")
    except OSError:
        return None


def _read_usage(trials: Trials, root: Path) -> dict[str, VariantUsage]:
    """The curves of the first completed job of each variant that has any."""
    store = Store(root)
    found: dict[str, VariantUsage] = {}
    for trial, record in sorted(trials, key=lambda pair: pair[0].repeat):
        if trial.variant in found or trial.run is None or record is None or record.status.state != "COMPLETED":
            continue
        if curves := store.run(trial.run).task(trial.task).curves():
            found[trial.variant] = VariantUsage(run=trial.run, repeat=trial.repeat, curves=tuple(curves))
    return found


def describe_conditions(runs: Sequence[RunRecord], records: Sequence[JobRecord]) -> dict[str, str]:
    """Versions, cluster, nodes, commit and dates, as printed; several values where the runs differ."""
    found = {name: _join(run.versions.get(name) for run in runs) for name in _VERSIONS}
    found["Slurm"] = _join(run.slurm_version for run in runs)
    found["cluster"] = _join("none, run on this machine" if run.backend == "local" else run.cluster for run in runs)
    found["nodes"] = _join(
        (record.efficiency.node_list if record.efficiency else None) or record.status.nodes for record in records
    )
    found["git commit"] = _join(run.git_commit for run in runs)
    times_s = [record.efficiency.started_at_s for record in records if record.efficiency]
    known_s = [one for one in times_s if one is not None]
    if known_s:
        days = dict.fromkeys(datetime.fromtimestamp(one).date().isoformat() for one in (min(known_s), max(known_s)))
        found["run on"] = " to ".join(days)
    return {name: text for name, text in found.items() if text}


def _join(values: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))
