"""Put the parts together and train."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from hpcdist.train.build import build_module, build_trainer, count_steps
from hpcdist.train.checkpoint import OWN_KEY, Checkpoints, read_step
from hpcdist.train.console import ConsoleProgress
from hpcdist.train.data.batches import ImageData
from hpcdist.train.data.load import read_data
from hpcdist.train.distributed import (
    choose_device,
    choose_threads,
    count_ranks_here,
    join_process_group,
    open_store,
    use_threads,
)
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.loggers import open_loggers
from hpcdist.train.metrics import Recorder, SpeedTrial, StopAtAccuracy
from hpcdist.train.module import Classifier
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.parameter_server.asynchronous import AsyncServer
from hpcdist.train.parameter_server.part_batches import PartBatches
from hpcdist.train.parameter_server.server import Server, WorkQueue
from hpcdist.train.preflight.checks import preflight
from hpcdist.train.resume import ResumeCallback, SyncPoints
from hpcdist.train.step_count import RankStrategy
from hpcdist.train.step_profile import StepProfiler
from hpcdist.train.strategies import build_strategy
from hpcdist.train.user_module import OwnRecorder, build_own, introduce_own
from hpcdist.train.watchdog import Watchdog

# Share of a step spent waiting for data from which it is worth a line.
STARVED = 0.2
# What reading data may always take: it imports torchvision, from a disk that may be cold.
READING_S = 60.0


def train(options: Options, rank: RankEnvironment, data_dir: Path, outcome: Outcome, reporter: FailureReporter) -> None:
    """Train to the end.

    Raises:
        HpcdistError: Something a user can mend is in the way.
        RuntimeError: The training ended before its last step.
    """
    clock = outcome.clock
    clock.enter("process_group")
    if options.training.preflight:
        device = preflight(options, rank, outcome, reporter)
    else:
        device = choose_device(options, rank)
        join_process_group(rank, device, open_store(rank))
    threads = choose_threads(options.layout.cpus_per_task, count_ranks_here(rank))
    use_threads(threads)
    outcome.learn(world_size=rank.world_size)
    data = None
    if not options.training.module:
        clock.enter("data")
        with closing(Watchdog(max(options.hang_timeout_s, READING_S), rank, reporter)) as watchdog:
            watchdog.start()
            data = read_data(options, rank, data_dir, device, threads)
        clock.enter("other")
        outcome.learn(global_batch_size=options.batch_size)
        if rank.rank == 0:
            _introduce(options, device, threads, count_steps(options, data.train_batches.steps_per_epoch))
            print("".join(f"{sentence}\n" for sentence in rank.slowdown.sentences()), end="", flush=True)
    fit(options, rank, data, device=device, outcome=outcome, reporter=reporter)
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank.rank == 0:
        _conclude(outcome)


def fit(
    options: Options,
    rank: RankEnvironment,
    data: ImageData | None,
    *,
    device: torch.device,
    outcome: Outcome,
    reporter: FailureReporter,
) -> None:
    """Train and test in a process group that stands.

    Args:
        data: What a built-in network is trained on; None trains the module and the data of one's own.

    Raises:
        RuntimeError: The training ended before its last step.
        StoppedError: It was asked to stop.
        UsageError: The checkpoint to go on from is of another training, or there is no such module.
    """
    with closing(Watchdog(options.hang_timeout_s, rank, reporter)) as watchdog:
        fitting = _Fit(options, rank, device=device, outcome=outcome, reporter=reporter, watchdog=watchdog)
        if data is None:
            # Watched from the first step on: what a data module of one's own prepares may take its time.
            fitting.train_own()
        else:
            watchdog.start()
            fitting.train_built_in(data)
        fitting.finish()


class _Fit:
    """One rank's training of a built-in network, or of a module of one's own."""

    def __init__(
        self,
        options: Options,
        rank: RankEnvironment,
        *,
        device: torch.device,
        outcome: Outcome,
        reporter: FailureReporter,
        watchdog: Watchdog,
    ) -> None:
        self._options, self._rank, self._device = options, rank, device
        self._outcome, self._reporter, self._watchdog = outcome, reporter, watchdog

    def train_own(self) -> None:
        """Train the module that `--module` names on the data of `--datamodule`."""
        module, data = build_own(self._options, self._outcome)
        self._open(None)
        if self._rank.rank == 0:
            introduce_own(self._options, self._outcome, self._done)
        recorder = OwnRecorder(self._outcome, self._reporter, self._logger, self._options.training.log_every)
        strategy = build_strategy(self._options, self._rank, self._device)
        self._run(module, data, strategy, self._list_callbacks(recorder, None))

    def train_built_in(self, data: ImageData) -> None:
        """Train a network on images to the last step, and test it there."""
        options, rank, outcome = self._options, self._rank, self._outcome
        steps = count_steps(options, data.train_batches.steps_per_epoch)
        module = build_module(options, rank, data, outcome)
        self._open(steps)
        outcome.learn(steps=self._done, epochs=self._done // data.train_batches.steps_per_epoch or None)
        if self._content is not None and rank.rank == 0:
            print(f"goes on after step {self._done} of {steps}, from {self._begin}", flush=True)
            before = self._content[OWN_KEY].get("steps")  # those of release 0.1 do not say it
            if before not in (None, steps) and module.rates.schedule != "constant":
                print(f"the learning rate goes on as in a training of {steps} steps; that one had {before}", flush=True)
        recorder = Recorder(outcome, self._reporter, self._logger, options.training.log_every)
        profiler = StepProfiler(
            outcome, self._device, rank=rank.rank, world_size=rank.world_size, slowdown=rank.slowdown
        )
        data.train_batches.watch = profiler.watch
        strategy: RankStrategy
        if options.is_async:
            strategy = self._build_async_server(module, data, steps)
        else:
            strategy = build_strategy(options, rank, self._device)
        strategy.end_part = profiler.end_part
        trainer = self._run(module, data, strategy, [*self._list_callbacks(recorder, steps), profiler])
        if options.speed_trial_s is not None:
            return
        reached = strategy.steps_done
        if reached < steps and outcome.metrics().time_to_target_s is None:
            raise RuntimeError(f"the training ended at step {reached} of {steps}")
        if module.tested_at_step != reached:
            # `max_steps` ended within an epoch, where Lightning does not validate.
            trainer.validate(module, datamodule=data, verbose=False)

    def finish(self) -> None:
        """Write the figures of the whole run."""
        self._outcome.learn(finished=True)
        if self._logger:
            self._logger.log_summary(self._outcome.metrics())

    def _open(self, steps: int | None) -> None:
        """Find the checkpoint to go on from, and open the loggers; `steps` are None where the module knows them."""
        self._checkpoints = Checkpoints(self._rank.checkpoints, self._rank, self._options, self._outcome, steps)
        self._begin = self._checkpoints.find()
        self._done = read_step(self._begin) if self._begin else 0
        self._content = self._checkpoints.load(self._begin) if self._begin else None
        self._logger = open_loggers(self._options, self._rank, self._done + 1)

    def _list_callbacks(self, recorder: Recorder, steps: int | None) -> list[pl.Callback]:
        options, rank, outcome = self._options, self._rank, self._outcome
        callbacks: list[pl.Callback] = [ResumeCallback(self._checkpoints, self._content), recorder, self._watchdog]
        if (target := options.training.target_accuracy) is not None:
            callbacks.append(StopAtAccuracy(target, outcome, rank.started_at_s))
        if rank.rank == 0:
            progress = rank.run_dir / "progress.json" if rank.run_dir else None
            callbacks.append(ConsoleProgress(recorder, outcome, progress, epochs=options.training.epochs, steps=steps))
        if options.speed_trial_s is not None:
            return [*callbacks, SpeedTrial(options.speed_trial_s)]
        interval_s = options.checkpoint_interval_s
        return [*callbacks, SyncPoints(self._checkpoints, rank, interval_s, -1 if steps is None else steps)]

    def _build_async_server(self, module: Classifier, data: ImageData, steps: int) -> AsyncServer:
        """Build the strategy of a rank that the server tells what to train, and give it the batches for it."""
        steps_per_epoch, ranks = data.train_batches.steps_per_epoch, self._rank.world_size
        parts_per_epoch = ranks * steps_per_epoch
        optimizer_state: dict[str, Any] | None = None
        parts_done = 0
        if self._content is not None:
            module.load_state_dict(self._content["state_dict"])
            state, ranks_before = self._content[OWN_KEY]["server"], len(self._content[OWN_KEY]["ranks"])
            optimizer_state, parts_done = state["optimizer"], state["parts_done"]
            if ranks_before != ranks:
                # A batch has another number of parts now: what of a batch was done is done again.
                parts_done = parts_done // ranks_before * ranks
            self._begin = None  # all that Lightning would take from it is the server's
        server = None
        if self._rank.rank == 0:
            server = Server(
                module,
                WorkQueue(ranks=ranks, batches_per_epoch=steps_per_epoch, batches=steps, done=parts_done),
                lambda: self._checkpoints.is_due(self._options.checkpoint_interval_s),
                self._reporter,
                optimizer_state=optimizer_state,
                parts_done=parts_done,
            )
        strategy = AsyncServer(self._device, self._rank, server, parts_per_epoch=parts_per_epoch, parts_done=parts_done)
        strategy.own_epochs = -(-steps // steps_per_epoch) - parts_done // parts_per_epoch
        data.train_batches = PartBatches(data.train_batches, strategy, ranks, self._options.accumulate)
        return strategy

    def _run(
        self,
        module: pl.LightningModule,
        data: pl.LightningDataModule,
        strategy: RankStrategy,
        callbacks: list[pl.Callback],
    ) -> pl.Trainer:
        trainer = build_trainer(
            self._options, self._rank, callbacks, self._logger, strategy=strategy, device=self._device
        )
        if self._logger:
            self._logger.log_options(self._options)
        trainer.fit(module, datamodule=data, ckpt_path=self._begin, weights_only=True)
        return trainer


def _introduce(options: Options, device: torch.device, threads: int, steps: int) -> None:
    layout = options.layout
    asked = layout.cpus_per_task
    few = "" if threads == asked else f" (of {asked} asked: this machine has {os.cpu_count()} CPUs for all its ranks)"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"layout {layout.name}: {layout.world_size} rank(s), {where}, {threads} thread(s) each{few};"
        f" batch {options.batch_size} over all ranks, {steps} steps",
        flush=True,
    )


def _conclude(outcome: Outcome) -> None:
    metrics = outcome.metrics()
    phases = "  ".join(f"{name} {seconds:.1f}" for name, seconds in metrics.phases_s.items())
    accuracy = "" if metrics.accuracy is None else f"test accuracy {100 * metrics.accuracy:.2f} %, "
    speed = "" if metrics.images_per_s is None else f"{metrics.images_per_s:,.0f} images/s, "
    print(f"finished: {accuracy}{speed}{metrics.steps} steps; seconds: {phases}", flush=True)
    if metrics.target_accuracy is not None:
        reached = metrics.time_to_target_s
        # A requeued run's time is that of its last attempt.
        when = "was not reached" if reached is None else f"was reached {reached:.1f} s after this attempt began"
        print(f"target: {100 * metrics.target_accuracy:g} % {when}", flush=True)
    if metrics.split and metrics.split.data_s > STARVED * metrics.split.step_s:
        share = metrics.split.data_s / metrics.split.step_s
        print(
            f"the data starve the training: {100 * share:.0f} % of a step waits for them; give ranks more"
            " --cpus-per-task, or keep the images smaller on disk",
            flush=True,
        )
