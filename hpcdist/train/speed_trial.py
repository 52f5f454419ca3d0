"""A training that only measures its speed: it ends after a time, without a test."""

import time

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.train.module import ends_step


class SpeedTrial(Callback):
    """Ends the training so many seconds after its first step, on every rank after the same step.

    The ranks agree a few times: each time on the step at which to look again, at most twice as far as they have come.

    Args:
        seconds: How long to measure.
        world_size: Ranks in all.
    """

    def __init__(self, seconds: float, world_size: int) -> None:
        self._seconds = seconds
        self._world_size = world_size
        self._began: tuple[int, float] | None = None  # after which step, and when
        self._next = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Looks at the clock when it is time."""
        step = trainer.global_step
        if not ends_step(trainer) or step < self._next:
            return
        if self._began is None:
            self._began = (step, time.monotonic())
            return
        elapsed_s = self._agree(time.monotonic() - self._began[1], module.device)
        done = step - self._began[0]
        if elapsed_s >= self._seconds:
            trainer.should_stop = True
            return
        missing = int(done * (self._seconds - elapsed_s) / elapsed_s) + 1
        self._next = step + min(missing, done)

    def _agree(self, seconds: float, device: torch.device) -> float:
        longest = torch.tensor(seconds, dtype=torch.float64, device=device)
        if self._world_size > 1:
            dist.all_reduce(longest, dist.ReduceOp.MAX)
        return longest.item()
