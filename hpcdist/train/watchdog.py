"""Ends a training that hangs: a GPU-hour spent waiting is lost all the same."""

import faulthandler
import sys
import threading
import time

from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.errors import HpcdistError
from hpcdist.records.ranks import HANG_STATUS
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter


class HangError(HpcdistError):
    """No step for too long."""

    exit_code = HANG_STATUS


class Watchdog(Callback):
    """Ends the rank when no batch was finished for a while, and says what it was doing.

    When one rank hangs, all wait for it. One that waits says so, and leaves the one to blame some time to end first;
    that may be past doing so, where its process was stopped.
    """

    def __init__(self, timeout_s: float, rank: RankEnvironment, reporter: FailureReporter) -> None:
        self._timeout_s, self._rank, self._reporter = timeout_s, rank, reporter
        self._alive_at = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch from now on; further calls say that all is well."""
        self._alive()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching. In a process that goes on, a thread left behind would end what comes later."""
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

    def _idle_s(self) -> float:
        return time.monotonic() - self._alive_at

    def _watch(self) -> None:
        pause_s, looked_at = min(1.0, self._timeout_s / 4), time.monotonic()
        while not self._over.wait(pause_s):
            if time.monotonic() - looked_at > pause_s + self._timeout_s / 2:
                self._alive()  # the whole process was stopped, as by `scontrol suspend`
            looked_at = time.monotonic()
            idle_s = self._idle_s()
            if idle_s <= self._timeout_s:
                continue
            faulthandler.dump_traceback(file=sys.stderr)
            name = f"rank {self._rank.rank}"
            if self._rank.world_size > 1 and _waits_for_others():
                print(f"{name}: no step for {idle_s:.0f} s, and it waits for the others", file=sys.stderr, flush=True)
                # Twice what two ranks may look at their clocks apart.
                if self._over.wait(2 * pause_s) or self._idle_s() <= self._timeout_s:
                    continue
            self._reporter.end(
                HangError(
                    f"hang: no step for {idle_s:.0f} s on {name}; its stack is above",
                    "look for the rank whose stack is not in an all-reduce, or raise --hang-timeout",
                )
            )


def _waits_for_others() -> bool:
    """Whether the main thread exchanges something with other ranks.

    What DDP sums during the backward pass is waited for within autograd's engine, which has no Python of its own.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_engine_run_backward" or "/torch/distributed/" in code.co_filename:
            return True
        frame = frame.f_back
    return False
