"""What is trained: the network with its learning rates."""

import os
import shutil

import torch

from hpcdist.errors import NotReadyError
from hpcdist.train.data import ImageData
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.module import Classifier
from hpcdist.train.networks import build_network, measure_size
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.schedules import describe_rates, plan_rates


def count_steps(options: Options, steps_per_epoch: int) -> int:
    """Optimizer steps in all."""
    steps = options.training.epochs * steps_per_epoch
    return min(steps, options.training.max_steps or steps)


def require_compiler() -> None:
    """Finds out before the first step whether torch.compile can work.

    Raises:
        NotReadyError: There is no compiler.
    """
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise NotReadyError(
            "compile: torch.compile needs a C++ compiler, and there is no g++ and no clang++ on PATH",
            "load the site's compiler module in setup, or leave out --compile",
        )


def build_module(options: Options, rank: RankEnvironment, data: ImageData, outcome: Outcome) -> Classifier:
    """The network, as it is to be trained; says on rank 0 what it is.

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
