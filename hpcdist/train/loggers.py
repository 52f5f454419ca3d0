"""Where a run's curves go: TensorBoard always, and beside it what `--logger` names."""

import csv
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from hpcdist.errors import UsageError
from hpcdist.records.ranks import TrainingMetrics
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.options import Options
from hpcdist.train.tensorboard import RunLogger, describe_options, sum_up


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
        """Writes a point of each curve."""
        for logger in self.all:
            logger.log_metrics(points, step)

    def log_options(self, options: Options) -> None:
        """Writes every option and the layout as hyperparameters."""
        if self._board:
            self._board.log_options(options)
        if isinstance(self._beside, WandbLogger):
            self._beside.log_hyperparams(describe_options(options))

    def log_summary(self, metrics: TrainingMetrics) -> None:
        """Writes the figures of the whole run at its last step, and closes."""
        self.log_metrics(sum_up(metrics), metrics.steps or 0)
        self.close()

    def close(self) -> None:
        """Puts everything on disk."""
        if self._board:
            self._board.experiment.close()
        if isinstance(self._beside, WandbLogger):
            self._beside.experiment.finish()


def open_loggers(options: Options, rank: RankEnvironment, first_step: int) -> RunLoggers | None:
    """The loggers of this rank; None of one that logs nothing.

    Args:
        options: Which ones.
        rank: This rank.
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
        from hpcdist.train.wandb_run import RunWandb  # only for those who ask for it

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
        """Writes a line at once: one that only waited could lie before a checkpoint, and would be lost with a kill."""
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
