"""The test accuracy at which a training is done."""

import time

from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.train.outcome import Outcome


class Goal(Callback):
    """Stops the training after the first test that reaches an accuracy; all ranks see the same figure.

    Args:
        target: The accuracy, a fraction; None only ever trains to the end.
        outcome: Source of the accuracy, and where the time goes.
        started_at_s: Start of this process, seconds since the epoch.
    """

    def __init__(self, target: float | None, outcome: Outcome, started_at_s: float) -> None:
        self._target = target
        self._outcome = outcome
        self._started_at_s = started_at_s
        self.is_reached = False
        outcome.learn(target_accuracy=target)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compares."""
        accuracy = self._outcome.metrics().accuracy
        if self._target is None or accuracy is None or accuracy < self._target or self.is_reached:
            return
        self.is_reached = True
        self._outcome.learn(time_to_target_s=time.time() - self._started_at_s)
        trainer.should_stop = True
