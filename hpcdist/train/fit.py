"""Put the parts together and train."""

import os
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
from hpcdist.train.user_module import fit_own
from hpcdist.train.watchdog import Watchdog, watching


def build_async_server(
    module: Classifier,
    data: ImageData,
    device: torch.device,
    *,
    options: Options,
    rank: RankEnvironment,
    steps: int,
    checkpoints: Checkpoints,
    reporter: FailureReporter,
    content: dict[str, Any] | None,
) -> AsyncServer:
    """Build the strategy of a rank that the server tells what to train, and give it the batches for it.

    Args:
        module: What is trained.
        data: The training set; its batches are replaced.
        device: Of this rank.
        options: What was asked for.
        rank: This rank.
        steps: Batches in all.
        checkpoints: What knows when one is due.
        reporter: What ends this process when another rank is lost.
        content: The checkpoint to go on from; None begins anew.
    """
    steps_per_epoch, ranks = data.train_batches.steps_per_epoch, rank.world_size
    parts_per_epoch = ranks * steps_per_epoch
    optimizer_state: dict[str, Any] | None = None
    parts_done = 0
    if content is not None:
        module.load_state_dict(content["state_dict"])
        state = content[OWN_KEY]["server"]
        optimizer_state = state["optimizer"]
        parts_done = _convert_parts(state["parts_done"], len(content[OWN_KEY]["ranks"]), ranks)
    server = None
    if rank.rank == 0:
        server = Server(
            module,
            WorkQueue(ranks=ranks, batches_per_epoch=steps_per_epoch, batches=steps, done=parts_done),
            lambda: checkpoints.is_due(options.checkpoint_interval_s),
            reporter,
            optimizer_state=optimizer_state,
            parts_done=parts_done,
        )
    strategy = AsyncServer(device, rank, server, parts_per_epoch=parts_per_epoch, parts_done=parts_done)
    strategy.own_epochs = -(-steps // steps_per_epoch) - parts_done // parts_per_epoch
    data.train_batches = PartBatches(data.train_batches, strategy, ranks, options.accumulate)
    return strategy


def _convert_parts(parts_done: int, ranks_before: int, ranks: int) -> int:
    """Parts done, where a batch has another number of them now: what of a batch was done is done again."""
    return parts_done if ranks_before == ranks else parts_done // ranks_before * ranks


# Share of a step spent waiting for data from which it is worth a line.
STARVED = 0.2
# What reading data may always take: it imports torchvision, from a disk that may be cold.
READING_S = 60.0


def train(options: Options, rank: RankEnvironment, data_dir: Path, outcome: Outcome, reporter: FailureReporter) -> None:
    """Trains to the end.

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
    if options.training.module:
        fit_own(options, rank, device=device, outcome=outcome, reporter=reporter)
    else:
        clock.enter("data")
        with watching(max(options.hang_timeout_s, READING_S), rank, reporter):
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
    data: ImageData,
    *,
    device: torch.device,
    outcome: Outcome,
    reporter: FailureReporter,
) -> None:
    """Trains and tests on data that is there, in a process group that stands.

    Raises:
        RuntimeError: The training ended before its last step.
        StoppedError: It was asked to stop.
        UsageError: The checkpoint to go on from is of another training.
    """
    with watching(options.hang_timeout_s, rank, reporter) as watchdog:
        _fit(options, rank, data, device=device, outcome=outcome, reporter=reporter, watchdog=watchdog)


def _fit(
    options: Options,
    rank: RankEnvironment,
    data: ImageData,
    *,
    device: torch.device,
    outcome: Outcome,
    reporter: FailureReporter,
    watchdog: Watchdog,
) -> None:
    steps = count_steps(options, data.train_batches.steps_per_epoch)
    module = build_module(options, rank, data, outcome)
    checkpoints = Checkpoints(rank.checkpoints, rank, options, outcome, steps)
    begin = checkpoints.find()
    done = read_step(begin) if begin else 0
    content = checkpoints.load(begin) if begin else None
    outcome.learn(steps=done, epochs=done // data.train_batches.steps_per_epoch or None)
    if begin and rank.rank == 0:
        print(f"goes on after step {done} of {steps}, from {begin}", flush=True)
        before = content[OWN_KEY].get("steps") if content else None  # those of release 0.1 do not say it
        if before not in (None, steps) and module.rates.schedule != "constant":
            print(f"the learning rate goes on as in a training of {steps} steps; that one had {before}", flush=True)
    logger = open_loggers(options, rank, done + 1)
    recorder = Recorder(outcome, reporter, logger, options.training.log_every)
    stop_at = StopAtAccuracy(options.training.target_accuracy, outcome, rank.started_at_s)
    callbacks: list[pl.Callback] = [ResumeCallback(checkpoints, content), recorder, stop_at, watchdog]
    if rank.rank == 0:
        progress = rank.run_dir / "progress.json" if rank.run_dir else None
        epochs = options.training.epochs
        callbacks.append(ConsoleProgress(recorder, outcome, progress, epochs=epochs, steps=steps))
    profiler = StepProfiler(outcome, device, rank=rank.rank, world_size=rank.world_size, slowdown=rank.slowdown)
    data.train_batches.watch = profiler.watch
    trial_s = options.speed_trial_s
    sync_points = SyncPoints(checkpoints, rank, options.checkpoint_interval_s, steps)
    callbacks += [sync_points if trial_s is None else SpeedTrial(trial_s, rank.world_size), profiler]
    strategy: RankStrategy
    if options.is_async:
        strategy = build_async_server(
            module,
            data,
            device,
            options=options,
            rank=rank,
            steps=steps,
            checkpoints=checkpoints,
            reporter=reporter,
            content=content,
        )
        begin = None
    else:
        strategy = build_strategy(options, rank, device)
    strategy.end_part = profiler.end_part
    trainer = build_trainer(options, rank, callbacks, logger, strategy=strategy, device=device)
    if logger:
        logger.log_options(options)
    trainer.fit(module, datamodule=data, ckpt_path=begin, weights_only=True)
    reached = strategy.steps_done
    if reached < steps and not stop_at.is_reached and trial_s is None:
        raise RuntimeError(f"the training ended at step {reached} of {steps}")
    if module.tested_at_step != reached and trial_s is None:
        # `max_steps` ended within an epoch, where Lightning does not validate.
        trainer.validate(module, datamodule=data, verbose=False)
    outcome.learn(finished=True)
    if logger:
        logger.log_summary(outcome.metrics())


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
