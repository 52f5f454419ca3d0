"""Checkpoints: files whole or absent, verified when read; when they are taken and how a training goes on from one.

A file is called `step-<step>-<first half of its SHA-256>.ckpt`, so one rename brings content and checksum at once.

A checkpoint is Lightning's (weights, optimizer, schedule, scaler, loops, position in the epoch) with the state of every
rank's random numbers beside it. It loads with `torch.load(..., weights_only=True)`: reading one runs no code.
"""

import contextlib
import hashlib
import io
import random
import re
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy
import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer

from hpcdist.errors import UsageError
from hpcdist.files import write_atomically
from hpcdist.records.ranks import TestResult
from hpcdist.train.data.batches import cut_shard
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.module import Classifier, Tally
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.step_count import rank_strategy

KEPT = 2

_NAME = re.compile(r"step-[0-9]{8,}-[0-9a-f]{32}\.ckpt")


def write_checkpoint(folder: Path, step: int, content: bytes | memoryview) -> Path:
    """Write a checkpoint, then remove all but the last two.

    Raises:
        OSError: The disk is full or read-only; the older ones are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}-{_checksum(content)}.ckpt"
    write_atomically(path, content)
    for old in _list(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is as it was written; None when there is none.

    A damaged one is warned about and kept under another name, out of the way of the next; one that can't be read now
    may be whole, and stays as it is.
    """
    for path in reversed(_list(folder)):
        try:
            is_whole = path.stem.split("-")[2] == _checksum(path.read_bytes())
        except OSError as error:
            _warn(path, str(error.strerror))
            continue
        if is_whole:
            return path
        _warn(path, "it is damaged")
        with contextlib.suppress(OSError):  # a folder that is read-only
            path.rename(path.with_suffix(".damaged"))
    return None


