"""A LightningModule and data of one's own, trained with what the launcher, the layout and the run bring.

Devices, threads, process group, precision, checkpoints, stopping, the watchdog, TensorBoard and records are as in the
built-in training. Batches, loss, optimizer and schedule are the module's; a rank's share of the data is what
Lightning's DistributedSampler gives it.
"""

import importlib
import inspect
import sys
from contextlib import closing
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.data import extract_batch_size

from hpcdist.errors import UsageError
from hpcdist.train.build import build_trainer, require_compiler
from hpcdist.train.checkpoint import Checkpoints, read_step
from hpcdist.train.console import ConsoleProgress
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.loggers import open_loggers
from hpcdist.train.metrics import Recorder, settle
from hpcdist.train.module import ends_step
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.resume import ResumeCallback, SyncPoints
from hpcdist.train.strategies import build_strategy
from hpcdist.train.watchdog import Watchdog

# What modules log their test accuracy and loss as, the likeliest first.
ACCURACY_NAMES = ("val/accuracy", "val_accuracy", "val/acc", "val_acc", "test_acc", "test_accuracy")
LOSS_NAMES = ("val/loss", "val_loss")
TRAIN_LOSS_NAMES = ("train/loss", "train_loss", "loss")


def load_class(name: str, kind: type[Any]) -> Any:
    """The class that `package.module:Class` names; the folder that the job started in is on the path.

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
    """An object of the class that `package.module:Class` names.

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

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything is set up."""
        super().on_train_start(trainer, module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ConsoleProgress):
                callback.steps = int(trainer.estimated_stepping_batches)

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
        """Counts the step; a rank's samples stand for every rank's."""
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


def fit_own(
    options: Options, rank: RankEnvironment, *, device: torch.device, outcome: Outcome, reporter: FailureReporter
) -> None:
    """Trains the module that `--module` names on the data of `--datamodule`.

    Raises:
        UsageError: There are no such classes, or the checkpoint to go on from is of another training.
        StoppedError: It was asked to stop.
    """
    training = options.training
    torch.manual_seed(training.seed)
    module: LightningModule = make(str(training.module), LightningModule)
    data: pl.LightningDataModule = make(str(training.datamodule), pl.LightningDataModule)
    if training.compile:
        require_compiler()
        module.compile(dynamic=False)
    parameters = sum(one.numel() for one in module.parameters() if one.requires_grad)
    outcome.learn(model=training.module, parameters=parameters)
    checkpoints = Checkpoints(rank.checkpoints, rank, options, outcome)
    begin = checkpoints.find()
    done = read_step(begin) if begin else 0
    logger = open_loggers(options, rank, done + 1)
    recorder = OwnRecorder(outcome, reporter, logger, training.log_every)
    # It watches from the first step on: what a data module prepares may take its time.
    watchdog = Watchdog(options.hang_timeout_s, rank, reporter)
    callbacks: list[pl.Callback] = [
        ResumeCallback(checkpoints, checkpoints.load(begin) if begin else None),
        recorder,
        watchdog,
    ]
    if rank.rank == 0:
        _introduce(options, parameters, done)
        progress = rank.run_dir / "progress.json" if rank.run_dir else None
        callbacks.append(ConsoleProgress(recorder, outcome, progress, epochs=training.epochs, steps=0))
    callbacks.append(SyncPoints(checkpoints, rank, options.checkpoint_interval_s, steps=-1))
    strategy = build_strategy(options, rank, device)
    trainer = build_trainer(options, rank, callbacks, logger, strategy=strategy, device=device, cuts_data=True)
    if logger:
        logger.log_options(options)
    with closing(watchdog):
        trainer.fit(module, datamodule=data, ckpt_path=begin, weights_only=True)
    outcome.learn(finished=True)
    settle(module)
    if logger:
        logger.log_summary(outcome.metrics())


def _introduce(options: Options, parameters: int, done: int) -> None:
    layout, training = options.layout, options.training
    gone_on = f"; goes on after step {done}" if done else ""
    print(
        f"layout {layout.name}: {layout.world_size} rank(s); {training.module} with {parameters:,} parameters"
        f" on {training.datamodule}{gone_on}",
        flush=True,
    )
