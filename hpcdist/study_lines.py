"""TOML texts: read, and which line each of their keys stands on: tomllib reads values alone."""

import pathlib
import re
import tomllib
from typing import Any

from hpcdist.errors import UsageError
from hpcdist.text import underscored

Path = tuple[str | int, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANKS = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"{1,2}(?!"))?'
    r"|'''(?:[^']|'(?!''))*'''(?:'{1,2}(?!'))?"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


def read_text(file: pathlib.Path) -> str:
    """A file's text.

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
    """What a text says.

    Raises:
        UsageError: It is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}", "see https://toml.io for the format") from None


def find_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every key and array element, by its path: `("layouts", 1, "gpus")`.

    Keys are given with `_` for `-`. Of a table that is written in parts, the first counts. The text must be TOML that
    `parse_toml` has read; nothing is checked again.
    """
    return _Scan(text).lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of a path, or of the nearest thing around it; None of an empty text."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scan:
    """One walk over a text.

    Attributes:
        lines: What was found so far.
    """

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
        names: list[str] = []
        while True:
            self._skip(_BLANKS)
            match = _KEY_PART.match(self.text, self.at)
            if match is None:
                return tuple(names)
            self.at = match.end()
            names.append(underscored(match[0].strip("\"'")))
            self._skip(_BLANKS)
            if not self.text.startswith(".", self.at):
                return tuple(names)
            self.at += 1

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
        if opening == "[":
            self._items(path, "]")
        elif opening == "{":
            self._items(path, "}")
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
