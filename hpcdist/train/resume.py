"""The moments between two steps at which all ranks do something together: save, stop, go on."""

import math
import time
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.train.checkpoint import Checkpoints
from hpcdist.train.data.batches import ImageData
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import StoppedError
from hpcdist.train.module import Classifier, ends_step
from hpcdist.train.step_count import rank_strategy

# How often the ranks agree. Each time costs an all-reduce of three numbers: 0.5 % of the time at 2.5 ms.
INTERVAL_S = 0.5
# So late the next time may be: on cores that others use too, steps may take four times as long as they just did.
LATEST_S = 4 * INTERVAL_S


class SyncPoints(Callback):
    """Takes checkpoints when it is time, and stops the training when any rank was asked to.

    A rank that stopped on its own would leave the others waiting in the next all-reduce, so they agree, about twice
    a second and after the same step: the step is computed from what the last agreement exchanged. Where ranks go their
    own pace it is the parameter server that calls them together, for which every rank tells it when it was asked.

    A checkpoint is taken before its time where the next chance comes after it: at the next agreement, or, near the end
    of an epoch, after a test. So no more than the interval is lost, where that is longer than a test.

    Args:
        rank: This rank, with the file that asks it to stop.
        interval_s: Seconds between checkpoints at most.
        steps: Optimizer steps in all.
    """

    def __init__(self, checkpoints: Checkpoints, rank: RankEnvironment, interval_s: float, steps: int) -> None:
        self._checkpoints, self._rank = checkpoints, rank
        self._interval_s, self._steps = interval_s, steps
        self._agreed = (0, time.monotonic())  # after which step, and when
        self._next = 0
        self._test_began = 0.0
        self._test_s = math.inf  # until one was seen

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the stop-watches."""
        step = rank_strategy(trainer).steps_done
        self._agreed = (step, time.monotonic())
        self._next = step + 1

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Agree when it is time, but not between the last step of an epoch and its test, nor within a step."""
        if not ends_step(trainer):
            return
        strategy = rank_strategy(trainer)
        step, is_time = strategy.steps_done, strategy.is_paused
        if is_time is None:
            is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            is_time = step >= self._next and not is_last and step != self._steps
        if is_time:
            self._pause(trainer, module, step)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Agree when it is time since the last step of the epoch before: an epoch may be a single step."""
        strategy = rank_strategy(trainer)
        if strategy.is_paused is None and strategy.steps_done >= self._next:
            self._pause(trainer, module, strategy.steps_done)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """A test begins."""
        self._test_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The next one will take as long."""
        self._test_s = time.monotonic() - self._test_began

    def _pause(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        left = (trainer.num_training_batches - progress.ready) / trainer.accumulate_grad_batches
        stop, save = self._agree(step, left, module.device)
        if stop or save:
            self._checkpoints.take(trainer)
        if stop:
            self._checkpoints.wait()
            rank_strategy(trainer).close()
            if self._rank.world_size > 1:
                # A rank that exits while rank 0 still writes would have the job killed.
                dist.barrier()
            raise StoppedError(f"asked to stop: saved after step {step} of {self._steps}")

    def _agree(self, step: int, left: float, device: torch.device) -> tuple[bool, bool]:
        """Whether to stop, and whether to save; `left` is of the epoch's steps."""
        last_step, last_time = self._agreed
        now = time.monotonic()
        asked = self._rank.stop_file is not None and self._rank.stop_file.exists()
        step_s = (now - last_time) / max(1, step - last_step)
        next_s = LATEST_S + (self._test_s if 0 < left * step_s <= INTERVAL_S + step_s else 0)
        due = self._rank.rank == 0 and self._checkpoints.is_due(self._interval_s - next_s)
        wishes = torch.tensor([asked, due, step_s], dtype=torch.float64, device=device)
        if self._rank.world_size > 1:
            dist.all_reduce(wishes, dist.ReduceOp.MAX)
        stop, save, step_s = wishes.tolist()
        self._agreed = (step, now)
        self._next = step + max(1, math.ceil(INTERVAL_S / step_s))
        return bool(stop), bool(save)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the last one."""
        self._checkpoints.take(trainer)
        self._checkpoints.wait()


class ResumeCallback(Callback):
    """Makes the first step of a training that goes on the same, bit for bit, as if it had never stopped.

    Args:
        content: The checkpoint to go on from; None begins anew.
    """

    def __init__(self, checkpoints: Checkpoints, content: dict[str, Any] | None) -> None:
        self._checkpoints = checkpoints
        self._content = content

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the epochs that were trained to their end, whichever moment the checkpoint was taken at.

        Lightning has counted the epoch that `max_steps` cut short, and would not train the rest of it.
        """
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_progress"]
        is_whole = loop["epoch_loop.batch_progress"]["is_last_batch"]
        for counts in (progress["total"], progress["current"]):
            if is_whole:
                counts["ready"] = counts["started"] = counts["completed"] = counts["processed"]
            else:
                counts["started"] = counts["ready"]
                counts["processed"] = counts["completed"] = counts["ready"] - 1

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Settle the next epoch, the order of sums, then the random numbers."""
        if trainer.fit_loop.restarting and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            _begin_epoch(trainer)
        if trainer.world_size > 1 and isinstance(module, Classifier):
            _settle_buckets(trainer, module)
        if self._content is not None:
            self._checkpoints.restore(self._content, module)
            self._content = None


def _begin_epoch(trainer: Trainer) -> None:
    """Have Lightning begin the next epoch as it does in the middle of a run.

    It would go back into the one that is done, and how it leaves that differs with what else was asked for: with
    `max_steps` it counts an epoch that nobody trained [Lightning 2.6.6].
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    for loop in (trainer.fit_loop, epoch_loop, epoch_loop.val_loop):
        loop.on_iteration_done()


def _settle_buckets(trainer: Trainer, module: Classifier) -> None:
    """Have DDP choose its buckets now, by a backward pass without samples.

    DDP sorts gradients into buckets anew after the first backward pass of a process, by the order in which they came.
    With three or more ranks that changes the order in which they are added up, so a first step that went on from a
    checkpoint would round differently from the same step in the middle of a run [seen with torch 2.14.1 and gloo].
    """
    data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
    loss = trainer.strategy.training_step(data.train_batches.nothing(), 0)
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"a training step gave {type(loss).__name__}")
    loss.backward()  # type: ignore[no-untyped-call]
    trainer.optimizers[0].zero_grad()
    module.tally.last_step = None
