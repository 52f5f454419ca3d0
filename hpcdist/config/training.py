"""The built-in training's options. Pure values, checked when they are made."""

import re
from typing import Literal

import msgspec

from hpcdist.datasets import check_data, is_folder
from hpcdist.errors import UsageError
from hpcdist.text import dashed

Accelerator = Literal["auto", "cpu", "gpu"]
Optimizer = Literal["adamw", "adam", "sgd", "adadelta"]
Schedule = Literal["one-cycle", "cosine", "step", "constant"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Strategy = Literal["ddp", "ddp-bf16", "parameter-server"]
PsMode = Literal["sync", "async"]
ExtraLogger = Literal["csv", "wandb"]
DEFAULT_BATCH_SIZE = 512  # over all ranks


def require(holds: bool, name: str, value: object, expected: str) -> None:  # noqa: FBT001
    """Refuse an option's value.

    Raises:
        UsageError: It does not hold.
    """
    if not holds:
        raise UsageError(f"{name} is {value}, expected {expected}", f"change --{dashed(name)}")


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The built-in training's options.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Global batch, in samples, over all ranks; None is 512.
        batch_size_per_rank: Samples per rank; excludes `batch_size`.
        lr: Peak learning rate of the schedule.
        optimizer: Name of the optimizer.
        precision: Lightning's precision name.
        seed: Seed of the weights and of each epoch's permutation.
        max_steps: Stop after this many optimizer steps; None trains all epochs.
        accelerator: "cpu" trains on CPUs even where GPUs were granted; "auto" refuses granted GPUs it can't use.
        checkpoint_every: Time between checkpoints ("30s", "5min", "1h").
        resume_from: Folder whose newest checkpoint to go on from, where the run has none of its own.
        hang_timeout: Time without a step after which the job is ended.
        preflight: Whether to check nodes and network before anything else.
        log_every: Optimizer steps between logged points.
        data_dir: Folder that holds the datasets.
        model: Name of the network; None is "cnn".
        data: Name of the dataset, path of a folder of images, or `synthetic:3x32x32x10`; None is "mnist".
        module: A LightningModule of one's own, `package.module:Class`, in place of `model`.
        datamodule: Its LightningDataModule, likewise, in place of `data`.
        schedule: How the learning rate changes; None is "one-cycle".
        scale_lr: Whether `lr` is multiplied by the global batch over `lr_batch`, with a warm-up; None does not.
        lr_batch: The global batch that `lr` was chosen for; None is the batch per rank where that is given, else 512.
        compile: Whether the network is compiled (torch.compile); None does not.
        accumulate: Parts that each batch of a rank is computed in, one after the other; None is 1.
        target_accuracy: Test accuracy, a fraction, at which to stop; None trains to the end.
        strategy: How ranks share gradients: all-reduce, all-reduce in bfloat16, or through a parameter server; None is
            "ddp".
        ps_mode: Whether a parameter server waits for all ranks in each step; None is "sync".
        logger: Where the curves go beside TensorBoard; None is nowhere else.
        workers: Processes of each rank that decode a folder of images; 0 decodes in the rank itself, None takes its
            CPUs but one.
        speed_trial: Train for this time after the first step ("10s") and stop without a test or a checkpoint, to
            measure the speed; None trains as it should.
    """

    epochs: int = 3
    batch_size: int | None = None
    batch_size_per_rank: int | None = None
    lr: float = 1e-2
    optimizer: Optimizer = "adamw"
    precision: Precision = "32"
    seed: int = 1
    max_steps: int | None = None
    accelerator: Accelerator = "auto"
    checkpoint_every: str = "5min"
    resume_from: str | None = None
    hang_timeout: str = "10min"
    preflight: bool = True
    log_every: int = 20
    data_dir: str | None = None
    # None where not asked for: a script then has no words for it, and is the same as before there was the option.
    model: str | None = None
    data: str | None = None
    module: str | None = None
    datamodule: str | None = None
    schedule: Schedule | None = None
    scale_lr: bool | None = None
    lr_batch: int | None = None
    compile: bool | None = None
    accumulate: int | None = None
    target_accuracy: float | None = None
    strategy: Strategy | None = None
    ps_mode: PsMode | None = None
    logger: ExtraLogger | None = None
    workers: int | None = None
    speed_trial: str | None = None

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.lr > 0, "lr", self.lr, "more than 0")
        require(self.log_every >= 1, "log_every", self.log_every, "1 or more")
        for name in ("batch_size", "batch_size_per_rank", "max_steps", "lr_batch", "accumulate"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        if self.batch_size is not None and self.batch_size_per_rank is not None:
            raise UsageError(
                "batch_size (over all ranks) and batch_size_per_rank exclude each other",
                "keep one of --batch-size and --batch-size-per-rank",
            )
        target = self.target_accuracy
        require(target is None or 0 < target <= 1, "target_accuracy", target, "a fraction above 0 and up to 1")
        if self.data is not None:
            check_data(self.data)
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "0 or more")
        if self.workers is not None and not is_folder(self.data or "mnist"):
            raise UsageError(
                f"workers decode a folder of images, and {self.data or 'mnist'} lies in memory", "leave out --workers"
            )
        self._check_own()
        self._check_strategy()

    def _check_strategy(self) -> None:
        """Compare the strategy with what it can't go with."""
        if self.ps_mode == "async" and self.strategy != "parameter-server":
            strategy = self.strategy or "ddp"
            raise UsageError(
                f"ps_mode is async but strategy is {strategy}: its ranks wait for each other in every step",
                "add --strategy parameter-server, or leave out --ps-mode",
            )
        if self.ps_mode == "async" and self.speed_trial is not None:
            raise UsageError("speed_trial: ranks that go their own pace stop at no common step", "use --max-steps")
        if self.strategy != "parameter-server":
            return
        if self.precision == "16-mixed":
            raise UsageError(
                "precision 16-mixed scales each rank's gradients by itself, and a parameter server adds them up",
                "use --precision bf16-mixed or 32",
            )
        if self.module:
            raise UsageError(
                "strategy parameter-server is for the built-in networks, whose data it shares out",
                "use ddp or ddp-bf16 with a module of one's own",
            )

    def _check_own(self) -> None:
        """Compare what says which module and data module of one's own to train with."""
        for name in ("module", "datamodule"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
                raise UsageError(f"{name}: {value!r} does not name a class", f"write --{name} package.module:Class")
        if (self.module is None) != (self.datamodule is None):
            raise UsageError("module and datamodule need each other", "give both --module and --datamodule")
        theirs = (
            *("model", "data", "schedule", "scale_lr", "lr_batch", "accumulate", "target_accuracy", "speed_trial"),
            *("batch_size", "batch_size_per_rank"),
        )
        for name in theirs if self.module else ():
            if getattr(self, name) is not None:
                raise UsageError(
                    f"{name} is for the built-in networks; a module of one's own says it itself",
                    f"leave out --{dashed(name)}",
                )

    def global_batch_size(self, ranks: int) -> int:
        """Return samples per optimizer step over all ranks."""
        if self.batch_size_per_rank is not None:
            return self.batch_size_per_rank * ranks
        return self.batch_size or DEFAULT_BATCH_SIZE

    @property
    def data_name(self) -> str | None:
        """What is trained on, as `datasets.verify` knows it; None where a data module of one's own brings it."""
        return None if self.datamodule else self.data or "mnist"
