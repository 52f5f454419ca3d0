"""What a person waiting for the training reads: lines on standard output, and `progress.json`."""

import contextlib
import time
from pathlib import Path

import msgspec
from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.files import write_atomically
from hpcdist.records.job import Progress
from hpcdist.train.metrics import Recorder
from hpcdist.train.outcome import Outcome
from hpcdist.train.step_count import rank_strategy

FILE_INTERVAL_S = 1.0
LINE_INTERVAL_S = 5.0


class ConsoleProgress(Callback):
    """Tells on rank 0 how far the training is: a line per epoch and every few seconds, the file every second.

    Args:
        path: `progress.json`; None writes none.
        steps: Optimizer steps in all; None where Lightning counts them.
    """

    def __init__(
        self, recorder: Recorder, outcome: Outcome, path: Path | None, *, epochs: int, steps: int | None
    ) -> None:
        self._recorder, self._outcome = recorder, outcome
        self._path = path
        self._epochs, self._steps = epochs, steps
        self._file_at = self._line_at = self._epoch_at = time.monotonic()
        self._tested_at: int | None = None

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the epoch's stop-watch."""
        self._epoch_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Tell when it is time."""
        now = time.monotonic()
        if now - self._file_at >= FILE_INTERVAL_S:
            self._file_at = now
            self._write(self._progress(trainer))
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if now - self._line_at >= LINE_INTERVAL_S and not ends_epoch:
            self._line_at = now
            self._print(self._progress(trainer), "")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell how the epoch went."""
        self._line_at = time.monotonic()
        progress = self._progress(trainer)
        is_new = self._tested_at == progress.step and progress.accuracy is not None
        accuracy = f"  test accuracy {100 * (progress.accuracy or 0):.2f} %" if is_new else ""
        self._print(progress, f"{accuracy}  {self._line_at - self._epoch_at:.1f} s")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the new accuracy down at once."""
        self._tested_at = rank_strategy(trainer).steps_done
        self._file_at = time.monotonic()
        self._write(self._progress(trainer))

    def _progress(self, trainer: Trainer) -> Progress:
        strategy = rank_strategy(trainer)
        return Progress(
            epoch=strategy.epoch,
            epochs=self._epochs,
            step=strategy.steps_done,
            steps=int(trainer.estimated_stepping_batches) if self._steps is None else self._steps,
            loss=self._recorder.train_loss,
            accuracy=self._outcome.metrics().accuracy,
            images_per_s=self._recorder.images_per_s(),
        )

    def _write(self, progress: Progress) -> None:
        if self._path is None:
            return
        # A full disk costs the display, not the training.
        with contextlib.suppress(OSError):
            write_atomically(self._path, msgspec.json.encode(progress), durable=False)

    def _print(self, progress: Progress, rest: str) -> None:
        loss = "" if progress.loss is None else f"  loss {progress.loss:.4f}"
        speed = "" if progress.images_per_s is None else f"  {progress.images_per_s:,.0f} images/s"
        line = f"epoch {progress.epoch}/{progress.epochs}  step {progress.step}/{progress.steps}"
        print(f"{line}{loss}{speed}{rest}", flush=True)
