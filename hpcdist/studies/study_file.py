"""A study's file: TOML into a `Study`; every fault is told with its line and key."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.config.job import OPTION_KEYS, TABLES, check_keys, check_name, option_types
from hpcdist.config.secrets import is_secret
from hpcdist.config.site import Prices
from hpcdist.config.toml import Path, find_lines, line_of, parse_toml
from hpcdist.errors import UsageError
from hpcdist.studies.study import Limits, Reference, Scale, Scaling, Study, Variant
from hpcdist.studies.variants import LABEL, StudyError, check_baseline, expand
from hpcdist.text import dashed, printable, suggest, underscored, with_underscores

_FORM = "docs/studies.md shows a whole file"


def read_table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table; empty where there is none."""
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise StudyError(f"{key} is {show(table)}, expected a table", f"write [{key}] on a line of its own", (key,))
    return table


def read_struct(table: Mapping[str, Any], kind: type, path: Path) -> Any:
    """A table whose keys are a type's fields."""
    table = with_underscores(table)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in table:
        if name not in fields:
            raise StudyError(*explain_unknown(name, tuple(fields)), (*path, name))
    for name, field in fields.items():
        if field.required and name not in table:
            raise StudyError(f"{path[0]}: {name} is missing", _FORM, path)
    return kind(**{name: convert(value, fields[name].type, (*path, name)) for name, value in table.items()})


def explain_unknown(key: str, known: tuple[str, ...]) -> tuple[str, str]:
    """What to say of a key that nothing has: message and hint."""
    if key in OPTION_KEYS:
        return f"{key} is an option of the jobs", "put it under [options]"
    hint = suggest(dashed(key), map(dashed, known), f"the keys are: {', '.join(known)}")
    return f"unknown key {printable(key)!r}", hint


def convert(value: Any, kind: Any, path: Path) -> Any:
    """The value as this type."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        key = next(str(part) for part in reversed(path) if isinstance(part, str))
        raise StudyError(f"{key} is {show(value)}: {str(error).replace('`', '')}", _FORM, path) from None


def as_text(value: Any, path: Path) -> str:
    """A text, or a number written without quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise StudyError(f"{path[-1]} is {show(value)}, expected a text", 'write it in quotes: "..."', path)


def show(value: Any) -> str:
    """A value for a message."""
    text = printable(str(value)) if not isinstance(value, str) else repr(printable(value))
    return text if len(text) <= 60 else text[:57] + "..."


SMALL = "small"
_MERGED = ("options", "limits")
SCALE_KEYS = ("repeat", "baseline", "target_accuracy", "layouts", "grid", "zip", *_MERGED)


def lay_over(values: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The study's keys at a scale: options and limits are merged by key, everything else is replaced.

    Raises:
        StudyError: `[small]` has a key that it can't have, or is wanted and not there.
    """
    small = with_underscores(read_table(values, SMALL))
    for key in small:
        if key not in SCALE_KEYS:
            raise StudyError(*explain_unknown(key, SCALE_KEYS), (SMALL, key))
    laid = {key: value for key, value in values.items() if key != SMALL}
    if scale == "full":
        return laid
    if SMALL not in values:
        raise StudyError("this study has no small scale", "write [small] with what is to be smaller", ())
    for key, value in small.items():
        whole = key not in _MERGED or not (isinstance(value, dict) and isinstance(laid.get(key), dict))
        laid[key] = value if whole else with_underscores(laid[key]) | with_underscores(value)
    if isinstance(laid.get("name"), str):
        laid["name"] += f"-{SMALL}"  # another folder: trials of the two are never compared
    return laid


def find_place(values: Mapping[str, Any], path: Path, scale: Scale) -> Path:
    """Where the file says what stands at a path of the study at this scale."""
    small = values.get(SMALL)
    if scale == "full" or not path or not isinstance(small, dict):
        return path
    section = with_underscores(small).get(str(path[0]))
    if section is None:
        return path
    is_merged = path[0] in _MERGED and isinstance(section, dict) and len(path) > 1
    return path if is_merged and path[1] not in with_underscores(section) else (SMALL, *path)


_KINDS: dict[str, Any] = {"repeat": int, "scaling": Scaling, "baseline": str | None, "target_accuracy": float | None}
KEYS = ("name", *_KINDS)
SECTIONS = ("layouts", "options", "grid", "zip", "prices", "limits", "reference")
_NOT_HERE = {
    "name": ("the jobs are called as the study is", "leave it out"),
    "array": ("a study makes job arrays by itself", "repeat = N runs everything N times"),
    "tasks": ("a study makes job arrays by itself", "sweep the option under [grid], or args for a command"),
    "task_env": ("a study makes job arrays by itself", 'sweep "env.NAME" under [grid]'),
    "resume_from": ("trials that go on from a checkpoint can't be compared", "leave it out"),
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}")
# More would be a slip, and hours of submitting.
_MOST_TRIALS = 20_000


def parse_study(text: str, where: str, defaults: Mapping[str, Any] | None = None, *, scale: Scale = "full") -> Study:
    """Parse a study's file, called `where` in messages; options of `hpcdist.toml` are `defaults` for its checks.

    Raises:
        UsageError: It has a fault; the message has the line and the key.
    """
    values = with_underscores(parse_toml(text, where))
    try:
        study = msgspec.structs.replace(_read(lay_over(values, scale)), scale=scale)
        variants = expand(study, defaults or {})
        check_baseline(study, variants)
        _check_references(study, variants)
    except StudyError as fault:
        line = line_of(find_lines(text), find_place(values, fault.path, scale))
        raise UsageError(f"{where}{f', line {line}' if line else ''}: {fault.message}", fault.hint) from None
    return study


def check_study_name(name: str) -> str:
    """The name itself.

    Raises:
        UsageError: It can't be a folder's name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"name: {name[:70]!a} can't name a study",
            "use up to 60 letters, digits, '.', '_' and '-', not starting with '.' or '-'",
        )
    return name


