"""Where a run's curves go: TensorBoard always, and beside it what `--logger` names."""

import csv
import netrc
import os
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import msgspec
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from hpcdist.errors import UsageError
from hpcdist.records.ranks import TrainingMetrics
from hpcdist.train.environment import RankEnvironment
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
        """Put what was logged on disk now and then: Lightning asks for it at every point, and each takes 5 ms."""
        now = time.monotonic()
        if now - self._flushed_at >= FLUSH_INTERVAL_S:
            self._flushed_at = now
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Put what was logged on disk, and stay open for the summary; Lightning would begin a second file."""
        self.experiment.flush()

    def log_options(self, options: Options) -> None:
        """Write every option and the layout as hyperparameters; rank 0 alone may call it."""
        from torch.utils.tensorboard.summary import hparams  # slow, and ranks without TensorBoard never need it

        # The values do not matter here: HParams takes those of the scalars with these names.
        summaries = hparams(describe_options(options), dict.fromkeys(HPARAMS_METRICS, 0.0))  # type: ignore[no-untyped-call]
        writer = self.experiment._get_file_writer()
        for summary in summaries:
            writer.add_summary(summary)


def describe_options(options: Options) -> dict[str, Any]:
    """Return every option that has a value, by its name, and what follows from them."""
    chosen = msgspec.structs.asdict(options.layout) | msgspec.structs.asdict(options.training)
    chosen |= {"batch_size": options.batch_size, "world_size": options.layout.world_size, "layout": options.layout.name}
    theirs = ("batch_size", "lr", "optimizer") if options.training.module else ()  # a module of one's own has its own
    return {name: value for name, value in chosen.items() if value is not None and name not in theirs}


def sum_up(metrics: TrainingMetrics) -> dict[str, float]:
    """Return the figures of a whole run, as points at its last step."""
    figures = {f"phases/{name}_s": seconds for name, seconds in metrics.phases_s.items()}
    names = ("images_per_s", "step_time_s", "parameters", "flops_per_image")
    figures |= {name: getattr(metrics, name) for name in names if getattr(metrics, name) is not None}
    if metrics.split:
        split = msgspec.structs.asdict(metrics.split)
        figures |= {f"split/{name}": seconds for name, seconds in split.items() if name != "steps"}
    return figures


WANDB_HOST = "https://api.wandb.ai"
REACH_TIMEOUT_S = 3.0


class RunWandb(WandbLogger):
    """A run on Weights & Biases with the run's name; offline where there is no API key or no way to the server.

    Args:
        folder: The run's folder, or that of its array task; the files go to `wandb/` in it.
    """

    def __init__(self, folder: Path) -> None:
        name = f"{folder.parent.name}-{folder.name}" if folder.name.isdecimal() else folder.name
        if reason := why_offline(os.environ):
            os.environ["WANDB_MODE"] = "offline"
            print(f"wandb: offline, since {reason}; afterwards: wandb sync {folder}/wandb/offline-run-*", flush=True)
        # The same id in every attempt: one run, one curve.
        super().__init__(project=os.environ.get("WANDB_PROJECT", "hpcdist"), name=name, id=name, save_dir=folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write points at their own step: wandb drops those that an earlier attempt had already."""
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)


def why_offline(env: Mapping[str, str]) -> str | None:
    """Return why wandb's server is no use; None where it is, or where `WANDB_MODE` decides."""
    if "WANDB_MODE" in env:
        return None
    host = urlsplit(env.get("WANDB_BASE_URL", WANDB_HOST))
    name = host.hostname or ""
    try:
        has_login = netrc.netrc().authenticators(name) is not None
    except (OSError, netrc.NetrcParseError):
        has_login = False
    if not env.get("WANDB_API_KEY") and not has_login:
        return "there is no API key (WANDB_API_KEY, or wandb login)"
    if "https" in getproxies():
        return None
    try:
        socket.create_connection((name, host.port or (80 if host.scheme == "http" else 443)), REACH_TIMEOUT_S).close()
    except OSError as error:
        return f"{name} can't be reached from {socket.gethostname()}: {error.strerror or error}"
    return None


class RunLoggers:
    """All loggers of a run as one; rank 0 alone has them.

    Args:
        board: TensorBoard; None writes none.
        beside: What else was asked for.

    Attributes:
        all: Each of them, for Lightning.
    """

    def __init__(self, board: RunLogger | None, beside: Logger | None) -> None:
        self._board, self._beside = board, beside
        self.all: list[Logger] = [logger for logger in (board, beside) if logger]

    def log_metrics(self, points: dict[str, float], step: int) -> None:
        """Write a point of each curve."""
        for logger in self.all:
            logger.log_metrics(points, step)

    def log_options(self, options: Options) -> None:
        """Write every option and the layout as hyperparameters."""
        if self._board:
            self._board.log_options(options)
        if isinstance(self._beside, WandbLogger):
            self._beside.log_hyperparams(describe_options(options))

    def log_summary(self, metrics: TrainingMetrics) -> None:
        """Write the figures of the whole run at its last step, and close."""
        self.log_metrics(sum_up(metrics), metrics.steps or 0)
        self.close()

    def close(self) -> None:
        """Put everything on disk."""
        if self._board:
            self._board.experiment.close()
        if isinstance(self._beside, WandbLogger):
            self._beside.experiment.finish()


def open_loggers(options: Options, rank: RankEnvironment, first_step: int) -> RunLoggers | None:
    """Return the loggers of this rank; None of one that logs nothing.

    Args:
        first_step: Where it goes on: what an earlier attempt logged from here on is void.

    Raises:
        UsageError: There is no run whose folder could hold what was asked for.
    """
    name = options.training.logger
    if rank.rank != 0:
        return None
    board = RunLogger(rank.tensorboard, first_step) if rank.tensorboard else None
    if name is not None and rank.run_dir is None:
        raise UsageError(f"--logger {name} writes into the run's folder, and this is no run", "use hpcdist submit")
    beside: Logger | None = None
    if rank.run_dir and name == "csv":
        beside = RunCsv(rank.run_dir, first_step)
    elif rank.run_dir and name == "wandb":
        beside = RunWandb(rank.run_dir)
    return RunLoggers(board, beside) if board or beside else None


class RunCsv(CSVLogger):
    """`metrics.csv` in the run's folder, one table over all attempts.

    Args:
        folder: The run's folder.
        first_step: Lines of an earlier attempt at this step and later are left out.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self._path, self._first_step = folder / "metrics.csv", first_step

    @property
    def experiment(self) -> Any:
        """Lightning's writer. It would delete the table that is there: what still holds of that is written again."""
        if self._experiment is None:
            kept = _read_lines(self._path, self._first_step)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the folder is not empty
                writer: Any = super().experiment
            writer.metrics = kept
            writer.save()
        return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write a line at once: one that only waited could lie before a checkpoint, and would be lost with a kill."""
        super().log_metrics(metrics, step)
        self.save()


def _read_lines(path: Path, first_step: int) -> list[dict[str, Any]]:
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    # A line that was cut off when the process was killed has no step, or not all of it.
    whole = [line for line in lines if None not in line.values() and (line.get("step") or "").isdecimal()]
    return [dict(line) for line in whole if int(line["step"]) < first_step]
