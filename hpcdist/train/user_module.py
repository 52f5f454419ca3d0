"""A LightningModule and data of one's own, trained with what the launcher, the layout and the run bring.

Devices, threads, process group, precision, checkpoints, stopping, the watchdog, TensorBoard and records are as in the
built-in training. Batches, loss, optimizer and schedule are the module's; a rank's share of the data is what
Lightning's DistributedSampler gives it.
"""

import importlib
import inspect
import sys
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.data import extract_batch_size

from hpcdist.errors import UsageError
from hpcdist.train.build import require_compiler
from hpcdist.train.metrics import Recorder
from hpcdist.train.module import ends_step
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.parameter_server.flat import list_weights

# What modules log their test accuracy and loss as, the likeliest first.
ACCURACY_NAMES = ("val/accuracy", "val_accuracy", "val/acc", "val_acc", "test_acc", "test_accuracy")
LOSS_NAMES = ("val/loss", "val_loss")
TRAIN_LOSS_NAMES = ("train/loss", "train_loss", "loss")


def load_class(name: str, kind: type[Any]) -> Any:
    """Return the class that `package.module:Class` names; the folder that the job started in is on the path.

    Raises:
        UsageError: There is none, or it is of another kind.
    """
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name}: there is no module {error.name!r}", f"start it where Python finds it: {', '.join(sys.path[:2])}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UsageError(f"{name} is no {kind.__name__}", f"name a class of {module_name} that is one")
    return found


def make(name: str, kind: type[Any]) -> Any:
    """Return an object of the class that `package.module:Class` names.

    Raises:
        UsageError: There is no such class, or it can't be made without arguments.
    """
    found = load_class(name, kind)
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise UsageError(
            f"{name} can't be made without arguments: {error}",
            "give every argument a default, or name a subclass that needs none",
        ) from None
    return found()


class OwnRecorder(Recorder):
    """Measures a module that is not ours: its figures are what it logs."""

    _samples = 0  # that this rank computed

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Nothing: the module logs its own learning rate."""

    def _log_point(self, module: LightningModule, step: int) -> None:
        """The speed alone; the loss is read for the display, which waits for a GPU."""
        self.train_loss = _find(module.trainer, TRAIN_LOSS_NAMES)
        images_per_s = self.images_per_s()
        if self._logger and images_per_s is not None:
            self._logger.log_metrics({"train/images_per_s": images_per_s}, step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; a rank's samples stand for every rank's."""
        mine = extract_batch_size(batch)
        self._samples += mine
        self._images += mine * trainer.world_size
        if not ends_step(trainer):
            return
        if self._is_first:
            self._outcome.learn(global_batch_size=self._images)
        self._count_step(trainer, module)
        self._outcome.count(steps=trainer.global_step, samples=self._samples)

    def _test_figures(self, trainer: Trainer, module: LightningModule) -> tuple[float | None, float | None]:
        return _find(trainer, ACCURACY_NAMES), _find(trainer, LOSS_NAMES)


def _find(trainer: Trainer, names: tuple[str, ...]) -> float | None:
    logged = trainer.callback_metrics
    return next((float(logged[name]) for name in names if name in logged), None)


def build_own(options: Options, outcome: Outcome) -> tuple[LightningModule, pl.LightningDataModule]:
    """Build what `--module` and `--datamodule` name.

    Raises:
        UsageError: There are no such classes.
        NotReadyError: The module is to be compiled and nothing can.
    """
    training = options.training
    torch.manual_seed(training.seed)
    module: LightningModule = make(str(training.module), LightningModule)
    data: pl.LightningDataModule = make(str(training.datamodule), pl.LightningDataModule)
    if training.compile:
        require_compiler()
        module.compile(dynamic=False)
    outcome.learn(model=training.module, parameters=sum(one.numel() for one in list_weights(module)))
    return module, data


def introduce_own(options: Options, outcome: Outcome, done: int) -> None:
    """Print what is trained, after `done` steps that were trained before."""
    layout, training = options.layout, options.training
    gone_on = f"; goes on after step {done}" if done else ""
    print(
        f"layout {layout.name}: {layout.world_size} rank(s); {training.module} with {outcome.metrics().parameters:,}"
        f" parameters on {training.datamodule}{gone_on}",
        flush=True,
    )
