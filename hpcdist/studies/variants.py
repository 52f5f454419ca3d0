"""A study's variants: every layout with every choice of the swept options, named."""

import hashlib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.config.job import LAYOUT_KEYS, TABLES, Layout, build_job, merge_options
from hpcdist.config.toml import Path
from hpcdist.errors import UsageError
from hpcdist.studies.study import Study, Trial, Variant
from hpcdist.text import suggest

LABEL = "label"  # of a layout: its own name for what it is, in place of the options in which it differs
# What says when, where to charge and how to keep watch, not what is run: a trial stays the same when these change.
_SCHEDULING = frozenset(
    {
        *("name", "time", "mem", "mem_per_cpu", "account", "qos", "reservation", "exclude", "nodelist", "dependency"),
        *("comment", "mail_type", "mail_user", "max_requeues", "data_dir", "log_every", "hang_timeout"),
    }
)


class StudyError(UsageError):
    """A fault of a study.

    Attributes:
        path: The key to blame, as a path into its file.
    """

    def __init__(self, message: str, hint: str, path: Path) -> None:
        super().__init__(message, hint)
        self.path = path


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One layout with one value of each swept option.

    Attributes:
        layout: Its place among the study's layouts.
        settings: The swept options' values.
        options: The options that the study's file gives its jobs, swept ones included.
    """

    layout: int
    settings: dict[str, Any]
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of what is run: the same for options that only differ in how Slurm is asked."""
        told = {key: value for key, value in self.options.items() if key not in _SCHEDULING}
        return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:12]


def choose(study: Study) -> list[Choice]:
    """Every choice, layout by layout, in the order of the file."""
    # A trial that began again at its time limit would be compared with others that did not, and its limit no limit.
    common = merge_options({"max_requeues": 0}, study.options)
    found = []
    for number, layout in enumerate(study.layouts):
        own = {key: value for key, value in layout.items() if key != LABEL}
        for settings in _sweeps(study):
            options = merge_options(common, own, {"name": study.name})
            found.append(Choice(layout=number, settings=settings, options=_with_settings(options, settings)))
    return found


def _sweeps(study: Study) -> Iterator[dict[str, Any]]:
    together = zip(*study.zip.values(), strict=True) if study.zip else [()]
    for joined in together:
        for combined in itertools.product(*study.grid.values()):
            yield dict(zip(study.zip, joined, strict=True)) | dict(zip(study.grid, combined, strict=True))


def _with_settings(options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in settings.items() if key != "args" and "." not in key}
    merged = merge_options(options, plain)
    for key, value in settings.items():
        table, dot, name = key.partition(".")
        if dot:
            merged[table] = {**merged.get(table, {}), name: value}
    if "args" in settings:
        merged["command"] = [*merged.get("command", ()), *settings["args"]]
    return merged


