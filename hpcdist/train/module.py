"""The training step: loss, gradient weighting, test accuracy."""

from typing import Any

import torch
import torch.distributed
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from hpcdist.config.training import Training
from hpcdist.train.data.batches import Batch, ImageData
from hpcdist.train.networks import build_optimizer
from hpcdist.train.schedules import Rates, follow
from hpcdist.train.step_count import rank_strategy


class Tally:
    """What changes in every step; an object of its own because setting a module's attribute costs microseconds.

    Attributes:
        samples: Training samples this rank computed.
        last_step: The last step's summed loss, `logits_BK` and `labels_B`.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.last_step: tuple[Tensor, Tensor, Tensor] | None = None


class Classifier(LightningModule):
    """Trains a network to tell classes apart.

    Args:
        network: From `images_BCHW` to `logits_BK`.
        training: Options.
        steps: Optimizer steps in all, for the learning rate's schedule.
        world_size: Ranks that train one batch together.
        rates: Its learning rates; None is one cycle up to `training.lr`.
    """

    def __init__(
        self, network: nn.Module, training: Training, *, steps: int, world_size: int, rates: Rates | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.training_options = training
        self.rates = rates or Rates(lr=training.lr, start=training.lr, steps=steps)
        self.rank_count = world_size
        # What a step's loss is multiplied by beside its weight: Lightning divides by the parts of a batch.
        self._parts = training.accumulate or 1
        self._norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
        self.tally = Tally()
        self.test_loss: float | None = None
        self.test_accuracy: float | None = None
        self.tested_at_step: int | None = None
        self._test_sums = torch.zeros(3, dtype=torch.float64)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, its learning rate set before each step."""
        optimizer = build_optimizer(self.training_options.optimizer, self.network, self.rates.lr)
        schedule = follow(optimizer, self.rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Choose the epoch's order."""
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        data.train_batches.epoch = self.current_epoch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """This rank's loss, scaled so that the gradient averaged over ranks is that of the whole batch's mean loss.

        DDP divides the sum of the ranks' gradients by their number, whatever their shares are. A rank's loss is
        therefore its sum over samples times ranks / samples over all ranks; a rank without samples adds zeros.
        """
        logits_BK = self._score(batch.images_BCHW)
        loss_sum = functional.cross_entropy(logits_BK, batch.labels_B, reduction="sum")
        self.tally.samples += len(batch.labels_B)
        self.tally.last_step = (loss_sum.detach(), logits_BK.detach(), batch.labels_B)
        return loss_sum * (self.rank_count * self._parts / batch.global_count)

    def _score(self, images_BCHW: Tensor) -> Tensor:
        """`logits_BK`. One sample has no variance and none has no mean: these take those of the samples before."""
        lone = self._norms if len(images_BCHW) < 2 else ()
        for norm in lone:
            norm.eval()
        logits_BK: Tensor = self.network(images_BCHW)
        for norm in lone:
            norm.train()
        return logits_BK

    def reduce_last_step(self) -> tuple[float, float]:
        """Return the mean loss and accuracy of the last step's batch over all ranks; every rank must call it.

        Where each rank trains for itself it is this rank's.
        """
        if self.tally.last_step is None:
            raise RuntimeError("no step was trained yet")
        loss_sum, logits_BK, labels_B = self.tally.last_step
        sums = _step_sums(loss_sum, logits_BK, labels_B)
        loss, correct, count = sums.tolist() if self.rank_count == 1 else self._sum_over_ranks(sums)
        return loss / max(1, count), correct / max(1, count)

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._test_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch of this rank's share."""
        if not len(batch.labels_B):
            return
        logits_BK = self.network(batch.images_BCHW)
        loss_sum = functional.cross_entropy(logits_BK, batch.labels_B, reduction="sum")
        self._test_sums += _step_sums(loss_sum, logits_BK, batch.labels_B)

    def on_validation_epoch_end(self) -> None:
        """Sum over ranks: exact, and the same figure on each."""
        loss_sum, correct, count = self._sum_over_ranks(self._test_sums)
        self.test_loss, self.test_accuracy = loss_sum / count, correct / count
        self.tested_at_step = rank_strategy(self.trainer).steps_done

    def _sum_over_ranks(self, sums: Tensor) -> tuple[float, float, float]:
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss_sum, correct, count = sums.tolist()
        return loss_sum, correct, count


def ends_step(trainer: Trainer) -> bool:
    """Whether the batch that was just computed ended an optimizer step, and was not only a part of one."""
    parts = trainer.accumulate_grad_batches
    return parts == 1 or trainer.fit_loop.epoch_loop.batch_progress.current.ready % parts == 0


def _step_sums(loss_sum: Tensor, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the sum of losses, correct answers and samples, as one tensor of three doubles."""
    correct = (logits_BK.argmax(dim=1) == labels_B).sum()
    count = torch.tensor(len(labels_B), device=labels_B.device)
    return torch.stack([loss_sum.double(), correct.double(), count.double()])
