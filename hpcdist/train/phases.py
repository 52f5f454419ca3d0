"""Where a rank's time goes."""

import statistics
import time


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
        """Ends the current phase and begins another; returns the one that ended."""
        now = time.perf_counter()
        ended = self._phase
        self._seconds[ended] = self._seconds.get(ended, 0.0) + now - self._since
        self._phase, self._since = phase, now
        self.changes += 1
        return ended

    def seconds(self) -> dict[str, float]:
        """Seconds in each phase until now, in the order they were first entered."""
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
        """The last step, in seconds; None before there are two."""
        return self._durations_s[-1] if self._durations_s else None

    def median_s(self) -> float | None:
        """The median step, in seconds; None before there are two."""
        return statistics.median(self._durations_s) if self._durations_s else None
