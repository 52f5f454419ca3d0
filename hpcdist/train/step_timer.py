"""Stop-watches for the parts of a step: one for work that is done when its call returns, one for a GPU's queue."""

import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Literal, get_args

import torch

from hpcdist.records.ranks import StepSplit

Part = Literal["data", "compute", "communication", "other"]
# Fewer steps than this say nothing.
ENOUGH_STEPS = 5
# On a GPU every so many steps are measured: an event costs microseconds on the host, which may be behind.
SAMPLED_EVERY = 10


class StepTimer(ABC):
    """Cuts steps into parts that follow each other without gaps."""

    def __init__(self) -> None:
        self._counted = 0  # steps, and the sums over them
        self._steps_s = 0.0
        self._sums_s: dict[Part, float] = dict.fromkeys(get_args(Part), 0.0)

    @abstractmethod
    def end_part(self, part: Part) -> None:
        """Book what was done since the last call to this part."""

    @abstractmethod
    def end_step(self, *, steady: bool) -> None:
        """End a step, what is left of it being "other"; one that is not steady is not counted."""

    def split(self) -> StepSplit | None:
        """Return the means over the steps counted; None before there are enough."""
        if self._counted < ENOUGH_STEPS:
            return None
        means_s = {f"{part}_s": seconds / self._counted for part, seconds in self._sums_s.items()}
        return StepSplit(steps=self._counted, step_s=self._steps_s / self._counted, **means_s)

    def _count(self, parts_s: dict[Part, float], step_s: float) -> None:
        self._counted += 1
        self._steps_s += step_s
        for part, seconds in parts_s.items():
            self._sums_s[part] += seconds


class HostTimer(StepTimer):
    """For a CPU: the clock of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._parts_s: dict[Part, float] = {}
        self._since = self._began = time.perf_counter()

    def end_part(self, part: Part) -> None:
        """Read the clock."""
        now = time.perf_counter()
        self._parts_s[part] = self._parts_s.get(part, 0.0) + now - self._since
        self._since = now

    def end_step(self, *, steady: bool) -> None:
        """Add the step to the sums."""
        self.end_part("other")
        if steady:
            self._count(self._parts_s, self._since - self._began)
        self._parts_s = {}
        self._began = self._since


class CudaTimer(StepTimer):
    """For a GPU: events in its queue, in every tenth step. Nobody has run this on a GPU yet.

    The host only queues work, so its own times say nothing. Two events have between them the time that the GPU took
    for what was queued in between, and, where it had caught up with the host, the time it stood idle: waiting for
    data shows up as that. An all-reduce runs in a queue of its own, which this one waits for at the end of the
    backward pass. The times are read steps later, when the GPU is done, so that the host never waits for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0
        self._marks: list[tuple[Part, torch.cuda.Event]] = []  # the step's begin, then the end of each part
        self._waiting: deque[list[tuple[Part, torch.cuda.Event]]] = deque()

    def end_part(self, part: Part) -> None:
        """Queue an event, in the steps that are measured."""
        if self._marks:
            self._mark(part)

    def end_step(self, *, steady: bool) -> None:
        """Keep the events for later, and begin the next step's."""
        self.end_part("other")
        if self._marks and steady:
            self._waiting.append(self._marks)
        self._marks = []
        self._steps += 1
        if self._steps % SAMPLED_EVERY == 0:
            self._mark("other")

    def _mark(self, part: Part) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((part, event))

    def split(self) -> StepSplit | None:
        """Return the means of the measured steps that the GPU is done with."""
        while self._waiting and self._waiting[0][-1][1].query():  # type: ignore[no-untyped-call]
            marks = self._waiting.popleft()
            parts_s: dict[Part, float] = {}
            for (_, before), (part, event) in itertools.pairwise(marks):
                parts_s[part] = parts_s.get(part, 0.0) + before.elapsed_time(event) / 1000
            self._count(parts_s, marks[0][1].elapsed_time(marks[-1][1]) / 1000)
        return super().split()
