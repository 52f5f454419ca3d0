"""A run's TensorBoard events."""

import time
from pathlib import Path
from typing import Any

import msgspec
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from hpcdist.records.ranks import TrainingMetrics
from hpcdist.train.options import Options

# What the HParams page shows of a run; `hpcdist seff` writes the last three into the same folder.
HPARAMS_METRICS = ("val/accuracy", "images_per_s", "efficiency/cpu", "efficiency/memory", "wall_time_s")
FLUSH_INTERVAL_S = 5.0


class RunLogger(TensorBoardLogger):
    """Writes into exactly one folder; Lightning would add `lightning_logs/version_0` and an `hparams.yaml`.

    Args:
        folder: The run's folder, made on the first write.
        purge_step: What an earlier attempt logged at this step and later is void: TensorBoard leaves it out.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        super().__init__(save_dir=folder, name="", version="", purge_step=purge_step)
        self._folder = folder
        self._flushed_at = time.monotonic()

    @property
    def log_dir(self) -> str:
        """The folder as it was given; Lightning would expand `$` and `~` in it."""
        return str(self._folder)

    def save(self) -> None:
        """Puts what was logged on disk now and then: Lightning asks for it at every point, and each takes 5 ms."""
        now = time.monotonic()
        if now - self._flushed_at >= FLUSH_INTERVAL_S:
            self._flushed_at = now
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Puts what was logged on disk, and stays open for the summary; Lightning would begin a second file."""
        self.experiment.flush()

    def log_options(self, options: Options) -> None:
        """Writes every option and the layout as hyperparameters; rank 0 alone may call it."""
        shown = describe_options(options)
        # The values do not matter here: HParams takes those of the scalars with these names.
        summaries = hparams(shown, dict.fromkeys(HPARAMS_METRICS, 0.0))  # type: ignore[no-untyped-call]
        writer = self.experiment._get_file_writer()
        for summary in summaries:
            writer.add_summary(summary)


def describe_options(options: Options) -> dict[str, Any]:
    """Every option that has a value, by its name, and what follows from them."""
    chosen = {**msgspec.structs.asdict(options.layout), **msgspec.structs.asdict(options.training)}
    chosen |= {
        "batch_size": options.batch_size,
        "world_size": options.layout.world_size,
        "layout": options.layout.name,
    }
    theirs = ("batch_size", "lr", "optimizer") if options.training.module else ()  # a module of one's own has its own
    return {name: value for name, value in chosen.items() if value is not None and name not in theirs}


def sum_up(metrics: TrainingMetrics) -> dict[str, float]:
    """The figures of a whole run, as points at its last step."""
    figures = {f"phases/{name}_s": seconds for name, seconds in metrics.phases_s.items()}
    for name in ("images_per_s", "step_time_s", "parameters", "flops_per_image"):
        value = getattr(metrics, name)
        if value is not None:
            figures[name] = value
    if metrics.split:
        split = msgspec.structs.asdict(metrics.split)
        figures |= {f"split/{name}": seconds for name, seconds in split.items() if name != "steps"}
    return figures
