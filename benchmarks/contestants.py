"""One training of MNIST in a process of its own, for `benchmarks/train.py`: the ways people write it.

    python -m benchmarks.contestants examples|lightning|raw --data-dir data [--accelerator cpu] [--threads 1]

Prints one JSON line: when the first step was done, each test's time and accuracy (seconds since the epoch), steps/s.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, STANDARD_DEVIATION = 0.1307, 0.3081


class Tracker:
    """Notes when what happened."""

    def __init__(self, target: float, device: torch.device) -> None:
        self.target, self.device = target, device
        self.first_step_at_s: float | None = None
        self.tests: list[tuple[float, float]] = []
        self._steps, self._trained_s, self._since = 0, 0.0, 0.0

    def begin(self) -> None:
        """An epoch's steps begin."""
        self._since = time.perf_counter()

    def step(self) -> None:
        """A step is done; the first one is not counted for the speed."""
        if self.first_step_at_s is None:
            self._settle()
            self.first_step_at_s = time.time()
            self._since = time.perf_counter()
        else:
            self._steps += 1

    def end(self) -> None:
        """An epoch's steps are over."""
        self._settle()
        self._trained_s += time.perf_counter() - self._since

    def test(self, accuracy: float) -> bool:
        """Notes a test; whether the target is reached."""
        self.tests.append((time.time(), accuracy))
        return accuracy >= self.target

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def report(self) -> dict[str, Any]:
        """What is printed."""
        speed = self._steps / self._trained_s if self._trained_s else None
        return {"first_step_at_s": self.first_step_at_s, "tests": self.tests, "steps_per_s": speed}


class ExamplesNet(nn.Module):
    """The layers of pytorch/examples' MNIST network: 1,199,882 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)
        )
        self.classes = nn.Sequential(
            nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10), nn.LogSoftmax(1)
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logarithms of the classes' probabilities."""
        scores: Tensor = self.classes(self.features(images_BCHW))
        return scores


def _load(data_dir: Path, *, train: bool, batch_size: int, device: torch.device) -> Any:
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STANDARD_DEVIATION,))]
    images = datasets.MNIST(str(data_dir), train=train, transform=transforms.Compose(steps))
    extra: dict[str, Any] = {"num_workers": 1, "pin_memory": True} if device.type == "cuda" else {}
    return torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=train, **extra)


def _measure(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]] | Any, device: torch.device) -> float:
    network.eval()
    correct = count = 0
    with torch.no_grad():
        for images_BCHW, labels_B in batches:
            found_B = network(images_BCHW.to(device)).argmax(1)
            correct += int((found_B == labels_B.to(device)).sum())
            count += len(labels_B)
    network.train()
    return correct / count


def run_examples(data_dir: Path, device: torch.device, tracker: Tracker, epochs: int) -> None:
    """The network and settings of pytorch/examples' MNIST, restated: batch 64, Adadelta, each image through PIL."""
    train = _load(data_dir, train=True, batch_size=64, device=device)
    test = _load(data_dir, train=False, batch_size=1000, device=device)
    network = ExamplesNet().to(device)
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(epochs):
        tracker.begin()
        for number, (images_BCHW, labels_B) in enumerate(train):
            optimizer.zero_grad()
            loss = functional.nll_loss(network(images_BCHW.to(device)), labels_B.to(device))
            loss.backward()
            optimizer.step()
            if number % 10 == 0:
                print(f"{number} {loss.item():.6f}", file=sys.stderr)
            tracker.step()
        tracker.end()
        if tracker.test(_measure(network, test, device)):
            return
        schedule.step()


def run_raw(data_dir: Path, device: torch.device, tracker: Tracker, epochs: int) -> None:
    """A loop without anything around it: hpcdist's network and settings, images in memory."""
    from hpcdist.train.data.batches import read_mnist
    from hpcdist.train.networks import SmallCnn, build_optimizer, build_schedule

    def read(*, train: bool) -> tuple[Tensor, Tensor]:
        split = read_mnist(data_dir, device, train=train)
        images_NHW = split.images_NHW.float() / 255
        return ((images_NHW - MEAN) / STANDARD_DEVIATION).unsqueeze(1), split.labels_N

    images_NCHW, labels_N = read(train=True)
    tests = read(train=False)
    network = SmallCnn().to(device)
    steps = math.ceil(len(labels_N) / 128)
    optimizer = build_optimizer("adamw", network, 5e-3)
    schedule = build_schedule(optimizer, 5e-3, epochs * steps + 1)
    for _ in range(epochs):
        tracker.begin()
        for indices_B in torch.randperm(len(labels_N), device=device).split(128):
            optimizer.zero_grad()
            functional.cross_entropy(network(images_NCHW[indices_B]), labels_N[indices_B]).backward()
            optimizer.step()
            schedule.step()
            tracker.step()
        tracker.end()
        if tracker.test(_measure(network, zip(tests[0].split(1000), tests[1].split(1000), strict=True), device)):
            return


def run_lightning(data_dir: Path, device: torch.device, tracker: Tracker, epochs: int) -> None:
    """The same network and settings as most people would write them with Lightning."""
    import pytorch_lightning as pl

    from hpcdist.train.networks import SmallCnn, build_optimizer, build_schedule

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = SmallCnn()

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            optimizer = build_optimizer("adamw", self, 5e-3)
            schedule = build_schedule(optimizer, 5e-3, epochs * 469 + 1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_epoch_start(self) -> None:
            tracker.begin()

        def on_train_batch_end(self, *_: object) -> None:
            tracker.step()

        def on_validation_start(self) -> None:
            tracker.end()

        def on_validation_epoch_end(self) -> None:
            reached = tracker.test(float(self.trainer.callback_metrics["accuracy"]))
            self.trainer.should_stop = self.trainer.should_stop or reached

    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    train, test = (_load(data_dir, train=one, batch_size=128 if one else 1000, device=device) for one in (True, False))
    trainer.fit(Net(), train, test)


CONTESTANTS: dict[str, Callable[[Path, torch.device, Tracker, int], None]] = {
    "examples": run_examples,
    "lightning": run_lightning,
    "raw": run_raw,
}


def main() -> None:
    """Runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--target", type=float, default=0.98)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    device = torch.device("cuda" if options.accelerator == "gpu" else "cpu")
    tracker = Tracker(options.target, device)
    CONTESTANTS[options.name](options.data_dir, device, tracker, options.epochs)
    print(json.dumps(tracker.report()))


if __name__ == "__main__":
    main()
