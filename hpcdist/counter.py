"""A number in a file that several processes count up."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from hpcdist.files import lock_file


class Counter:
    """The last number that was given.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, find_last: Callable[[], int]) -> int:
        """The next number, never given twice.

        Args:
            find_last: Tells the last one given where the file is lost or damaged.

        Raises:
            OSError: The disk is full or not writable.
        """
        with self._open() as file:
            lock_file(file.fileno())
            last = _parse(file.read())
            number = (find_last() if last is None else last) + 1
            _write(file, number)
        return number

    def last(self) -> int | None:
        """The last number given; None where nobody wrote a readable one down."""
        try:
            return _parse(self._path.read_text(errors="replace"))
        except OSError:
            return None

    def raise_to(self, number: int) -> None:
        """Has the next number come after this one.

        Raises:
            OSError: The disk is full or not writable.
        """
        with self._open() as file:
            lock_file(file.fileno())
            _write(file, max(number, _parse(file.read()) or 0))

    def _open(self) -> IO[str]:
        return os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+", errors="replace")


def _parse(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _write(file: IO[str], number: int) -> None:
    file.seek(0)
    file.write(f"{number}\n")
    file.truncate()
    file.flush()
    os.fsync(file.fileno())
