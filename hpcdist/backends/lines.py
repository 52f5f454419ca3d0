"""A command's output line by line, while it is still writing."""

import codecs
import io
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, cast

from hpcdist.errors import AccountingOffError, HpcdistError, NotReadyError

KEPT_LINES = 20
# As much as a pipe holds.
PIECE_BYTES = 1 << 16


def missing_command(name: str) -> NotReadyError:
    """The error about a command of Slurm's that is not here."""
    return NotReadyError(f"{name} is not on PATH", "load Slurm's module (module load slurm)")


class CommandLines:
    """A command that runs from now on; iterating gives the lines of its standard output, without their ends.

    Nothing is held back. There is no time limit: sacct may take minutes for a year.

    Raises:
        HpcdistError: The command is missing; while iterating, it failed (after what it printed).
    """

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = arguments[0]
        self.words: list[bytes] = []
        try:
            self.process = subprocess.Popen(
                arguments,
                env=os.environ | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError:
            raise missing_command(self.name) from None
        # Read aside: a command whose complaints nobody reads would stop writing.
        self.reader = threading.Thread(target=self._keep_end, args=(self.process.stderr,), daemon=True)
        self.reader.start()

    def __iter__(self) -> Iterator[str]:
        """The lines; a command that is not read to its end is stopped."""
        finished = False
        try:
            yield from _split(cast(io.BufferedReader, self.process.stdout))
            finished = True
        finally:
            if not finished:
                self.process.kill()
            self.process.wait()
            self.reader.join()
        if self.process.returncode != 0:
            said = b"".join(self.words).decode(errors="replace").strip()
            raise self._failure(said or f"exit status {self.process.returncode}")

    def _failure(self, said: str) -> HpcdistError:
        if "accounting storage is disabled" in said.lower() or "slurmdbd" in said.lower():
            return AccountingOffError(f"{self.name}: {said}", "hpcdist status follows the job without accounting")
        return HpcdistError(f"{self.name}: {said}", "see `hpcdist status`")

    def _keep_end(self, stream: IO[bytes]) -> None:
        """Reads all complaints and keeps the last."""
        for line in stream:
            self.words.append(line)
            del self.words[:-KEPT_LINES]


def _split(stream: io.BufferedReader) -> Iterator[str]:
    """The lines of a stream, ended by a line feed and nothing else: a job's name may hold a carriage return."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while piece := stream.read1(PIECE_BYTES):
        lines = (rest + decoder.decode(piece)).split("\n")
        rest = lines.pop()
        yield from lines
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest
