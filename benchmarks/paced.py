"""One rank of the built-in training that trains by turns, for `benchmarks/ranks.py`.

    python -m benchmarks.paced SOCKET KIND TURN -- OPTIONS OF hpcdist.train

It waits at every TURN-th batch of an epoch until it is told to go on, and says how long the last TURN steps took.
Of the kind "in step" it also waits in each step, once it has its batch, for the other of its kind to have its own, and
shares nothing: what being in step costs by itself.
"""

import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hpcdist.train.__main__ import main as train
from hpcdist.train.data.batches import Batch, RankSlice, TrainBatches

IN_STEP = "in step"
CUT_SHORT = "cut short"
_LONGEST_WAIT_S = 300.0


class Meeting:
    """Two processes on one machine that wait for each other, over memory they share, without sleeping.

    Args:
        path: A file of 16 bytes, theirs alone: how often each was here.
        index: 0 or 1.
    """

    def __init__(self, path: Path, index: int) -> None:
        with path.open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), 16)
        self._index, self._count = index, 0

    def wait(self) -> None:
        """Returns when the other has been here as often.

        Raises:
            TimeoutError: It does not come.
        """
        self._count += 1
        struct.pack_into("q", self._counts, 8 * self._index, self._count)
        deadline_s = time.monotonic() + _LONGEST_WAIT_S
        while struct.unpack_from("q", self._counts, 8 * (1 - self._index))[0] < self._count:
            if time.monotonic() > deadline_s:
                raise TimeoutError("the other process does not come")
            os.sched_yield()


class Pace:
    """Between the batches and the training.

    Args:
        lines: To who gives the turns: a line comes that a turn begins, one goes with its seconds when it is over;
            when no more lines come, the training goes on by itself.
        turn: Steps of a turn.
        meeting: What each step waits for.
    """

    def __init__(self, lines: TextIO, turn: int, meeting: Meeting | None) -> None:
        self._lines, self._turn, self._meeting = lines, turn, meeting
        self._began_s: float | None = None
        self._is_over = False

    def keep(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an epoch; the turn that its end cuts short, with the test in it, has no seconds."""
        for number, batch in enumerate(batches):
            if number % self._turn == 0 and not self._is_over:
                self._wait(is_whole=number > 0)
            if self._meeting is not None:
                self._meeting.wait()
            yield batch

    def _wait(self, *, is_whole: bool) -> None:
        if self._began_s is not None:
            print(time.perf_counter() - self._began_s if is_whole else CUT_SHORT, file=self._lines, flush=True)
        self._is_over = not self._lines.readline()
        self._began_s = time.perf_counter()


def main() -> int:
    """Trains; returns the exit status."""
    address, kind, turn, _, *options = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(_LONGEST_WAIT_S)
        link.connect(address)
        lines = link.makefile("rw")
        print(kind, file=lines, flush=True)
        index = int(lines.readline())
        pace = Pace(lines, int(turn), Meeting(Path(f"{address}.counts"), index) if kind == IN_STEP else None)
        load = TrainBatches.load

        def load_by_turns(batches: TrainBatches, shares: Iterator[RankSlice]) -> Iterator[Batch]:
            return pace.keep(load(batches, shares))

        TrainBatches.load = load_by_turns  # type: ignore[assignment,method-assign]
        return train(options)


if __name__ == "__main__":
    sys.exit(main())
