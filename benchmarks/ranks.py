"""Two ranks of a training against two trainings at the same time, for `benchmarks/train.py`."""

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from benchmarks.processes import Machine, finish, start
from hpcdist.record import RankUsage, TrainingMetrics

STEP_COLUMNS = ("step apart", "together", "compute", "together", "exposed", "all-reduce")
# "gloo alone" is the ratio if the ranks computed as fast as they do apart, and waited for each other no longer than
# gloo's all-reduce takes back to back, none of it hidden behind computing.
STEP_HEADER = f"""
Where a step of a rank goes, ms. The all-reduce is gloo's of as much as the gradients, back to back, before training;
what is exposed in a step is the exchange and waiting for the other rank.
{"":24} {" ".join(f"{name:>11}" for name in STEP_COLUMNS)}  hidden  gloo alone"""


class Pair(NamedTuple):
    """What two processes measured that ran at the same time: two ranks of one training, and two trainings."""

    together: list[TrainingMetrics]
    apart: list[TrainingMetrics]

    def speeds(self) -> tuple[float, float]:
        """Images/s of both; a rank counts those of all ranks."""
        return self.together[0].images_per_s or 0.0, sum(one.images_per_s or 0.0 for one in self.apart)


# Of two processes on a machine, at a batch size: as ranks of one training, or each for itself (their world size).
Run = Callable[[Machine, int, int], list[TrainingMetrics]]


def show_ranks(machine: Machine, repeats: int) -> None:
    """Two ranks against two processes that have nothing to do with each other, running at the same time."""
    if machine.accelerator == "gpu" and torch.cuda.device_count() < 2:
        print(f"\ntwo ranks: left out, they need 2 GPUs and here is {torch.cuda.device_count()}")
        return
    print(f"\n{'two ranks, per rank':28} {'together':>12} {'apart':>12}  ratio  (lowest, highest)")
    where: dict[str, Run] = {"one node": run_here}
    if shutil.which("sbatch") and not subprocess.run(["sinfo", "-h"], check=False, capture_output=True).returncode:
        where["two nodes"] = run_on_slurm
    steps = []
    for place, run in where.items():
        for batch_size in (128, 512):
            label = f"{place}, batch {batch_size}"
            pairs = [_run_both(run, machine, batch_size, together_first=turn % 2 == 0) for turn in range(repeats)]
            speeds = [pair.speeds() for pair in pairs]
            ratios = sorted(together / apart for together, apart in speeds)
            medians = [statistics.median(one) for one in zip(*speeds, strict=True)]
            middle = f"{medians[0]:10,.0f}/s {medians[1]:10,.0f}/s  {statistics.median(ratios):.3f}"
            print(f"{label:28} {middle}  ({ratios[0]:.3f}, {ratios[-1]:.3f})", flush=True)
            steps.append((label, pairs))
    print(STEP_HEADER)
    for label, pairs in steps:
        print(f"{label:24} {describe_step(pairs)}", flush=True)


def _run_both(run: Run, machine: Machine, batch_size: int, *, together_first: bool) -> Pair:
    """By turns, so that a machine that slows down does not do it to the same one each time."""
    found = {world_size: run(machine, batch_size, world_size) for world_size in ((2, 1) if together_first else (1, 2))}
    return Pair(found[2], found[1])


def describe_step(pairs: Sequence[Pair]) -> str:
    """A row under `STEP_HEADER`: medians over the pairs, of means over their two ranks."""
    rows = []
    for together, apart in pairs:
        ours, theirs = ([one.split for one in several if one.split] for several in (together, apart))
        nearest = min(together[0].probe, key=lambda one: abs(one.size_bytes - (together[0].bytes_per_step or 0)))
        parts_s = [
            [one.step_s for one in theirs],
            [one.step_s for one in ours],
            [one.compute_s for one in theirs],
            [one.compute_s for one in ours],
            [one.communication_s for one in ours],
            [nearest.latency_s],
        ]
        rows.append([statistics.mean(part) for part in parts_s])
    columns_s = [statistics.median(column) for column in zip(*rows, strict=True)]
    apart_s, exposed_s, all_reduce_s = columns_s[0], columns_s[4], columns_s[5]
    hidden = max(0.0, 1 - exposed_s / all_reduce_s)
    cells = " ".join(f"{1e3 * seconds:11.2f}" for seconds in columns_s)
    return f"{cells} {100 * hidden:5.0f} %  {apart_s / (apart_s + all_reduce_s):.3f}"


def _rank_options(batch_size: int) -> list[str]:
    return ["--batch-size-per-rank", str(batch_size), "--max-steps", str(60_000 // batch_size), "--epochs", "100"]


def run_here(machine: Machine, batch_size: int, world_size: int) -> list[TrainingMetrics]:
    """Two ranks of one training, or two trainings of one rank."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        # Ranks of one training share its folder, as the preflight checks; rank, folder and GPU of each process:
        shares = [(0, "0", 0), (0, "1", 1)] if world_size == 1 else [(0, "0", None), (1, "0", None)]
        started = []
        for rank, folder, gpu in shares:
            Path(name, folder).mkdir(exist_ok=True)
            process = start(
                machine,
                Path(name, folder),
                _rank_options(batch_size),
                rank=rank,
                ranks=world_size,
                port=port,
                gpu=gpu,
            )
            started.append((Path(name, folder), process, rank))
        return [finish(*one) for one in started]


def run_on_slurm(machine: Machine, batch_size: int, world_size: int) -> list[TrainingMetrics]:
    """Likewise, each on a node of its own: an array's tasks begin at the same time, and `--exclusive` parts them."""
    with tempfile.TemporaryDirectory() as name:
        shape = ["--nodes", "2"] if world_size == 2 else ["--nodes", "1", "--array", "0-1"]
        command = [sys.executable, "-m", "hpcdist.cli.main", "submit", "--wait", "--exclusive", "--gpus", "1", *shape]
        command += ["--cpus-per-task", str(machine.threads), "--data-dir", str(machine.data_dir.absolute())]
        command += ["--accelerator", machine.accelerator, "--name", "race", *_rank_options(batch_size)]
        env = machine.environment(PYTHONPATH=str(Path(__file__).parents[1]))
        done = subprocess.run(command, cwd=name, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a job failed: {done.stderr}")
        files = Path(name, "jobs", "runs").glob("**/ranks/[01].json")
        usages = [msgspec.json.decode(path.read_bytes(), type=RankUsage) for path in files]
    if world_size == 1 and len({one.host for one in usages}) < 2:
        raise RuntimeError("both tasks ran on one node")
    return [one.training for one in sorted(usages, key=lambda one: one.rank) if one.training]
