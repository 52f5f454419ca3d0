"""What is trained, the network with its learning rates, and Lightning's trainer for it."""

import logging
import os
import re
import shutil
import warnings

import pytorch_lightning as pl
import torch

from hpcdist.errors import NotReadyError
from hpcdist.train.data.batches import ImageData
from hpcdist.train.distributed import StartedRanks
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.loggers import RunLoggers
from hpcdist.train.module import Classifier
from hpcdist.train.networks import build_network, measure_size
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.schedules import describe_rates, plan_rates
from hpcdist.train.step_count import RankStrategy

# What Lightning says of itself on every run, and nobody can act on.
NOISE = ("The `srun` command is available", "`isinstance(treespec, LeafSpec)` is deprecated")


def count_steps(options: Options, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps in all."""
    steps = options.training.epochs * steps_per_epoch
    return min(steps, options.training.max_steps or steps)


def require_compiler() -> None:
    """Find out before the first step whether torch.compile can work.

    Raises:
        NotReadyError: There is no compiler.
    """
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise NotReadyError(
            "compile: torch.compile needs a C++ compiler, and there is no g++ and no clang++ on PATH",
            "load the site's compiler module in setup, or leave out --compile",
        )


def build_module(options: Options, rank: RankEnvironment, data: ImageData, outcome: Outcome) -> Classifier:
    """Return the network, as it is to be trained; say on rank 0 what it is.

    Raises:
        UsageError: There is no such network, or it can't take these images.
        NotReadyError: It is to be compiled and nothing can.
    """
    training = options.training
    # Where ranks do not wait for each other, each part of a batch is a step of the optimizer.
    parts = rank.world_size if options.is_async else 1
    steps_per_epoch = data.train_batches.steps_per_epoch
    steps = parts * count_steps(options, steps_per_epoch)
    torch.manual_seed(training.seed)
    network = build_network(training.model, data.shape, data.class_count)
    size = measure_size(network, data.shape, torch.device("cpu"))
    outcome.learn(model=training.model or "cnn", parameters=size.parameters, flops_per_image=size.flops)
    batches = {"batch_size": max(1, options.batch_size // parts), "lr_batch": options.lr_batch}
    is_scaled = bool(training.scale_lr)
    rates = plan_rates(
        training.schedule,
        training.lr,
        scale=is_scaled,
        steps=steps,
        steps_per_epoch=parts * steps_per_epoch,
        **batches,
    )
    if rank.rank == 0:
        print(
            f"model {training.model or 'cnn'}: {size.parameters:,} parameters,"
            f" {size.flops / 1e6:,.1f} MFLOP per image in the forward pass",
            flush=True,
        )
        if said := describe_rates(rates, asked=training.lr, scaled=is_scaled, **batches):
            print(said, flush=True)
    if training.compile:
        require_compiler()
        # The method and not the module: the names of its weights stay, and hooks are called outside of it.
        # A kernel per shape, so that what a sum rounds to does not depend on which shapes came before.
        network.forward = torch.compile(network.forward, dynamic=False)
    return Classifier(network, training, steps=steps, world_size=rank.world_size // parts, rates=rates)


def build_trainer(
    options: Options,
    rank: RankEnvironment,
    callbacks: list[pl.Callback],
    logger: RunLoggers | None,
    *,
    strategy: RankStrategy,
    device: torch.device,
) -> pl.Trainer:
    """Build a Lightning trainer without what acts behind our back."""
    # Set by Lightning's import: on a machine without a GPU each step of Adam would look for the driver's library again.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", re.escape(message))
    is_single, epochs = strategy.is_process_of_its_own, strategy.own_epochs
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1 if is_single else rank.local_world_size,
        num_nodes=1 if is_single else options.layout.nodes,
        strategy=strategy,
        plugins=[StartedRanks(rank)],
        precision=options.training.precision,
        max_epochs=options.training.epochs if epochs is None else epochs,
        max_steps=(options.training.max_steps or -1) if epochs is None else -1,
        accumulate_grad_batches=options.accumulate,
        logger=logger.all if logger else False,
        callbacks=callbacks,
        log_every_n_steps=options.training.log_every,
        num_sanity_val_steps=0,
        limit_val_batches=None if options.speed_trial_s is None else 0,
        use_distributed_sampler=options.training.module is not None,  # the built-in data cut themselves
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    own_signals(trainer)
    return trainer


def own_signals(trainer: pl.Trainer) -> None:
    """Keep Lightning from the signals, and from asking all ranks for them before every step.

    Lightning 2.6.6 turns SIGTERM into an exit with status 0, a half-trained job that looks completed, and under DDP
    broadcasts a flag in each step for it. It has no option for either; both are private, so a test watches them.
    """
    trainer._signal_connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]


def _do_nothing() -> None:
    pass
