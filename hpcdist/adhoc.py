"""Jobs compared without a study's file: the study that they would have been. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.config.job import JobSpec, Layout
from hpcdist.studies.study import Study, Variant

# What differs from job to job without making another training of it.
_IRRELEVANT = frozenset(
    {"name", "layout", "training", "seed", "data_dir", "resume_from", "comment", "dependency", "time", "array"}
)
_SHAPE = frozenset({"nodes", "gpus", "tasks_per_node"})


def make_study(jobs: Sequence[JobSpec]) -> tuple[Study, list[Variant], list[str]]:
    """The study that these jobs are the trials of.

    Each layout is a variant; what else differs between the jobs is taken for swept.

    Args:
        jobs: What was asked for, job by job; at least one.

    Returns:
        The study, its variants, and of each job its variant's label.
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
