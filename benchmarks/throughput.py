"""Steady-state throughput of the built-in training against a raw PyTorch loop, both in this process, by turns.

    python benchmarks/throughput.py --data-dir data [--network resnet18] [--batch-sizes 128 512] [--threads 1]
        [--steps 150] [--repeats 5]

Same network, optimizer, schedule, batch, threads and number of steps. The raw loop has the images as normalised
floats in memory and does nothing but train; the built-in training is all of it: Lightning, logging, progress, phases.
The process is given what `hpcdist.rank` gives the built-in training, so both keep memory that they freed; what that is
worth shows in `benchmarks/train.py`, whose raw loop has a process of its own without it.
The turns are of ten steps, within one training: where a machine's speed changes from one second to the next, whole
trainings one after the other would measure that.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning
import torch
from torch.nn import functional

from hpcdist.config.job import Layout
from hpcdist.config.training import Training
from hpcdist.launcher.process import TRAINING_MEMORY
from hpcdist.train.data.batches import MEAN, STANDARD_DEVIATION, Batch, ImageData, read_mnist
from hpcdist.train.distributed import settle
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.fit import fit
from hpcdist.train.networks import build_network, build_optimizer, build_schedule
from hpcdist.train.options import Options
from hpcdist.train.outcome import Clock, Outcome

CPU = torch.device("cpu")
TURN = 10


class Contest:
    """Both contestants at one batch size.

    Args:
        data_dir: torchvision's root folder with MNIST.
        batch_size: Samples per step.
        steps: Steps of a run; those of the first turn are not counted.
        device: Where both train.
        network: What both train.
    """

    def __init__(
        self, data_dir: Path, batch_size: int, steps: int, device: torch.device = CPU, *, network: str = "cnn"
    ) -> None:
        self.training = Training(batch_size=batch_size, max_steps=steps, epochs=1_000, model=network)
        self.steps, self.device = steps, device
        train, test = (read_mnist(data_dir, device, train=is_train) for is_train in (True, False))
        test = test._replace(images_NHW=test.images_NHW[:1000], labels_N=test.labels_N[:1000])  # is not measured
        self.data = ImageData(train, test, batch_size=batch_size, seed=1, rank=0, world_size=1)
        pixels_NHW, self.labels_N = train.images_NHW, train.labels_N
        self.images_NCHW = ((pixels_NHW.float() / 255 - MEAN) / STANDARD_DEVIATION).unsqueeze(1)

    def run(self) -> tuple[float, float]:
        """Images per second of `hpcdist.train`, and of a loop without anything around it."""
        turns = _Turns(self._raw_steps(), self.device)
        batches = self.data.train_batches
        load = type(batches).load
        batches.load = lambda shares: turns.interleave(load(batches, shares))  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            now_s = time.time()
            rank = RankEnvironment(started_at_s=now_s, run_dir=Path(folder), tensorboard=Path(folder, "events"))
            outcome = Outcome(None, Clock(now_s))
            options = Options(layout=Layout(gpus=int(self.device.type == "cuda")), training=self.training)
            fit(options, rank, self.data, device=self.device, outcome=outcome, reporter=FailureReporter(rank, outcome))
        return turns.images_per_s()

    def _raw_steps(self) -> Iterator[int]:
        """Trains a step each time it is asked for one; yields its samples."""
        torch.manual_seed(1)
        network = build_network(self.training.model, self.data.shape, self.data.class_count).to(self.device)
        optimizer = build_optimizer("adamw", network, self.training.lr)
        schedule = build_schedule(optimizer, self.training.lr, 2 * self.steps)
        order_N = torch.randperm(len(self.labels_N), device=self.device)
        while True:
            for indices_B in torch.split(order_N, self.training.batch_size or 1):
                optimizer.zero_grad()
                logits_BK = network(self.images_NCHW[indices_B])
                functional.cross_entropy(logits_BK, self.labels_N[indices_B]).backward()
                optimizer.step()
                schedule.step()
                yield len(indices_B)


class _Turns:
    """Has the raw loop train `TURN` steps after each `TURN` batches that the built-in training takes."""

    def __init__(self, raw_steps: Iterator[int], device: torch.device) -> None:
        self._raw_steps, self._device = raw_steps, device
        self._built_in: list[tuple[int, float]] = []  # samples and seconds of each turn
        self._raw: list[tuple[int, float]] = []

    def interleave(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an epoch; a turn that its end cuts short, with the test in it, is not counted."""
        began_s, images = self._now_s(), 0
        for number, batch in enumerate(batches):
            if number and number % TURN == 0:
                ended_s = self._now_s()
                self._built_in.append((images, ended_s - began_s))
                raw_images = sum(next(self._raw_steps) for _ in range(TURN))
                began_s, images = self._now_s(), 0
                self._raw.append((raw_images, began_s - ended_s))
            images += len(batch.labels_B)
            yield batch

    def _now_s(self) -> float:
        """The time at which a GPU is done with what was asked of it."""
        settle(self._device)
        return time.perf_counter()

    def images_per_s(self) -> tuple[float, float]:
        """Over all turns but the first, in which memory is asked for."""
        built_in, raw = (
            sum(images for images, _ in turns[1:]) / sum(seconds for _, seconds in turns[1:])
            for turns in (self._built_in, self._raw)
        )
        return built_in, raw


def compare(contest: Contest, repeats: int) -> tuple[list[float], list[float]]:
    """Images per second of the built-in training and the raw loop in each of several runs."""
    built_in, raw = zip(*(contest.run() for _ in range(repeats)), strict=True)
    return list(built_in), list(raw)


def median_ratio(built_in: list[float], raw: list[float]) -> float:
    """Median over the runs of built-in / raw."""
    return statistics.median(ours / theirs for ours, theirs in zip(built_in, raw, strict=True))


def _read_cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Prints the table."""
    if not os.environ.keys() >= TRAINING_MEMORY.keys():
        # Read by the C library when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], TRAINING_MEMORY | os.environ)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{_read_cpu_name()}, {torch.get_num_threads()} thread(s), Python {platform.python_version()},", end=" ")
    print(f"torch {torch.__version__}, pytorch-lightning {pytorch_lightning.__version__},", end=" ")
    print(f"{datetime.date.today()}; {options.network}, {options.steps} steps, {options.repeats} runs, medians")
    print(f"{'batch':>6} {'built-in':>12} {'raw loop':>12}  ratio  (lowest, highest)")
    for batch_size in options.batch_sizes:
        contest = Contest(options.data_dir, batch_size, options.steps, network=options.network)
        sys.stdout.flush()
        built_in, raw = compare(contest, options.repeats)
        ratios = sorted(ours / theirs for ours, theirs in zip(built_in, raw, strict=True))
        middle = f"{statistics.median(built_in):9,.0f}/s {statistics.median(raw):10,.0f}/s"
        print(f"{batch_size:>6} {middle}  {median_ratio(built_in, raw):.3f}  ({ratios[0]:.3f}, {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
