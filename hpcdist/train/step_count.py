"""How far a training is over all its ranks, whatever its strategy."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import Strategy
from torch import nn

from hpcdist.train.data.batches import Batch
from hpcdist.train.step_timer import Part


def ignore_part(part: Part) -> None:
    """Measure nothing."""


class RankStrategy(Strategy):
    """What the training asks of each of its strategies; the answers here are those of ranks that go in step.

    Attributes:
        end_part: Told what was done until now, for the split of a step.
        is_process_of_its_own: Whether Lightning takes this rank for all there is.
        own_epochs: Epochs of this rank, where its own steps say nothing of the training; None where they do.
        is_paused: Whether a server has called all ranks together in this step; None where they agree by themselves.
    """

    end_part: Callable[[Part], None] = staticmethod(ignore_part)
    is_process_of_its_own = False
    own_epochs: int | None = None
    is_paused: bool | None = None

    @property
    def network(self) -> LightningModule:
        """What is trained."""
        if self.lightning_module is None:
            raise RuntimeError("there is no model yet")
        return self.lightning_module

    @property
    def trainer(self) -> Trainer:
        """The trainer that this is the strategy of."""
        return self.network.trainer

    @property
    def steps_done(self) -> int:
        """The whole batches that all ranks have trained."""
        return self.trainer.global_step

    @property
    def epochs_done(self) -> int:
        """Epochs trained to their last batch, once the last batch of one is done."""
        return self.trainer.current_epoch + 1

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        trainer = self.trainer
        # Not current_epoch: Lightning counts it up before the last test.
        return math.ceil(trainer.global_step * trainer.accumulate_grad_batches / trainer.num_training_batches) or 1

    def count_images(self, batch: Batch, before: int) -> int:
        """Count the images that all ranks trained since the process began.

        Args:
            batch: This rank's part of the step that was just done.
            before: What it was before the step.
        """
        return before + batch.global_count

    def bytes_per_step(self, network: nn.Module) -> int:
        """Return what one rank sends per step, and with a server also gets back; see `TrainingMetrics`."""
        return 0

    def held(self) -> AbstractContextManager[Any]:
        """Let no rank change the weights for a while."""
        return nullcontext()

    def server_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the server; empty where there is none."""
        return {}

    def close(self) -> None:
        """Expect no rank to send anything any more."""


def rank_strategy(trainer: Trainer) -> RankStrategy:
    """Return the trainer's strategy, which is one of ours."""
    return cast("RankStrategy", trainer.strategy)
