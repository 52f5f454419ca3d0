"""The built-in training as a process of its own, as a job starts it, for `benchmarks/train.py`."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from hpcdist.launcher.process import TRAINING_MEMORY
from hpcdist.records.ranks import TrainingMetrics


class Machine(NamedTuple):
    """What everything runs with."""

    data_dir: Path
    threads: int
    accelerator: str

    @property
    def device(self) -> torch.device:
        """Of one rank."""
        return torch.device("cuda", 0) if self.accelerator == "gpu" else torch.device("cpu")

    def environment(self, **more: str) -> dict[str, str]:
        """With as many threads."""
        return os.environ | {"OMP_NUM_THREADS": str(self.threads)} | more


def train(machine: Machine, folder: Path, options: Sequence[str], *, target: float | None = None) -> TrainingMetrics:
    """Runs a training of one rank to its end."""
    goal = ["--target-accuracy", str(target)] if target else []
    return finish(folder, start(machine, folder, ["hpcdist.train", *options, *goal]))


def start(
    machine: Machine,
    folder: Path,
    arguments: Sequence[str],
    *,
    rank: int = 0,
    ranks: int = 1,
    port: int = 0,
    gpu: int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts one rank of a node's.

    Args:
        machine: What all run with.
        folder: For what it writes.
        arguments: The module, and its arguments up to the options of the training.
        rank: Which it is.
        ranks: How many there are.
        port: Where they meet.
        gpu: The one that it sees; None for all.
    """
    is_gpu = machine.accelerator == "gpu"
    layout = ["--gpus", str(ranks)] if is_gpu else ["--gpus", "0", "--tasks-per-node", str(ranks)]
    command = [sys.executable, "-m", *arguments, *layout, "--cpus-per-task", str(machine.threads)]
    command += ["--data-dir", str(machine.data_dir), "--accelerator", machine.accelerator]
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "NODE_RANK": 0}
    group = {name: str(value) for name, value in names.items()} if ranks > 1 else {}
    group |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    env = machine.environment(
        **group,
        **TRAINING_MEMORY,  # as `hpcdist.rank` has it
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        HPCDIST_METRICS=str(folder / f"metrics-{rank}.json"),
        HPCDIST_RUN_DIR=str(folder),
        HPCDIST_TB_DIR=str(folder / "events"),
        HPCDIST_STARTED_AT=str(time.time()),
    )
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)


def finish(folder: Path, process: subprocess.Popen[bytes], rank: int = 0) -> TrainingMetrics:
    """Waits for one, and reads what it measured."""
    if process.wait():
        raise RuntimeError(f"the training ended with status {process.returncode}")
    return msgspec.json.decode((folder / f"metrics-{rank}.json").read_bytes(), type=TrainingMetrics)


def first_step_at_s(metrics: TrainingMetrics) -> float:
    """When the first step was done, seconds since the epoch."""
    if metrics.steady_at_s is None:
        raise RuntimeError("the training did not come to the end of its first step")
    return metrics.steady_at_s
