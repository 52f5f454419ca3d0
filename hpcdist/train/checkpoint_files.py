"""Checkpoint files: whole or absent, verified when read, the last two. Needs no torch.

A file is called `step-<step>-<first half of its SHA-256>.ckpt`, so one rename brings content and checksum at once.
"""

import contextlib
import hashlib
import re
import sys
from pathlib import Path

from hpcdist.files import write_atomically

KEPT = 2

_NAME = re.compile(r"step-[0-9]{8,}-[0-9a-f]{32}\.ckpt")


def write_checkpoint(folder: Path, step: int, content: bytes | memoryview) -> Path:
    """Writes a checkpoint, then removes all but the last two.

    Raises:
        OSError: The disk is full or read-only; the older ones are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}-{_checksum(content)}.ckpt"
    write_atomically(path, content)
    for old in _list(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; None when there is none.

    A damaged one is warned about and kept under another name, out of the way of the next; one that can't be read now
    may be whole, and stays as it is.
    """
    for path in reversed(_list(folder)):
        try:
            is_whole = path.stem.split("-")[2] == _checksum(path.read_bytes())
        except OSError as error:
            _warn(path, str(error.strerror))
            continue
        if is_whole:
            return path
        _warn(path, "it is damaged")
        with contextlib.suppress(OSError):  # a folder that is read-only
            path.rename(path.with_suffix(".damaged"))
    return None


def _warn(path: Path, reason: str) -> None:
    print(f"warning: checkpoint {path} can't be used: {reason}; the one before it is", file=sys.stderr, flush=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what writers that were killed left behind, each as large as a checkpoint; nobody may be writing."""
    for path in folder.glob(".step-*.ckpt.*"):
        with contextlib.suppress(OSError):
            path.unlink()


def read_step(path: Path) -> int:
    """The step after which a checkpoint was taken, from its name."""
    return int(path.name.split("-")[1])


def _list(folder: Path) -> list[Path]:
    """The checkpoints in order of their steps, and of their times where a step was written twice."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (read_step(path), _written_ns(path)))


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed since it was listed
        return 0


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
