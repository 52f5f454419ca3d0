"""What one rank's training has reached, kept so that it can be written at any moment."""

from pathlib import Path
from typing import Any

import msgspec

from hpcdist.files import write_atomically
from hpcdist.records.ranks import TrainingMetrics
from hpcdist.train.phases import Clock


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
        """Replaces fields of `TrainingMetrics`."""
        self._known = msgspec.structs.replace(self._known, **figures)

    def count(self, *, steps: int, samples: int) -> None:
        """Replaces the two that change in every step, where a new `TrainingMetrics` each time would cost."""
        self._counts = {"steps": steps, "samples": samples}

    def metrics(self) -> TrainingMetrics:
        """What is known now."""
        phases_s = {name: round(seconds, 6) for name, seconds in self.clock.seconds().items()}
        return msgspec.structs.replace(self._known, phases_s=phases_s, **self._counts)

    def write(self) -> None:
        """Writes the file.

        Raises:
            OSError: It can't be written.
        """
        if self._path is not None:
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(self.metrics())))
