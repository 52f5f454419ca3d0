"""A job's or study's file with some options set: comments and everything else stay as they are. Pure."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from hpcdist.errors import UsageError
from hpcdist.study_lines import find_lines
from hpcdist.text import dashed, with_underscores

BATCHES = ("batch_size", "batch_size_per_rank")
_HEADER = re.compile(r"\s*\[")
_OPTIONS = re.compile(r"\s*\[\s*options\s*\]")


def check_writable(values: Mapping[str, Any], where: str) -> None:
    """Finds out before anything is tried whether the file leaves the options to be set.

    Args:
        values: The file's content, as TOML has it.
        where: Its name, for messages.

    Raises:
        UsageError: It sweeps them, gives them to single layouts, or runs a program of its own.
    """
    values = with_underscores(values)
    options = with_underscores(values.get("options", {})) if "layouts" in values else values
    if "command" in options:
        raise UsageError(
            f"{where} has a command: tune tries the built-in training alone",
            "sweep its own option under [grid] args, and compare with hpcdist report",
        )
    for key in (*BATCHES, "workers"):
        for table in ("grid", "zip"):
            if key in with_underscores(values.get(table, {})):
                raise UsageError(f"{where} sweeps {key} under [{table}]", "tune is for files that have one value of it")
        for layout in values.get("layouts", ()):
            if isinstance(layout, Mapping) and key in with_underscores(layout):
                raise UsageError(f"{where} gives {key} to a single layout", "move it to [options]")


def set_options(text: str, settings: Mapping[str, int], where: str) -> str:
    """The file's text with these options.

    Args:
        text: The file's text, which is TOML.
        settings: Options by their names with underscores.
        where: The file's name, for messages.

    Raises:
        UsageError: The file is written in a way that this can't change.
    """
    before = tomllib.loads(text)
    table = "options" if "layouts" in before else None
    lines = text.splitlines(keepends=True)
    for key, value in settings.items():
        lines = _set(lines, table, key, value)
    changed = "".join(lines)
    if not _is_set(before, changed, table, settings):
        told = ", ".join(f"{dashed(key)} = {value}" for key, value in settings.items())
        place = f" under [{table}]" if table else ""
        raise UsageError(f"{where} is written in a way that can't be changed here", f"write {told}{place} yourself")
    return changed


def _set(lines: list[str], table: str | None, key: str, value: int) -> list[str]:
    path = (table, key) if table else (key,)
    number = find_lines("".join(lines)).get(path)
    name = key.replace("_", "[-_]")
    if number is not None:
        changed = re.sub(rf"(?<![\w-])({name}\s*=\s*)[+\d_]+", rf"\g<1>{value}", lines[number - 1], count=1)
        return [*lines[: number - 1], changed, *lines[number:]]
    new = f"{dashed(key)} = {value}\n"
    if table is None:
        return _insert_at_top(lines, new)
    header = next((place for place, line in enumerate(lines) if _OPTIONS.match(line)), None)
    if header is None:
        end = [] if not lines or lines[-1].endswith("\n") else ["\n"]
        return [*lines, *end, f"\n[{table}]\n", new]
    return [*lines[: header + 1], new, *lines[header + 1 :]]


def _insert_at_top(lines: list[str], new: str) -> list[str]:
    """Puts a line after the last one that is in no table, before what is said of the first table."""
    end = next((place for place, line in enumerate(lines) if _HEADER.match(line)), len(lines))
    while end and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    head = [line if line.endswith("\n") else f"{line}\n" for line in lines[:end]]
    return [*head, new, *lines[end:]]


def _is_set(before: Mapping[str, Any], text: str, table: str | None, settings: Mapping[str, int]) -> bool:
    """Whether a text has these options, and nothing else is another."""
    try:
        after = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    expected = with_underscores(before)
    if table:
        expected[table] = {**with_underscores(expected.get(table, {})), **settings}
    else:
        expected |= settings
    found = with_underscores(after)
    if table:
        found[table] = with_underscores(found.get(table, {}))
    return found == expected