def _warn(path: Path, reason: str) -> None:
    print(f"warning: checkpoint {path} can't be used: {reason}; the one before it is", file=sys.stderr, flush=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left behind, each as large as a checkpoint; nobody may be writing."""
    for path in folder.glob(".step-*.ckpt.*"):
        with contextlib.suppress(OSError):
            path.unlink()


def read_step(path: Path) -> int:
    """Return the step after which a checkpoint was taken, from its name."""
    return int(path.name.split("-")[1])


def _list(folder: Path) -> list[Path]:
    """Return the checkpoints in order of their steps, and of their times where a step was written twice."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (read_step(path), _written_ns(path)))


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed since it was listed
        return 0


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


OWN_KEY = "hpcdist"
OLDER = {"ps_mode": "sync"}  # what checkpoints that do not say it were made with
VISIBLE_TIMEOUT_S = 60.0  # a shared folder may show a new file late


class Checkpoints:
    """Takes a rank's part in checkpoints; every rank has one, rank 0 writes.

    What a step waits for is the copy into memory; checksum and disk are the business of a thread.

    Args:
        folder: Where they are kept; None keeps none.
        options: What is trained: a checkpoint of another batch or seed can't be gone on with.
        outcome: Whose tests go on in the training that goes on, and where the time is booked.
        steps: Optimizer steps in all; None where the module knows.
    """

    def __init__(
        self, folder: Path | None, rank: RankEnvironment, options: Options, outcome: Outcome, steps: int | None = None
    ) -> None:
        self._folder, self._rank = folder, rank
        self._options, self._steps = options, steps
        self._outcome, self._clock = outcome, outcome.clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self.taken_at = time.monotonic()
        self._write_s = 0.0  # from the moment of the last one until it was on the disk

    def take(self, trainer: Trainer) -> None:
        """Copy everything; every rank must call it after the same step."""
        interrupted = self._clock.enter("checkpoint")
        self.taken_at = time.monotonic()
        strategy = rank_strategy(trainer)
        # Taken before the others go on: then they wait until all is copied.
        with strategy.held():
            ranks = _gather(_rank_state(trainer), self._rank)
            if self._folder and self._rank.rank == 0:
                data, step = self._copy(trainer, ranks), strategy.steps_done
                self.wait()
                self._writing = self._writer.submit(self._write, self._folder, step, data, self.taken_at)
        self._clock.enter(interrupted)

    def _copy(self, trainer: Trainer, ranks: list[dict[str, Any]]) -> memoryview:
        # Not Trainer.save_checkpoint: it ends in a barrier, and writes in place.
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        tests = msgspec.to_builtins(self._outcome.metrics().tests)
        content[OWN_KEY] = {"ranks": ranks, "tests": list(tests), "steps": self._steps, **self._identity()}
        if server := rank_strategy(trainer).server_state():
            content[OWN_KEY]["server"] = server
        data = io.BytesIO()
        torch.save(content, data)
        return data.getbuffer()

    def is_due(self, interval_s: float) -> bool:
        """Whether the last one was taken so long ago that another one would be on the disk only after the interval.

        Where writing takes longer than half of the interval, half of it is left.
        """
        return time.monotonic() - self.taken_at >= interval_s - min(self._write_s, interval_s / 2)

    def _write(self, folder: Path, step: int, data: memoryview, taken_at: float) -> None:
        try:
            write_checkpoint(folder, step, data)
            self._write_s = time.monotonic() - taken_at
        except OSError as error:
            print(
                f"warning: no checkpoint at step {step}: {error.strerror}: {folder}; the training goes on",
                file=sys.stderr,
                flush=True,
            )

    def wait(self) -> None:
        """Until the last checkpoint is on disk."""
        if self._writing:
            self._writing.result()

    def _identity(self) -> dict[str, Any]:
        training = self._options.training
        if training.module:
            return {"module": training.module, "seed": training.seed}
        return {
            "batch_size": self._options.batch_size,
            "seed": training.seed,
            "model": training.model or "cnn",
            "data": training.data or "mnist",
            "module": None,
            "optimizer": training.optimizer,
            "lr": training.lr,
            "schedule": training.schedule or "one-cycle",
            "accumulate": self._options.accumulate,
            "ps_mode": "async" if self._options.is_async else "sync",
        }

    def find(self) -> Path | None:
        """Return the checkpoint to go on from, the same on every rank; None to begin anew.

        Raises:
            UsageError: It is not one of this training.
        """
        choice: list[str | None] = [None]
        if self._rank.rank == 0:
            if self._folder:
                remove_unfinished(self._folder)
            other = self._options.training.resume_from
            folders = [folder for folder in (self._folder, Path(other) if other else None) if folder]
            found = next(filter(None, map(find_checkpoint, folders)), None)
            if other and not found:
                choice = [f"error: no usable checkpoint in {other}"]
            elif found:
                choice = [str(found)]
        if self._rank.world_size > 1:
            dist.broadcast_object_list(choice, src=0)
        if choice[0] is None:
            return None
        if choice[0].startswith("error: "):
            raise UsageError(choice[0].removeprefix("error: "), "leave out --resume-from to begin anew")
        path = Path(choice[0])
        _wait_until_visible(path)
        return path

    def restore(self, content: dict[str, Any], module: LightningModule) -> None:
        """Take up this rank's random numbers and count of samples where they were; Lightning has done the rest."""
        tally = module.tally if isinstance(module, Classifier) else Tally()
        states = content[OWN_KEY]["ranks"]
        tests = content[OWN_KEY].get("tests", [])  # checkpoints of release 0.1 have none
        self._outcome.learn(tests=msgspec.convert(tests, tuple[TestResult, ...]))
        begin, end = cut_shard(sum(state["samples"] for state in states), self._rank.rank, self._rank.world_size)
        tally.samples = end - begin
        if len(states) == self._rank.world_size:
            _restore_rank(states[self._rank.rank])
            tally.samples = states[self._rank.rank]["samples"]
        elif self._rank.rank == 0:
            print(
                f"note: the checkpoint was made by {len(states)} rank(s), and these are {self._rank.world_size}:"
                " every sample is still used once, but sums round differently, so weights differ in their last bits",
                flush=True,
            )

    def load(self, path: Path) -> dict[str, Any]:
        """Return a checkpoint's content, on the CPU; loading runs no code of it.

        Raises:
            UsageError: It is not one of this training.
        """
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        own = content.get(OWN_KEY)
        if own is None:
            raise UsageError("the checkpoint was not written by hpcdist's training", "leave out --resume-from")
        for name, value in self._identity().items():
            # Those of release 0.1 say nothing of what there was no choice of then.
            made_with = own.get(name, OLDER.get(name, value))
            if made_with != value:
                raise UsageError(
                    f"the checkpoint was made with {name} {made_with}, and this training has {value}",
                    f"use --{name.replace('_', '-')} {made_with}, or leave out --resume-from",
                )
        self._check_length(path, content)
        return content

    def _check_length(self, path: Path, content: dict[str, Any]) -> None:
        """Refuse a checkpoint from behind the end of this training."""
        epochs = self._options.training.epochs
        reached, end, unit = read_step(path), self._steps, "step"
        if end is None:
            reached, end, unit = content["epoch"], epochs, "epoch"
        if reached > end:
            raise UsageError(
                f"the checkpoint was made after {unit} {reached}, and this training ends after {end}",
                "raise --epochs or --max-steps, or leave out --resume-from",
            )


def _rank_state(trainer: Trainer) -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    state = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    drawn: Any = numpy.random.get_state()  # what modules of one's own may draw from
    name, keys, *rest = drawn
    state["numpy"] = [name, keys.tolist(), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    module = trainer.lightning_module
    return state | {"samples": module.tally.samples if isinstance(module, Classifier) else 0}


def _gather(state: dict[str, Any], rank: RankEnvironment) -> list[dict[str, Any]]:
    if rank.world_size == 1:
        return [state]
    states: list[dict[str, Any]] = [{}] * rank.world_size
    dist.gather_object(state, states if rank.rank == 0 else None, dst=0)
    return states


def _restore_rank(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, keys, *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _wait_until_visible(path: Path) -> None:
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UsageError(
                f"rank 0 found the checkpoint {path}, and this rank does not see it after {VISIBLE_TIMEOUT_S:.0f} s",
                "keep jobs/ on a folder that all nodes share",
            )
        time.sleep(0.2)
