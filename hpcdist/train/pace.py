"""How far a training is over all its ranks, whatever its strategy."""

import math

from pytorch_lightning import Trainer

from hpcdist.train.async_server import AsyncServer
from hpcdist.train.data import Batch


# In each step, so not isinstance(): of an abstract class it takes microseconds.
def count_steps_done(trainer: Trainer) -> int:
    """Whole batches trained over all ranks: this rank's own steps, unless each goes its own pace."""
    strategy = trainer.strategy
    return strategy.steps_done if type(strategy) is AsyncServer else trainer.global_step


def count_epochs_done(trainer: Trainer) -> int:
    """Epochs trained to their last batch, once the last batch of one is done."""
    strategy = trainer.strategy
    return strategy.epochs_done if type(strategy) is AsyncServer else trainer.current_epoch + 1


def find_epoch(trainer: Trainer) -> int:
    """The epoch of the last step, counted from 1."""
    strategy = trainer.strategy
    if type(strategy) is AsyncServer:
        return strategy.epoch
    # Not current_epoch: Lightning counts it up before the last test.
    return math.ceil(trainer.global_step * trainer.accumulate_grad_batches / trainer.num_training_batches) or 1


def count_images(trainer: Trainer, batch: Batch, before: int) -> int:
    """Images that all ranks trained since the process began, after a step with this batch.

    Args:
        trainer: The training.
        batch: This rank's part of the step.
        before: What it was before the step.
    """
    strategy = trainer.strategy
    return strategy.images if type(strategy) is AsyncServer else before + batch.global_count
