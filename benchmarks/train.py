"""The built-in training beside what people write: time to an accuracy, speed, what Lightning adds, two ranks, start-up.

    python -m benchmarks.train --data-dir data [--threads 1] [--accelerator gpu] [--repeats 3] [--only speed ranks]

Everything in one run, on one machine, with as many threads. Times to an accuracy are of whole processes, from
before they are started, and from the end of their first step. hpcdist does all that it always does: preflight, records,
progress, TensorBoard. Where Slurm answers, two ranks are measured across two nodes too.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from benchmarks.throughput import Contest, compare, median_ratio
from hpcdist.record import RankUsage, TrainingMetrics

# Epochs of the one-cycle schedule after which the small network has an accuracy; the others stop where they reach it.
EPOCHS = {0.98: 1, 0.99: 3}
MOST_EPOCHS = 14  # what pytorch/examples trains
IMPORTS = "import torch, torchvision, pytorch_lightning"


class Race(NamedTuple):
    """Seconds to the target, from before the process started and from its first step; None where it was missed."""

    whole_s: float | None
    trained_s: float | None
    steps_per_s: float | None


class Machine(NamedTuple):
    """What everything runs with."""

    data_dir: Path
    threads: int
    accelerator: str

    def environment(self, **more: str) -> dict[str, str]:
        """With as many threads."""
        return os.environ | {"OMP_NUM_THREADS": str(self.threads)} | more


def race_hpcdist(machine: Machine, target: float) -> Race:
    """`python -m hpcdist.train`, as a job starts it."""
    with tempfile.TemporaryDirectory() as name:
        began_s = time.time()
        options = ["--epochs", str(EPOCHS[target]), "--batch-size", "128", "--lr", "5e-3"]
        metrics = train(machine, Path(name), options, target=target)
    reached = [test.at_s for test in metrics.tests if test.accuracy >= target]
    phases = metrics.phases_s
    names = list(phases)
    first_step_s = sum(phases[one] for one in names[: names.index("steady")])
    steps_per_s = metrics.images_per_s / 128 if metrics.images_per_s else None
    if not reached:
        return Race(None, None, steps_per_s)
    return Race(reached[0] - began_s, reached[0] - began_s - first_step_s, steps_per_s)


def train(
    machine: Machine,
    folder: Path,
    options: Sequence[str],
    *,
    target: float | None = None,
    rank: int = 0,
    ranks: int = 1,
    port: int = 0,
) -> TrainingMetrics:
    """Runs one rank to its end."""
    return finish(folder, start(machine, folder, options, target=target, rank=rank, ranks=ranks, port=port), rank)


def start(
    machine: Machine,
    folder: Path,
    options: Sequence[str],
    *,
    target: float | None = None,
    rank: int = 0,
    ranks: int = 1,
    port: int = 0,
) -> subprocess.Popen[bytes]:
    """Starts one rank of a node's."""
    is_gpu = machine.accelerator == "gpu"
    layout = ["--gpus", str(ranks)] if is_gpu else ["--gpus", "0", "--tasks-per-node", str(ranks)]
    command = [sys.executable, "-m", "hpcdist.train", *layout, "--cpus-per-task", str(machine.threads)]
    command += ["--data-dir", str(machine.data_dir), "--accelerator", machine.accelerator, *options]
    command += ["--target-accuracy", str(target)] if target else []
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "NODE_RANK": 0}
    group = {name: str(value) for name, value in names.items()} if ranks > 1 else {}
    env = machine.environment(
        **group,
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


def race_other(name: str) -> Callable[[Machine, float], Race]:
    """One of `contestants.py`."""

    def run(machine: Machine, target: float) -> Race:
        epochs = MOST_EPOCHS if name == "examples" else EPOCHS[target]
        command = [sys.executable, "-m", "benchmarks.contestants", name, "--data-dir", str(machine.data_dir)]
        command += ["--threads", str(machine.threads), "--accelerator", machine.accelerator]
        command += ["--epochs", str(epochs), "--target", str(target)]
        began_s = time.time()
        done = subprocess.run(command, env=machine.environment(), capture_output=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        reached = [at_s for at_s, accuracy in found["tests"] if accuracy >= target]
        if not reached:
            return Race(None, None, found["steps_per_s"])
        return Race(reached[0] - began_s, reached[0] - found["first_step_at_s"], found["steps_per_s"])

    return run


def show_races(machine: Machine, repeats: int) -> None:
    """Time to 98 % and to 99 % of each, and its steps/s; the slow one runs once."""
    racers: dict[str, Callable[[Machine, float], Race]] = {
        "hpcdist": race_hpcdist,
        "raw loop": race_other("raw"),
        "Lightning + DataLoader": race_other("lightning"),
        "pytorch/examples' settings": race_other("examples"),
    }
    print(f"\n{'time to accuracy':28} {'98 %':>9} {'trained':>9} {'99 %':>9} {'trained':>9} {'steps/s':>9}  runs")
    whole_s: dict[str, float | None] = {}
    for name, race in racers.items():
        count = 1 if name.startswith("pytorch") else repeats
        races = {target: [race(machine, target) for _ in range(count)] for target in EPOCHS}
        cells = [
            _median([getattr(one, field) for one in races[target]]) for target in EPOCHS for field in Race._fields[:2]
        ]
        speed = _median([one.steps_per_s for several in races.values() for one in several])
        whole_s[name] = cells[0]
        shown = " ".join(f"{'missed' if cell is None else f'{cell:.2f} s':>9}" for cell in cells)
        print(f"{name:28} {shown} {speed or 0:9.1f}  {count}", flush=True)
    ours, theirs = whole_s["hpcdist"], whole_s["pytorch/examples' settings"]
    if ours and theirs:
        print(f"to 98 %, whole process: {theirs / ours:.1f} times as fast as pytorch/examples' settings (target: 5)")


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def show_speed(machine: Machine, repeats: int) -> None:
    """Steps/s of the built-in training over the raw loop, both in this process, by turns."""
    torch.set_num_threads(machine.threads)
    print(f"\n{'batch':>6} {'built-in':>12} {'raw loop':>12}  ratio  (lowest, highest)  added to a step")
    for batch_size in (128, 512):
        built_in, raw = compare(Contest(machine.data_dir, batch_size, 150), repeats)
        ratios = sorted(ours / theirs for ours, theirs in zip(built_in, raw, strict=True))
        speeds = [statistics.median(one) / batch_size for one in (built_in, raw)]
        added_s = statistics.median(batch_size / a - batch_size / b for a, b in zip(built_in, raw, strict=True))
        middle = f"{speeds[0]:10.1f}/s {speeds[1]:10.1f}/s  {median_ratio(built_in, raw):.3f}"
        print(f"{batch_size:>6} {middle}  ({ratios[0]:.3f}, {ratios[-1]:.3f})  {1e6 * added_s:.0f} us", flush=True)


def show_ranks(machine: Machine, repeats: int) -> None:
    """Two ranks against two processes that have nothing to do with each other, running at the same time."""
    print(f"\n{'two ranks, per rank':28} {'together':>12} {'apart':>12}  ratio  (lowest, highest)")
    where: dict[str, Callable[[Machine, int, int], float]] = {"one node": run_here}
    if shutil.which("sbatch") and not subprocess.run(["sinfo", "-h"], check=False, capture_output=True).returncode:
        where["two nodes"] = run_on_slurm
    for place, run in where.items():
        for batch_size in (128, 512):
            pairs = [(run(machine, batch_size, 2), run(machine, batch_size, 1)) for _ in range(repeats)]
            ratios = sorted(together / apart for together, apart in pairs)
            speeds = [statistics.median(one) for one in zip(*pairs, strict=True)]
            middle = f"{speeds[0]:10,.0f}/s {speeds[1]:10,.0f}/s  {statistics.median(ratios):.3f}"
            print(f"{f'{place}, batch {batch_size}':28} {middle}  ({ratios[0]:.3f}, {ratios[-1]:.3f})", flush=True)


def _rank_options(batch_size: int) -> list[str]:
    return ["--batch-size-per-rank", str(batch_size), "--max-steps", str(60_000 // batch_size), "--epochs", "100"]


def run_here(machine: Machine, batch_size: int, world_size: int) -> float:
    """Images/s of two ranks of one training, or of two trainings of one rank."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folders = [Path(name, str(rank)) for rank in range(2)]
        for folder in folders:
            folder.mkdir()
        numbers = (0, 1) if world_size == 2 else (0, 0)
        started = [
            start(machine, folder, _rank_options(batch_size), rank=number, ranks=world_size, port=port)
            for folder, number in zip(folders, numbers, strict=True)
        ]
        found = [finish(*one) for one in zip(folders, started, numbers, strict=True)]
    speeds = [one.images_per_s or 0.0 for one in found]
    return speeds[0] if world_size == 2 else sum(speeds)


def run_on_slurm(machine: Machine, batch_size: int, world_size: int) -> float:
    """Likewise, each on a node of its own."""
    with tempfile.TemporaryDirectory() as name:
        shapes = [["--nodes", "2"]] if world_size == 2 else [["--nodes", "1"], ["--nodes", "1"]]
        command = [sys.executable, "-m", "hpcdist.cli.main", "submit", "--wait", "--gpus", "1", "--name", "race"]
        command += ["--cpus-per-task", str(machine.threads), "--data-dir", str(machine.data_dir.absolute())]
        command += _rank_options(batch_size)
        env = machine.environment(PYTHONPATH=str(Path(__file__).parents[1]))
        started = [subprocess.Popen([*command, *one], cwd=name, env=env, stdout=subprocess.DEVNULL) for one in shapes]
        if any(process.wait() for process in started):
            raise RuntimeError("a job failed")
        usages = [
            msgspec.json.decode(path.read_bytes(), type=RankUsage)
            for path in Path(name).glob("jobs/runs/*/ranks/0.json")
        ]
    return sum(one.training.images_per_s or 0.0 for one in usages if one.training)


def show_start(machine: Machine, repeats: int) -> None:
    """From the start of a process to the end of its first step, over importing the libraries, by turns."""
    ours_s, imports_s = [], []
    for turn in range(repeats + 1):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], env=machine.environment(), check=True)
        imported_s = time.perf_counter() - began_s
        with tempfile.TemporaryDirectory() as name:
            phases = train(machine, Path(name), ["--max-steps", "2", "--epochs", "1"]).phases_s
        first_step_s = sum(phases[one] for one in list(phases)[: list(phases).index("steady")])
        if turn:  # the first round warms the file cache
            ours_s.append(first_step_s)
            imports_s.append(imported_s)
    ratio = statistics.median(a / b for a, b in zip(ours_s, imports_s, strict=True))
    print(
        f"\nstart to first step {statistics.median(ours_s):.2f} s, imports {statistics.median(imports_s):.2f} s:",
        end=" ",
    )
    print(f"{ratio:.2f} times ({min(ours_s) / max(imports_s):.2f} to {max(ours_s) / min(imports_s):.2f})")


PARTS: dict[str, Callable[[Machine, int], None]] = {
    "start": show_start,
    "speed": show_speed,
    "ranks": show_ranks,
    "races": show_races,
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    machine = Machine(options.data_dir, options.threads, options.accelerator)
    names = f"Python {platform.python_version()}, torch {torch.__version__}, {options.accelerator}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {names}", end=", ")
    print(f"{options.threads} thread(s), {datetime.date.today()}, {options.repeats} repeats, medians", flush=True)
    for name in options.only:
        PARTS[name](machine, options.repeats)


if __name__ == "__main__":
    main()
