"""The command line of `python -m hpcdist.train`: one option per field of `Layout` and `Training`."""

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn, get_args

import msgspec

from hpcdist.config.job import Layout
from hpcdist.config.training import (
    DEFAULT_BATCH_SIZE,
    Accelerator,
    ExtraLogger,
    Optimizer,
    Precision,
    PsMode,
    Schedule,
    Strategy,
    Training,
)
from hpcdist.errors import UsageError
from hpcdist.units import parse_duration

LAYOUT_OPTIONS = ("nodes", "gpus", "tasks_per_node", "cpus_per_task")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank was asked to do.

    Attributes:
        layout: The shape of the job it is part of.
        training: The training's options.
        preflight_only: Whether to check nodes and network and train nothing.
    """

    layout: Layout
    training: Training
    preflight_only: bool = False

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.training.global_batch_size(self.layout.world_size)

    @property
    def accumulate(self) -> int:
        """Parts of each batch."""
        return self.training.accumulate or 1

    @property
    def lr_batch(self) -> int:
        """The global batch that the learning rate is for."""
        return self.training.lr_batch or self.training.batch_size_per_rank or DEFAULT_BATCH_SIZE

    @property
    def is_async(self) -> bool:
        """Whether ranks train without waiting for each other."""
        return self.training.ps_mode == "async" and self.layout.world_size > 1

    @property
    def checkpoint_interval_s(self) -> float:
        """Seconds between checkpoints."""
        return parse_duration(self.training.checkpoint_every)

    @property
    def speed_trial_s(self) -> float | None:
        """Seconds of a training that only measures its speed."""
        return parse_duration(self.training.speed_trial) if self.training.speed_trial else None

    @property
    def hang_timeout_s(self) -> float:
        """Seconds without a step after which a rank gives up."""
        return parse_duration(self.training.hang_timeout)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "python -m hpcdist.train --help lists the options")


def parse_options(arguments: list[str]) -> Options:
    """Read the command line.

    Raises:
        UsageError: An option is unknown, or its value can't be used.
        SystemExit: `--help` was asked for and printed.
    """
    given = {key: value for key, value in vars(_build_parser().parse_args(arguments)).items() if value is not None}
    layout = _convert({key: given.pop(key) for key in LAYOUT_OPTIONS if key in given}, Layout)
    preflight_only = bool(given.pop("preflight_only", False))
    options = Options(layout=layout, training=_convert(given, Training), preflight_only=preflight_only)
    _check(options)
    return options


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m hpcdist.train", allow_abbrev=False, description="Train an image classifier.")
    add = parser.add_argument
    add("--nodes", type=int, help="nodes of the job [1]")
    add("--gpus", type=int, help="GPUs per node, one rank each; 0 is a CPU layout [1]")
    add("--tasks-per-node", type=int, help="ranks per node of a CPU layout [1]")
    add("--cpus-per-task", type=int, help="CPUs, and so threads, of each rank [2]")
    add("--epochs", type=int, help="passes over the training set [3]")
    add("--batch-size", type=int, help=f"samples per step over all ranks [{DEFAULT_BATCH_SIZE}]")
    add("--batch-size-per-rank", type=int, help="samples per step and rank, in place of --batch-size")
    add("--lr", type=float, help="peak learning rate of the schedule")
    add("--optimizer", choices=get_args(Optimizer), help="optimizer [adamw]")
    add("--precision", choices=get_args(Precision), help="Lightning's precision [32]")
    add("--seed", type=int, help="seed of weights and sample order [1]")
    add("--max-steps", type=int, help="stop after this many optimizer steps")
    add("--accelerator", choices=get_args(Accelerator), help="auto refuses granted GPUs it can't use [auto]")
    add("--checkpoint-every", metavar="TIME", help="time between checkpoints (30s, 5min, 1h) [5min]")
    add("--resume-from", metavar="FOLDER", help="go on from the newest checkpoint in this folder")
    add("--hang-timeout", metavar="TIME", help="end the job after this time without a step [10min]")
    add("--preflight", action=argparse.BooleanOptionalAction, help="check nodes and network first [on]")
    add("--preflight-only", action="store_true", help="check nodes and network, and train nothing")
    add("--log-every", type=int, metavar="STEPS", help="steps between logged points [20]")
    add("--data-dir", metavar="FOLDER", help="folder of the datasets [data]")
    add("--model", metavar="NAME", help="cnn, vgg, resnet18, mobilenet, shufflenet, densenet, or torchvision's [cnn]")
    add("--data", metavar="NAME", help="a dataset, a folder of images (by a path with a slash), synthetic [mnist]")
    add("--module", metavar="PKG.MOD:CLASS", help="a LightningModule of one's own, in place of --model")
    add("--datamodule", metavar="PKG.MOD:CLASS", help="its LightningDataModule, in place of --data")
    add("--schedule", choices=get_args(Schedule), help="how the learning rate changes [one-cycle]")
    add("--scale-lr", action=argparse.BooleanOptionalAction, help="scale --lr with the global batch, warmed up [off]")
    add("--lr-batch", type=int, help="the global batch that --lr is for")
    add("--compile", action=argparse.BooleanOptionalAction, help="compile the network with torch.compile [off]")
    add("--accumulate", type=int, metavar="N", help="compute each batch in N parts, one after the other [1]")
    add("--target-accuracy", type=float, metavar="X", help="stop at this test accuracy, a fraction")
    add("--strategy", choices=get_args(Strategy), help="how ranks share gradients [ddp: all-reduce]")
    add("--ps-mode", choices=get_args(PsMode), help="whether a parameter server waits for all ranks [sync]")
    add("--logger", choices=get_args(ExtraLogger), help="where the curves go beside TensorBoard")
    add("--workers", type=int, metavar="N", help="processes of each rank that decode a folder of images [CPUs - 1]")
    add("--speed-trial", metavar="TIME", help="measure the speed for this time after the first step, and stop")
    return parser


def _convert(values: Mapping[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), "python -m hpcdist.train --help lists the options") from None


def _check(options: Options) -> None:
    world_size = options.layout.world_size
    if options.batch_size < world_size:
        raise UsageError(
            f"batch_size is {options.batch_size} but there are {world_size} ranks: some would never get a sample",
            f"use --batch-size {world_size} or more, or fewer ranks",
        )
    for name, seconds in (
        ("checkpoint_every", options.checkpoint_interval_s),
        ("hang_timeout", options.hang_timeout_s),
        ("speed_trial", options.speed_trial_s),
    ):
        if seconds is not None and seconds <= 0:
            raise UsageError(
                f"{name} is {getattr(options.training, name)!r}, expected a time above 0",
                f"write for example --{name.replace('_', '-')} 5min",
            )