def _read(values: dict[str, Any]) -> Study:
    for key in values:
        if key not in (*KEYS, *SECTIONS):
            raise StudyError(*explain_unknown(key, (*KEYS, *SECTIONS)), (key,))
    if "layouts" not in values:
        raise StudyError(
            "layouts is missing: this is no study", 'write layouts = ["1x1", "2x1"]; a job: hpcdist submit FILE', ()
        )
    if "name" not in values:
        raise StudyError("name is missing", 'write name = "mnist-layouts"', ())
    options = _read_options(read_table(values, "options"), ("options",))
    grid, together = (_read_sweep(read_table(values, key), (key,)) for key in ("grid", "zip"))
    if twice := [key for key in together if key in grid]:
        raise StudyError(f"{twice[0]} is swept twice", "keep it under [grid] or under [zip]", ("zip", twice[0]))
    _check_lengths(together)
    if together:
        rows = list(map(list, zip(*together.values(), strict=True)))
        _check_repeats("zip", rows, ("zip", next(iter(together))))
    layouts = _read_layouts(values["layouts"])
    if ("args" in grid or "args" in together) and not _has_command(options, layouts, grid, together):
        raise StudyError(
            "args are added to a command, and there is none",
            'write command = ["python", "train.py"] under [options]',
            ("grid" if "args" in grid else "zip", "args"),
        )
    study = Study(
        name=_read_name(values["name"]),
        options=options,
        layouts=layouts,
        grid=grid,
        zip=together,
        **{key: convert(values[key], kind, (key,)) for key, kind in _KINDS.items() if key in values},
        prices=read_struct(read_table(values, "prices"), Prices, ("prices",)),
        limits=read_struct(read_table(values, "limits"), Limits, ("limits",)),
        references=_read_references(values.get("reference", [])),
    )
    _check_figures(study)
    return study


def _read_name(value: Any) -> str:
    name: str = convert(value, str, ("name",))
    try:
        check_name(name)
        return check_study_name(name)
    except UsageError as error:
        raise StudyError(error.message, error.hint, ("name",)) from None


