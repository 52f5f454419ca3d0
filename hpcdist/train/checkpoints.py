"""Checkpoints of a run: whole files, the last two."""

import io
import time
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.disk import write_atomically
from hpcdist.train.phases import Clock

KEPT = 2


class Checkpoints(Callback):
    """Rank 0 writes `step-<n>.ckpt` at the end, and every so often before.

    The other ranks take no part: under DDP rank 0 has everything, and they wait for it in the next step.

    Args:
        folder: Made if absent.
        clock: Where the time is booked.
        interval_s: Seconds between checkpoints; None writes only the last one.
    """

    def __init__(self, folder: Path, clock: Clock, interval_s: float | None) -> None:
        self._folder = folder
        self._clock = clock
        self._interval_s = interval_s
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Writes when it is time."""
        if self._interval_s is not None and time.monotonic() - self._last >= self._interval_s:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the last one."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        interrupted = self._clock.enter("checkpoint")
        self._folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        # Not Trainer.save_checkpoint: it ends in a barrier, and writes in place.
        torch.save(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), content)
        write_atomically(self._folder / f"step-{trainer.global_step:08d}.ckpt", content.getvalue())
        for old in sorted(self._folder.glob("step-*.ckpt"))[:-KEPT]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._clock.enter(interrupted)