def expand(study: Study, defaults: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Return the study's variants; its options win over `defaults`, those of `hpcdist.toml`.

    Raises:
        UsageError: Options of a variant can't be used, or two variants are the same.
    """
    choices = choose(study)
    options = [merge_options(defaults, choice.options) for choice in choices]
    layouts = [_build_layout(study, *pair) for pair in zip(choices, options, strict=True)]
    marks = _layout_marks(study, choices, layouts)
    variants: dict[str, Variant] = {}
    for choice, layout, own in zip(choices, layouts, options, strict=True):
        swept = itertools.starmap(_format_pair, choice.settings.items())
        label = " ".join([layout.name, *marks[choice.layout], *swept])
        if label in variants:
            hint = "give each layout and each swept value once"
            raise StudyError(f"two variants are {label!r}", hint, ("layouts", choice.layout))
        settings = {**_own_settings(study.layouts, choice.layout), **choice.settings}
        variants[label] = Variant(label=label, layout=layout, settings=settings, options=own)
    return tuple(variants.values())


def _build_layout(study: Study, choice: Choice, options: Mapping[str, Any]) -> Layout:
    try:
        job = build_job(options)
        if not job.command:
            _check_batch(study, options)
        return job.layout
    except StudyError:
        raise
    except UsageError as error:
        # Such a message begins with the option's name.
        key = error.message.replace("(", " ").replace(":", " ").split(" ")[0]
        key = "mem" if key == "memory" else key
        raise StudyError(error.message, error.hint, _place(study, choice.layout, key)) from None


def _check_batch(study: Study, options: Mapping[str, Any]) -> None:
    """Strong scaling keeps the global batch, weak scaling the batch per rank: the other one would break it."""
    if study.scaling == "strong" and options.get("batch_size_per_rank") is not None:
        raise UsageError(
            "batch_size_per_rank makes the global batch grow with the ranks, which is weak scaling",
            'give batch-size under [options], or write scaling = "weak"',
        )
    # A module of one's own has a batch per rank as it is.
    if study.scaling == "weak" and options.get("batch_size_per_rank") is None and options.get("module") is None:
        raise StudyError(
            "weak scaling needs the batch per rank"
            + (", and batch_size is over all ranks" if options.get("batch_size") is not None else ""),
            "give batch-size-per-rank under [options]",
            _place(study, 0, "batch_size") if options.get("batch_size") is not None else ("scaling",),
        )


def _place(study: Study, layout: int, key: str) -> Path:
    """Where a study's file says something of an option: what it sweeps wins over layouts, those over options."""
    for table, found in (("zip", study.zip), ("grid", study.grid)):
        for name in found:
            if name.partition(".")[0] == key:
                return (table, name)
    if key in study.layouts[layout]:
        return ("layouts", layout, key)
    return ("options", key) if key in study.options else ("layouts", layout)


def _layout_marks(study: Study, choices: Sequence[Choice], layouts: Sequence[Layout]) -> list[list[str]]:
    """What tells each layout from others of its shape: the options in which they differ."""
    names = [""] * len(study.layouts)
    for choice, layout in reversed(list(zip(choices, layouts, strict=True))):
        names[choice.layout] = layout.name
    marks = []
    for name, table in zip(names, study.layouts, strict=True):
        if LABEL in table:
            marks.append([table[LABEL]])
            continue
        alike = [other for other, one in zip(study.layouts, names, strict=True) if one == name]
        keys = [key for key in table if any(other.get(key) != table[key] for other in alike)]
        shape = LAYOUT_KEYS & {"nodes", "gpus", "tasks_per_node"}
        marks.append([_format_pair(key, table[key]) for key in keys if key not in shape])
    return marks


def _own_settings(layouts: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    """What a layout asks for beside its shape and others do not: as if it was swept, tables by their entries."""
    found: dict[str, Any] = {}
    for key, value in layouts[place].items():
        if key in LAYOUT_KEYS | _SCHEDULING | {LABEL} or all(key in one and one[key] == value for one in layouts):
            continue
        found |= {f"{key}.{name}": inner for name, inner in value.items()} if key in TABLES else {key: value}
    return found


def _format_pair(key: str, value: Any) -> str:
    return f"{key}={_format_value(value)}"


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ",".join(itertools.starmap(_format_pair, value.items()))
    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_baseline(study: Study, variants: Sequence[Variant]) -> None:
    """Looks for the baseline among the variants; where something is swept, a layout may stand for its first variant.

    Raises:
        UsageError: There is no such variant.
    """
    labels = [variant.label for variant in variants]
    if study.baseline is None or any(f"{label} ".startswith(f"{study.baseline} ") for label in labels):
        return
    hint = suggest(study.baseline, labels, f"the variants are: {', '.join(labels)}", cutoff=0.3)
    raise StudyError(f"baseline is {study.baseline!r}, and no variant is called so", hint, ("baseline",))


def list_trials(study: Study, variants: Sequence[Variant]) -> tuple[Trial, ...]:
    """All trials of a study, none of them sent: repeat by repeat, so that what changes in time meets all variants."""
    digests = [choice.digest for choice in choose(study)]
    return tuple(
        Trial(variant=variant.label, repeat=repeat, digest=digest)
        for repeat in range(1, study.repeat + 1)
        for variant, digest in zip(variants, digests, strict=True)
    )


def reconcile(
    wanted: Sequence[Trial], known: Sequence[Trial], former: Sequence[Trial]
) -> tuple[tuple[Trial, ...], tuple[Trial, ...]]:
    """Return the wanted trials, with the runs of those that were sent, and the trials that the file no longer has.

    `former` are earlier ones than the known: attempts that were made again, and trials that the file no longer had.
    """
    sent = {_identity(trial): trial for trial in (*former, *known) if trial.run is not None}
    found = tuple(sent.get(_identity(trial), trial) for trial in wanted)
    kept = {(trial.run, trial.task) for trial in found}
    left = [trial for trial in (*former, *known) if trial.run is not None and (trial.run, trial.task) not in kept]
    return found, tuple(dict.fromkeys(left))


def _identity(trial: Trial) -> tuple[str, int, str]:
    return trial.variant, trial.repeat, trial.digest
