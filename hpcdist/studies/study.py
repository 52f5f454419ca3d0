"""A study: the same training over several layouts and settings, repeated, to be compared."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from hpcdist.config.job import Layout
from hpcdist.config.site import Prices

Scaling = Literal["strong", "weak"]
Scale = Literal["full", "small"]
NOT_SUBMITTED = "NOT SUBMITTED"
"""In place of Slurm's state: of a trial that no job was made for."""


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures that somebody printed elsewhere, to stand beside what is measured here and never among it.

    Attributes:
        what: What they are: "training time".
        unit: Theirs: "s".
        source: Where they were printed.
        figures: By the variants' labels.
        unassigned: Figures of which nobody knows here which variant they are of, in the order they were printed.
    """

    what: str
    unit: str
    source: str
    figures: dict[str, float] = {}
    unassigned: tuple[float, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What a study may take at most.

    Attributes:
        max_concurrent: Jobs of it that may run at once; None leaves that to the scheduler.
        max_gpu_hours: GPU-hours that all its jobs may take at most, by their time limits (of a CPU layout:
            rank-hours); None is no limit.
    """

    max_concurrent: int | None = None
    max_gpu_hours: float | None = None


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A study as its file has it, checked.

    Attributes:
        name: Its name, also a folder's.
        options: Options of `hpcdist submit` that all its jobs share, by their names with underscores; a user's
            program is `command`.
        layouts: Options that make each layout (nodes, gpus, constraint, mem, ...), in the file's order.
        grid: Swept options; every combination is run.
        zip: Swept options of equal length; the first values go together, then the second ones.
        repeat: How often everything is run, each time with another seed.
        scaling: "strong" keeps the global batch whatever the layout, "weak" the batch per rank.
        baseline: Label of the variant that speedups refer to; None is the first one of a single rank, else the first.
        target_accuracy: Test accuracy to be reached, a fraction; None compares no time to it.
        prices: What the cluster charges.
        limits: What it may take.
        scale: "small" where its file's `[small]` was laid over the rest.
        references: What others printed of the same comparison.
    """

    name: str
    options: dict[str, Any] = {}
    layouts: tuple[dict[str, Any], ...]
    grid: dict[str, tuple[Any, ...]] = {}
    zip: dict[str, tuple[Any, ...]] = {}
    repeat: int = 1
    scaling: Scaling = "strong"
    baseline: str | None = None
    target_accuracy: float | None = None
    prices: Prices = Prices()
    limits: Limits = Limits()
    scale: Scale = "full"
    references: tuple[Reference, ...] = ()


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One layout with one choice of the swept options.

    Attributes:
        label: `2x1`, or `2x1 batch_size=128` where something is swept.
        layout: Its shape.
        settings: The swept options' values, and those that its layout has beside its shape and others do not.
        options: All options of its jobs, by their names with underscores.
    """

    label: str
    layout: Layout
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One job of a study: a variant, run once.

    Attributes:
        variant: Its label.
        repeat: From 1.
        run: Name of the run that it is, or is a task of; None before it is sent.
        task: The array task's number; None where the run is no array.
        digest: Of what it runs: a trial whose options were changed is another one.
    """

    variant: str
    repeat: int
    run: str | None = None
    task: str | None = None
    digest: str = ""


def settings_key(settings: Mapping[str, Any], without: frozenset[str] = frozenset()) -> bytes:
    """What variants with the same settings have in common, some settings left out."""
    return msgspec.json.encode({name: value for name, value in settings.items() if name not in without}, order="sorted")


def format_settings(settings: Mapping[str, Any]) -> str:
    """`batch_size=128 precision=32`; empty for no settings."""
    return " ".join(f"{name}={value}" for name, value in settings.items())
