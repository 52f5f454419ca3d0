"""Measure the training while it runs: phases, throughput, curves, and when to stop."""

import time

from pytorch_lightning import Callback, LightningModule, Trainer

from hpcdist.records.ranks import TestResult
from hpcdist.train.data.batches import Batch
from hpcdist.train.distributed import find_longest, settle
from hpcdist.train.failure import FailureReporter, StoppedError
from hpcdist.train.loggers import RunLoggers
from hpcdist.train.module import Classifier, ends_step
from hpcdist.train.outcome import Outcome, StepTimes
from hpcdist.train.step_count import rank_strategy


class Recorder(Callback):
    """Keeps the rank's `Outcome` up to date and logs the curves.

    Args:
        outcome: Where figures go; its clock is set to the phase that runs.
        logger: Where the curves go; None logs nothing.
        log_every: Steps between logged points.
    """

    def __init__(self, outcome: Outcome, reporter: FailureReporter, logger: RunLoggers | None, log_every: int) -> None:
        self._outcome, self._clock, self._reporter = outcome, outcome.clock, reporter
        self._logger, self._log_every = logger, log_every
        self._step_times = StepTimes()
        self._is_first = True
        self._step = 0  # this rank's own; counted here, because asking Lightning costs microseconds each time
        self._is_cpu = True
        self._images = 0  # over all ranks
        self._first_images = 0
        self._lr = 0.0
        self._logged: tuple[int, float] | None = None  # images and steady seconds at the last logged point
        self._interrupted = "other"
        self.train_loss: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything is set up."""
        self._clock.enter("first_step")
        self._step, self._is_cpu = trainer.global_step, module.device.type == "cpu"

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Note the learning rate: after the step it is the next one's."""
        if self._logs_at(self._step + 1):
            self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step."""
        if not ends_step(trainer):
            return
        self._images = rank_strategy(trainer).count_images(batch, self._images)
        self._count_step(trainer, module)
        self._outcome.count(steps=rank_strategy(trainer).steps_done, samples=_classifier(module).tally.samples)

    def _count_step(self, trainer: Trainer, module: LightningModule) -> None:
        self._step += 1
        is_first, self._is_first = self._is_first, False
        if is_first:
            settle(module.device)
            self._first_images = self._images
            self._clock.enter("steady")
            self._outcome.learn(steady_at_s=time.time())
        if self._logs_at(self._step):
            self._log_point(module, rank_strategy(trainer).steps_done)
        self._step_times.tick(settled=self._is_cpu or is_first or self._logs_at(self._step))

    def _logs_at(self, step: int) -> bool:
        return step % self._log_every == 0

    def _log_point(self, module: LightningModule, step: int) -> None:
        self.train_loss, accuracy = _classifier(module).reduce_last_step()
        points = {"train/loss": self.train_loss, "train/accuracy": accuracy, "lr": self._lr}
        now = (self._images, self._clock.seconds()["steady"])
        if self._logged and now[1] > self._logged[1]:
            images_per_s = (now[0] - self._logged[0]) / (now[1] - self._logged[1])
            points |= {"train/images_per_s": images_per_s, "train/step_time_s": self._step_times.last_s() or 0.0}
        self._logged = now
        if self._logger:
            self._logger.log_metrics(points, step)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the training's stop-watches."""
        settle(module.device)
        self._interrupted = self._clock.enter("validation")
        self._outcome.learn(**self._speed())

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the test accuracy."""
        accuracy, loss = self._test_figures(trainer, module)
        if accuracy is not None:
            step = rank_strategy(trainer).steps_done
            test = TestResult(step=step, accuracy=accuracy, at_s=time.time())
            self._outcome.learn(accuracy=accuracy, loss=loss, tests=(*self._outcome.metrics().tests, test))
            if self._logger and loss is not None:
                self._logger.log_metrics({"val/accuracy": accuracy, "val/loss": loss}, step)
        self._step_times.pause()
        self._clock.enter(self._interrupted)

    def _test_figures(self, trainer: Trainer, module: LightningModule) -> tuple[float | None, float | None]:
        classifier = _classifier(module)
        return classifier.test_accuracy, classifier.test_loss

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Count the epoch, unless `max_steps` cut it short."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._outcome.learn(epochs=rank_strategy(trainer).epochs_done)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop measuring."""
        settle(module.device)
        self._outcome.learn(**self._speed())
        self._clock.enter("other")

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """End the rank before Lightning cleans up, which can wait for ranks that are gone."""
        if self._logger and isinstance(exception, StoppedError):
            self._logger.close()
        self._reporter.end(exception)

    def images_per_s(self) -> float | None:
        """Return the training throughput over all ranks since the first step; None before the second."""
        steady_s = self._clock.seconds().get("steady", 0.0)
        images = self._images - self._first_images
        return images / steady_s if images and steady_s else None

    def _speed(self) -> dict[str, float | None]:
        return {"images_per_s": self.images_per_s(), "step_time_s": self._step_times.median_s()}


def _classifier(module: LightningModule) -> Classifier:
    if not isinstance(module, Classifier):
        raise TypeError(f"{type(module).__name__} is no Classifier")
    return module


class StopAtAccuracy(Callback):
    """Stops the training after the first test that reaches an accuracy; all ranks see the same figure.

    Args:
        target: The accuracy, a fraction.
        started_at_s: Start of this process, seconds since the epoch.
    """

    def __init__(self, target: float, outcome: Outcome, started_at_s: float) -> None:
        self._target, self._outcome, self._started_at_s = target, outcome, started_at_s
        outcome.learn(target_accuracy=target)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare the test's accuracy with the target."""
        metrics = self._outcome.metrics()
        if metrics.time_to_target_s is None and (metrics.accuracy or 0.0) >= self._target:
            self._outcome.learn(time_to_target_s=time.time() - self._started_at_s)
            trainer.should_stop = True


class SpeedTrial(Callback):
    """Ends the training so many seconds after its first step, on every rank after the same step.

    The ranks agree a few times: each time on the step at which to look again, at most twice as far as they have come.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: tuple[int, float] | None = None  # after which step, and when
        self._next = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Look at the clock when it is time."""
        step = trainer.global_step
        if not ends_step(trainer) or step < self._next:
            return
        if self._began is None:
            self._began = (step, time.monotonic())
            return
        elapsed_s = find_longest(time.monotonic() - self._began[1], module.device)
        done = step - self._began[0]
        if elapsed_s >= self._seconds:
            trainer.should_stop = True
            return
        missing = int(done * (self._seconds - elapsed_s) / elapsed_s) + 1
        self._next = step + min(missing, done)
