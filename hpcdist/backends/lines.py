"""A command's output line by line, while it is still writing."""

import io
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from hpcdist.errors import AccountingOffError, HpcdistError, NotReadyError

KEPT_BYTES = 4096


def missing_command(name: str) -> NotReadyError:
    """The error about a command of Slurm's that is not here."""
    return NotReadyError(f"{name} is not on PATH", "load Slurm's module (module load slurm)")


def start_command(arguments: Sequence[str], env: Mapping[str, str]) -> Iterator[str]:
    """Starts a command; returns the lines of its standard output, with their ends, which may be read as they come.

    Nothing is held back. There is no time limit: sacct may take minutes for a year. A command that is not read to its
    end is stopped.

    Raises:
        HpcdistError: The command is missing; while reading, it failed (after what it printed).
    """
    # A file: a command whose complaints nobody reads from a pipe would stop writing.
    complaints = tempfile.TemporaryFile()  # noqa: SIM115 closed when the lines were read
    try:
        process = subprocess.Popen(
            arguments, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
        )
    except FileNotFoundError:
        complaints.close()
        raise missing_command(arguments[0]) from None
    return _iter_lines(arguments[0], process, complaints)


def _iter_lines(name: str, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> Iterator[str]:
    finished = False
    with complaints:
        try:
            if process.stdout is not None:
                # A line feed alone ends a line: a job's name may hold a carriage return.
                yield from io.TextIOWrapper(process.stdout, "utf-8", errors="replace", newline="\n")
            finished = True
        finally:
            if not finished:
                process.kill()
            process.wait()
        if process.returncode != 0:
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - KEPT_BYTES))
            said = complaints.read().decode(errors="replace").strip()
            raise _failure(name, said or f"exit status {process.returncode}")


def _failure(name: str, said: str) -> HpcdistError:
    if "accounting storage is disabled" in said.lower() or "slurmdbd" in said.lower():
        return AccountingOffError(f"{name}: {said}", "hpcdist status follows the job without accounting")
    return HpcdistError(f"{name}: {said}", "see `hpcdist status`")
