"""The built-in training beside what people write: time to an accuracy, speed, what Lightning adds, two ranks, start-up.

    python -m benchmarks.train --data-dir data [--threads 1] [--accelerator gpu] [--repeats 3] [--only speed ranks]

Everything in one run, on one machine, with as many threads. Times to an accuracy begin before the process is started
("whole"), or when its first step is done ("trained"). Both end when the test that reached it is done: what a process
does after that (a last checkpoint, tear-down, the interpreter's exit) counts for none. hpcdist does all that it always
does: preflight, records, progress, TensorBoard. Where Slurm answers, two ranks are measured across two nodes too; with
one GPU they are left out.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.processes import Machine, first_step_at_s, train
from benchmarks.ranks import show_ranks
from benchmarks.throughput import Contest, compare, median_ratio

# Epochs of the one-cycle schedule after which the small network has an accuracy; the others stop where they reach it.
EPOCHS = {0.98: 1, 0.99: 3}
MOST_EPOCHS = 14  # what pytorch/examples trains
# Says when it is done: the interpreter's exit afterwards is no part of importing.
IMPORTS = "import time, torch, torchvision, pytorch_lightning; print(time.time())"


class Race(NamedTuple):
    """Seconds to the target, from before the process started and from its first step; None where it was missed."""

    whole_s: float | None
    trained_s: float | None
    steps_per_s: float | None


def race_hpcdist(machine: Machine, target: float) -> Race:
    """`python -m hpcdist.train`, as a job starts it."""
    with tempfile.TemporaryDirectory() as name:
        began_s = time.time()
        options = ["--epochs", str(EPOCHS[target]), "--batch-size", "128", "--lr", "5e-3"]
        metrics = train(machine, Path(name), options, target=target)
    reached = [test.at_s for test in metrics.tests if test.accuracy >= target]
    steps_per_s = metrics.images_per_s / 128 if metrics.images_per_s else None
    if not reached:
        return Race(None, None, steps_per_s)
    return Race(reached[0] - began_s, reached[0] - first_step_at_s(metrics), steps_per_s)


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
        built_in, raw = compare(Contest(machine.data_dir, batch_size, 150, machine.device), repeats)
        ratios = sorted(ours / theirs for ours, theirs in zip(built_in, raw, strict=True))
        speeds = [statistics.median(one) / batch_size for one in (built_in, raw)]
        added_s = statistics.median(batch_size / a - batch_size / b for a, b in zip(built_in, raw, strict=True))
        middle = f"{speeds[0]:10.1f}/s {speeds[1]:10.1f}/s  {median_ratio(built_in, raw):.3f}"
        print(f"{batch_size:>6} {middle}  ({ratios[0]:.3f}, {ratios[-1]:.3f})  {1e6 * added_s:.0f} us", flush=True)


def show_start(machine: Machine, repeats: int) -> None:
    """From before a process starts to the end of its first step, over that to the end of importing, by turns."""
    ours_s, imports_s = [], []
    for turn in range(repeats + 1):
        began_s = time.time()
        command = [sys.executable, "-c", IMPORTS]
        done = subprocess.run(command, env=machine.environment(), capture_output=True, check=True)
        imported_s = float(done.stdout) - began_s
        with tempfile.TemporaryDirectory() as name:
            began_s = time.time()
            metrics = train(machine, Path(name), ["--max-steps", "2", "--epochs", "1"])
        if turn:  # the first round warms the file cache
            ours_s.append(first_step_at_s(metrics) - began_s)
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
