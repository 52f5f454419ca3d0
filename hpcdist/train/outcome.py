"""What one rank's training has reached, and where its time went, kept so that it can be written at any moment."""

import statistics
import time
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.files import write_atomically
from hpcdist.records.ranks import TrainingMetrics


class Clock:
    """Cuts a process's life into phases that follow each other without gaps.

    A phase entered again goes on where it stopped, so the phases add up to the wall-clock time.

    Args:
        started_at_s: Start of the process, seconds since the epoch; it begins in "imports".

    Attributes:
        changes: How often a phase was entered.
    """

    def __init__(self, started_at_s: float) -> None:
        self.changes = 0
        self._phase = "imports"
        self._since = time.perf_counter() - max(0.0, time.time() - started_at_s)
        self._seconds: dict[str, float] = {}

    def enter(self, phase: str) -> str:
        """End the current phase and begin another; return the one that ended."""
        now = time.perf_counter()
        ended = self._phase
        self._seconds[ended] = self._seconds.get(ended, 0.0) + now - self._since
        self._phase, self._since = phase, now
        self.changes += 1
        return ended

    def seconds(self) -> dict[str, float]:
        """Return the seconds in each phase until now, in the order they were first entered."""
        running = self._seconds.get(self._phase, 0.0) + time.perf_counter() - self._since
        return {**self._seconds, self._phase: running}


class StepTimes:
    """Durations of the optimizer steps, the first one and interruptions left out."""

    def __init__(self) -> None:
        self._durations_s: list[float] = []
        self._since: float | None = None
        self._pending = 0

    def tick(self, *, settled: bool) -> None:
        """A step ended.

        Args:
            settled: Whether the device is done with it; on a GPU most steps are only queued, and are timed together
                at the next settled one.
        """
        self._pending += 1
        if not settled:
            return
        now = time.perf_counter()
        if self._since is not None:
            self._durations_s.append((now - self._since) / self._pending)
        self._since, self._pending = now, 0

    def pause(self) -> None:
        """Something other than a step happens now: validation, a checkpoint."""
        self._since, self._pending = None, 0

    def last_s(self) -> float | None:
        """Return the last step, in seconds; None before there are two."""
        return self._durations_s[-1] if self._durations_s else None

    def median_s(self) -> float | None:
        """Return the median step, in seconds; None before there are two."""
        return statistics.median(self._durations_s) if self._durations_s else None


class Outcome:
    """The rank's `TrainingMetrics` so far.

    Args:
        path: The file `write` makes; None makes none.
        clock: Source of the phases.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self.clock = clock
        self._path = path
        self._known = TrainingMetrics()
        self._counts: dict[str, int] = {}

    def learn(self, **figures: Any) -> None:
        """Replace fields of `TrainingMetrics`."""
        self._known = msgspec.structs.replace(self._known, **figures)

    def count(self, *, steps: int, samples: int) -> None:
        """Replace the two that change in every step, where a new `TrainingMetrics` each time would cost."""
        self._counts = {"steps": steps, "samples": samples}

    def metrics(self) -> TrainingMetrics:
        """Return what is known now."""
        phases_s = {name: round(seconds, 6) for name, seconds in self.clock.seconds().items()}
        return msgspec.structs.replace(self._known, phases_s=phases_s, **self._counts)

    def write(self) -> None:
        """Write the file.

        Raises:
            OSError: It can't be written.
        """
        if self._path is not None:
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(self.metrics())))
