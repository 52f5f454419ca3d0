"""Ends a training that hangs: a GPU-hour spent waiting is lost all the same."""

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.errors import HpcdistError
from hpcdist.record import HANG_STATUS
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import LastWords


class HangError(HpcdistError):
    """No step for too long."""

    exit_code = HANG_STATUS


class Watchdog(Callback):
    """Ends the rank when no batch was finished for a while, and says what it was doing.

    When one rank hangs, all wait: each prints its stack, and the one that is not inside an all-reduce is to blame.

    Args:
        timeout_s: The while, in seconds.
        rank: This rank.
        last_words: What ends it.
    """

    def __init__(self, timeout_s: float, rank: RankEnvironment, last_words: LastWords) -> None:
        self._timeout_s = timeout_s
        self._rank = rank
        self._last_words = last_words
        self._alive_at = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watches from now on; further calls say that all is well."""
        self._alive()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stops watching. In a process that goes on, a thread left behind would end what comes later."""
        self._over.set()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything is set up."""
        self.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """A step is done."""
        self._alive()

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """A batch of the test is done."""
        self._alive()

    def _alive(self) -> None:
        self._alive_at = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._timeout_s / 4)):
            idle_s = time.monotonic() - self._alive_at
            if idle_s > self._timeout_s:
                faulthandler.dump_traceback(file=sys.stderr)
                self._last_words.end(
                    HangError(
                        f"hang: no step for {idle_s:.0f} s on rank {self._rank.rank}; its stack is above",
                        "look for the rank whose stack is not in an all-reduce, or raise --hang-timeout",
                    )
                )


@contextmanager
def watching(timeout_s: float, rank: RankEnvironment, last_words: LastWords) -> Iterator[Watchdog]:
    """A watchdog that watches inside of `with`."""
    watchdog = Watchdog(timeout_s, rank, last_words)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.close()
