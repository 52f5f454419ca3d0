"""Values of a study's file, each of its own kind; every fault names the key. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hpcdist.config.job import OPTION_KEYS
from hpcdist.config.toml import Path
from hpcdist.text import dashed, printable, suggest, with_underscores
from hpcdist.variants import StudyError

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
