"""TOML files of users: which line each key stands on, and options set in a file without losing the rest."""

import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from hpcdist.errors import UsageError
from hpcdist.text import dashed, underscored, with_underscores

Path = tuple[str | int, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANKS = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_KEY = re.compile(rf"(?:{_KEY_PART.pattern})(?:[ \t]*\.[ \t]*(?:{_KEY_PART.pattern}))*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"{1,2}(?!"))?'
    r"|'''(?:[^']|'(?!''))*'''(?:'{1,2}(?!'))?"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


def read_text(file: pathlib.Path) -> str:
    """Return a file's text.

    Raises:
        UsageError: It can't be read, or is no UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: {error}", "see https://toml.io for the format") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return what a text says.

    Raises:
        UsageError: It is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}", "see https://toml.io for the format") from None


def find_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every key and array element, by its path: `("layouts", 1, "gpus")`.

    Keys are given with `_` for `-`. Of a table that is written in parts, the first counts. The text must be TOML that
    `parse_toml` has read; nothing is checked again.
    """
    return _Scan(text).lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """Return the line of a path, or of the nearest thing around it; None of an empty text."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scan:
    """One walk over a text; `lines` is what was found so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.elements: dict[Path, int] = {}
        table: Path = ()
        while self._skip(_SPACE) < len(text):
            if text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        # Never back, and never nowhere for ever: a text that is no TOML only gives fewer lines.
        self.at = match.end() if match else self.at
        return self.at

    def _note(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, at) + 1)

    def _header(self) -> Path:
        """`[table]`, or `[[array]]`, whose elements are counted."""
        start = self.at
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        path: Path = ()
        names = self._key()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            self._note(path, start)
            if number == len(names) and is_array:
                self.elements[path] = self.elements.get(path, 0) + 1
            if path in self.elements:
                path = (*path, self.elements[path] - 1)
                self._note(path, start)
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end
        return path

    def _key(self) -> Path:
        """A key's parts, dots between them."""
        self._skip(_BLANKS)
        start = self.at
        self._skip(_KEY)
        return tuple(underscored(part.strip("\"'")) for part in _KEY_PART.findall(self.text, start, self.at))

    def _pair(self, table: Path) -> None:
        """`key = value`."""
        start = self.at
        path = table
        for name in self._key():
            path = (*path, name)
            self._note(path, start)
        self._skip(_BLANKS)
        self.at += 1  # the equals sign; whatever else stands here is passed over
        self._skip(_BLANKS)
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at : self.at + 1]
        if opening in ("[", "{"):
            self._items(path, "]" if opening == "[" else "}")
        else:
            start = self.at
            self._skip(_STRING if opening in "\"'" else _SCALAR)
            self.at = max(self.at, start + 1)

    def _items(self, path: Path, closing: str) -> None:
        """What is inside of an array or inline table."""
        self.at += 1
        number = 0
        while self._skip(_SPACE) < len(self.text) and self.text[self.at] != closing:
            if closing == "]":
                self._note((*path, number), self.at)
                self._value((*path, number))
            else:
                self._pair(path)
            number += 1
            self._skip(_SPACE)
            if self.text.startswith(",", self.at):
                self.at += 1
        self.at += 1


_OPTIONS = re.compile(r"\s*\[\s*options\s*\]")


def check_writable(values: Mapping[str, Any], where: str) -> None:
    """Find out from a file's content, before anything is tried, whether it leaves the options to be set.

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
    for key in ("batch_size", "batch_size_per_rank", "workers"):
        for table in ("grid", "zip"):
            if key in with_underscores(values.get(table, {})):
                raise UsageError(f"{where} sweeps {key} under [{table}]", "tune is for files that have one value of it")
        for layout in values.get("layouts", ()):
            if isinstance(layout, Mapping) and key in with_underscores(layout):
                raise UsageError(f"{where} gives {key} to a single layout", "move it to [options]")


def set_options(text: str, settings: Mapping[str, int], where: str) -> str:
    """Return a TOML file's text with these options, which are given by their names with underscores.

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
    """Put a line after the last one that is in no table, before what is said of the first table."""
    end = next((place for place, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    while end and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    head = [line if line.endswith("\n") else f"{line}\n" for line in lines[:end]]
    return [*head, new, *lines[end:]]


def _is_set(before: Mapping[str, Any], text: str, table: str | None, settings: Mapping[str, int]) -> bool:
    """Return whether a text has these options, and nothing else is another."""
    try:
        after = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    expected, found = _normalize(before, table), _normalize(after, table)
    (expected[table] if table else expected).update(settings)
    return found == expected


def _normalize(values: Mapping[str, Any], table: str | None) -> dict[str, Any]:
    options = with_underscores(values)
    if table:
        options[table] = with_underscores(options.get(table, {}))
    return options
