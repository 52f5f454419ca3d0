"""The data onto a node's own disk, once per node before the ranks start, and away again after them.

`python -m hpcdist.stage copy FROM TO` copies a folder and reads the copy again; one that is complete is kept, as after
a requeue. `python -m hpcdist.stage clean TO` removes it.
"""

import hashlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpcdist.errors import HpcdistError, UsageError

_CHUNK_BYTES = 4 * 1024**2
_USAGE = "use: python -m hpcdist.stage copy FROM TO, or: python -m hpcdist.stage clean TO"


def list_files(folder: Path) -> dict[str, int]:
    """Return the size of every file in a folder in bytes, by its path from there; links are followed."""
    found = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            found[str(path.relative_to(folder))] = path.stat().st_size
    return found


def copy(source: Path, target: Path) -> tuple[int, int]:
    """Copy a folder, and compare the copy; return how many files and bytes were copied, none where it was there.

    Raises:
        HpcdistError: There is no such folder, no room, or the copy is not the same.
    """
    if not source.is_dir():
        raise HpcdistError(f"there is no folder {source} to stage", "change --data-dir, or leave out --stage-data")
    files = list_files(source)
    if target.is_dir() and list_files(target) == files:
        return 0, 0
    # Made under another name: what has the right one is complete. One of each node's own, where the folder is shared.
    partial = target.with_name(f"{target.name}.{socket.gethostname()}.partial")
    for left in (target, partial):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    size = sum(files.values())
    free = shutil.disk_usage(partial).free
    if free < size:
        partial.rmdir()
        raise HpcdistError(
            f"{target.parent} has {free / 1024**3:.1f} GiB left, and {source} takes {size / 1024**3:.1f} GiB",
            "set scratch in hpcdist.toml to a larger disk of the nodes, or leave out --stage-data",
        )
    for name in files:
        written = partial / name
        written.parent.mkdir(parents=True, exist_ok=True)
        if _copy_file(source / name, written) != _digest(written):
            raise HpcdistError(f"{written} is not what was read from {source / name}", "check the node's disk")
    try:
        partial.rename(target)
    except OSError:
        if list_files(target) != files:
            raise
        shutil.rmtree(partial)  # another node was first
    return len(files), size


def clean(target: Path) -> None:
    """Remove a copy, finished or not."""
    for path in (target, *target.parent.glob(f"{target.name}.*.partial")):
        shutil.rmtree(path, ignore_errors=True)


def _copy_file(source: Path, target: Path) -> bytes:
    digest = hashlib.blake2b()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.digest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "blake2b").digest()


def main(arguments: Sequence[str]) -> int:
    """Run once per node; return the exit status."""
    try:
        if len(arguments) == 2 and arguments[0] == "clean":
            clean(Path(arguments[1]))
            return 0
        if len(arguments) != 3 or arguments[0] != "copy":
            raise UsageError("there is no such thing to stage", _USAGE)
        began = time.monotonic()
        count, size = copy(Path(arguments[1]), Path(arguments[2]))
    except (HpcdistError, OSError) as error:
        message, hint = (error.message, error.hint) if isinstance(error, HpcdistError) else (str(error), "")
        print(f"error: {socket.gethostname()}: {message}\nhint: {hint}", file=sys.stderr)
        return error.exit_code if isinstance(error, HpcdistError) else 1
    took = f"{count} file(s), {size / 1024**2:.0f} MiB in {time.monotonic() - began:.1f} s" if count else "it was there"
    print(f"{socket.gethostname()}: data staged to {arguments[2]}: {took}", flush=True)
    return 0
