"""How long a checkpoint holds the built-in training up, and what share of the time that is at the default interval.

    python benchmarks/checkpoints.py --data-dir data [--repeats 3]

One rank trains three epochs and saves twice a second; the stall of a save is the phase `checkpoint` over the number of
saves. The writing goes on in a thread beside the training; what that costs the steps is the difference in `step_time_s`
to a training that saves once, at its end, by turns in the same run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from hpcdist.config.training import Training
from hpcdist.records.ranks import TrainingMetrics
from hpcdist.units import parse_duration


class Run(NamedTuple):
    """One training: its saves, the seconds they held it up, and its median step in seconds."""

    saves: int
    stalled_s: float
    step_s: float


def train(data_dir: Path, checkpoint_every: str) -> Run:
    """Trains in a process of its own, and counts the checkpoints as they appear."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = os.environ | {
            "HPCDIST_METRICS": str(folder / "metrics.json"),
            "HPCDIST_CHECKPOINT_DIR": str(folder / "checkpoints"),
        }
        command = [sys.executable, "-m", "hpcdist.train", "--gpus", "0", "--cpus-per-task", "1"]
        command += ["--data-dir", str(data_dir), "--checkpoint-every", checkpoint_every]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        seen: set[str] = set()
        while process.poll() is None:
            seen |= {path.name for path in (folder / "checkpoints").glob("step-*.ckpt")}
            time.sleep(0.05)
        seen |= {path.name for path in (folder / "checkpoints").glob("step-*.ckpt")}
        metrics = msgspec.json.decode((folder / "metrics.json").read_bytes(), type=TrainingMetrics)
    return Run(len(seen), metrics.phases_s["checkpoint"], metrics.step_time_s or 0.0)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    often, once = [], []
    for _ in range(options.repeats):
        often.append(train(options.data_dir, "0.5s"))
        once.append(train(options.data_dir, "1h"))
    stalls_s = [run.stalled_s / run.saves for run in often]
    interval_s = parse_duration(Training().checkpoint_every)
    stall_s = statistics.median(stalls_s)
    print(f"saves per run: {', '.join(str(run.saves) for run in often)}")
    print(f"stall of a save: {1e3 * stall_s:.1f} ms ({1e3 * min(stalls_s):.1f} to {1e3 * max(stalls_s):.1f})")
    print(f"share at the default interval of {interval_s:.0f} s: {100 * stall_s / interval_s:.4f} %")
    steps = [statistics.median(run.step_s for run in runs) for runs in (often, once)]
    print(f"median step while saving twice a second, and never: {1e3 * steps[0]:.2f} ms, {1e3 * steps[1]:.2f} ms")


if __name__ == "__main__":
    main()