def _read_layouts(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise StudyError("layouts is no list of layouts", 'write layouts = ["1x1", "2x1"]', ("layouts",))
    return tuple(_read_layout(one, ("layouts", number)) for number, one in enumerate(value))


def _read_layout(value: Any, path: Path) -> dict[str, Any]:
    if isinstance(value, dict):
        label = {LABEL: _read_label(value[LABEL], (*path, LABEL))} if LABEL in value else {}
        return label | _read_options({key: one for key, one in value.items() if key != LABEL}, path)
    nodes, cross, gpus = value.partition("x") if isinstance(value, str) else ("", "", "")
    is_cpu, gpus = gpus.endswith("cpu"), gpus.removesuffix("cpu")
    if not (cross and all(part.isascii() and part.isdecimal() and len(part) < 7 for part in (nodes, gpus))):
        raise StudyError(
            f"layouts: {show(value)} is no layout", 'write "2x1" (nodes x GPUs per node), "2x3cpu", or a table', path
        )
    if is_cpu:
        return {"nodes": int(nodes), "gpus": 0, "tasks_per_node": int(gpus)}
    return {"nodes": int(nodes), "gpus": int(gpus)}


def _read_label(value: Any, path: Path) -> str:
    label: str = convert(value, str, path)
    if not label.strip() or len(label) > 40 or not label.isprintable():
        raise StudyError(f"label is {show(label)}, expected a few words", 'write label = "old machine"', path)
    return label.strip()


def _read_references(value: Any) -> tuple[Reference, ...]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise StudyError("reference is no list of tables", "write [[reference]] on a line of its own", ("reference",))
    return tuple(read_struct(one, Reference, ("reference", number)) for number, one in enumerate(value))


def _check_references(study: Study, variants: Sequence[Variant]) -> None:
    """Compares what the figures are of with the variants; at small scale some of these are not there."""
    labels = [variant.label for variant in variants]
    for number, reference in enumerate(study.references if study.scale == "full" else ()):
        for label in reference.figures:
            if label not in labels:
                raise StudyError(
                    f"figures: no variant is called {show(label)}",
                    f"the variants are: {', '.join(labels)}",
                    ("reference", number, "figures", underscored(label)),
                )


def _read_options(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Options of `hpcdist submit`, each of its own kind."""
    return {key: _read_option(key, value, (*path, key)) for key, value in with_underscores(table).items()}


def _read_option(key: str, value: Any, path: Path) -> Any:
    if key in _NOT_HERE:
        raise StudyError(f"{key}: {_NOT_HERE[key][0]}", _NOT_HERE[key][1], path)
    try:
        check_keys([key], str(path[0]))
    except UsageError as error:
        raise StudyError(error.message, error.hint, path) from None
    if key in TABLES and isinstance(value, dict):
        value = {name: as_text(inner, (*path, name)) for name, inner in value.items()}
        if key == "env" and (secrets := [name for name in value if is_secret(name)]):
            raise StudyError(
                f"env: {secrets[0]} is a secret, and a study's file is kept",
                f'export it, and write secret-env = ["{secrets[0]}"] under [options]',
                path,
            )
    return msgspec.to_builtins(convert(value, option_types()[key], path))


def _read_sweep(table: Mapping[str, Any], path: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for written, values in table.items():
        option, dot, name = written.partition(".")
        key = underscored(option) + dot + name
        if key in TABLES and isinstance(values, dict):  # env.NAME = [...]
            for inner, listed in values.items():
                found[f"{key}.{inner}"] = _read_values(f"{key}.{inner}", listed, (*path, key, inner))
        else:
            found[key] = _read_values(key, values, (*path, key))
    return found


def _read_values(key: str, values: Any, path: Path) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise StudyError(f"{key} is {show(values)}, expected a list of values", f"write {key} = [...]", path)
    table, dot, name = key.partition(".")
    if dot and table in TABLES:
        found = [_read_option(table, {name: value}, path)[name] for value in values]
    elif key == "args":
        found = [_read_words(value, (*path, number)) for number, value in enumerate(values)]
    else:
        found = [_read_option(key, value, (*path, number)) for number, value in enumerate(values)]
    if path[0] == "grid":  # under [zip] what has to differ is the row
        _check_repeats(key, found, path)
    return tuple(found)


def _check_repeats(key: str, values: Sequence[Any], path: Path) -> None:
    for number in (number for number, value in enumerate(values) if value in values[:number]):
        raise StudyError(f"{key} has {show(values[number])} twice", "give each value once", (*path, number))


def _read_words(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list):
        raise StudyError(f"args has {show(value)}, expected a list of words", 'write args = [["--lr", "0.1"]]', path)
    return [as_text(word, path) for word in value]


def _has_command(*tables: Any) -> bool:
    return any("command" in one for table in tables for one in (table if isinstance(table, tuple) else (table,)))


def _check_lengths(together: Mapping[str, tuple[Any, ...]]) -> None:
    lengths = {key: len(values) for key, values in together.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise StudyError(f"zip: unequal lengths: {told}", "what goes together has as many values", ("zip",))


def _check_figures(study: Study) -> None:
    """Numbers that are numbers, and make no sense."""
    prices, target = study.prices, study.target_accuracy
    most, hours = study.limits.max_concurrent, study.limits.max_gpu_hours
    tables = (study.options, *study.layouts, study.grid, study.zip)
    if most is not None and any("dependency" in table for table in tables):
        raise StudyError(
            "max_concurrent makes jobs wait for each other, and dependency has them wait for others",
            "keep one of them",
            ("limits", "max_concurrent"),
        )
    counts = [len(study.layouts), *map(len, study.grid.values()), *map(len, list(study.zip.values())[:1]), study.repeat]
    trials = math.prod(counts)
    priced = {"per_gpu_hour": prices.per_gpu_hour, "per_node_hour": prices.per_node_hour}
    told: list[tuple[bool, Path, object, str]] = [
        (study.repeat >= 1, ("repeat",), study.repeat, "1 or more"),
        *((price is None or price >= 0, ("prices", key), price, "0 or more") for key, price in priced.items()),
        *((one >= 0, ("prices", "node_types", key), one, "0 or more") for key, one in prices.node_types.items()),
        (target is None or 0 < target <= 1, ("target_accuracy",), target, "a fraction such as 0.98"),
        (most is None or most >= 1, ("limits", "max_concurrent"), most, "1 or more"),
        (hours is None or hours > 0, ("limits", "max_gpu_hours"), hours, "more than 0"),
        (trials <= _MOST_TRIALS, ("repeat",), f"{trials} trials", f"at most {_MOST_TRIALS}"),
    ]
    for holds, path, value, expected in told:
        if not holds:
            raise StudyError(f"{path[-1]} is {value}, expected {expected}", "change it", path)
