"""MNIST in memory, cut into batches by index: no Python work per sample."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from pytorch_lightning import LightningDataModule
from torch import Tensor

MEAN, STANDARD_DEVIATION = 0.1307, 0.3081  # of the training set's pixels, as fractions of full brightness
EVAL_BATCH_SIZE = 1000


class Batch(NamedTuple):
    """One rank's part of a batch.

    Attributes:
        images_BCHW: Normalised images; B may be 0 on a rank that got none of a small last batch.
        labels_B: Their classes.
        global_count: Samples of this batch over all ranks.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    global_count: int


class Split(NamedTuple):
    """A training or test set in memory.

    Attributes:
        images_NHW: Pixels, one byte each: a quarter of what floats would take.
        labels_N: Classes.
    """

    images_NHW: Tensor
    labels_N: Tensor

    def select(self, indices_B: Tensor, global_count: int) -> Batch:
        """The samples at these indices, normalised."""
        pixels_BCHW = self.images_NHW.index_select(0, indices_B).unsqueeze(1)
        images_BCHW = torch.sub(pixels_BCHW, 255 * MEAN).mul_(1 / (255 * STANDARD_DEVIATION))
        return Batch(images_BCHW, self.labels_N.index_select(0, indices_B), global_count)


def cut_shard(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Begin and end of a rank's contiguous share of `count` samples; shares differ by at most one sample."""
    return count * rank // world_size, count * (rank + 1) // world_size


def shuffle_indices(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch, `indices_N`: the same on every rank, another one each epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


class TrainBatches:
    """The batches of one rank: each epoch every sample once, over all ranks.

    Attributes:
        epoch: The epoch of the next pass, from 0.
        watch: What an epoch's batches go through on their way out.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.split = split
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self.epoch = 0
        self.watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter
        self._given = 0  # batches of this epoch so far
        self._skipped = 0

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch the training is (Lightning keeps it in its checkpoints)."""
        return {"epoch": self.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begins the next pass there."""
        self.epoch, self._skipped = state["epoch"], state["batch"]

    def __len__(self) -> int:
        return math.ceil(len(self.split.labels_N) / self._batch_size)

    def indices(self) -> Iterator[tuple[Tensor, int]]:
        """Per step, the indices of this rank's samples and the number of samples over all ranks."""
        order_N = shuffle_indices(len(self.split.labels_N), self._seed, self.epoch).to(self.split.labels_N.device)
        self._given, self._skipped = self._skipped, 0
        for batch_indices in torch.split(order_N, self._batch_size)[self._given :]:
            self._given += 1
            begin, end = cut_shard(len(batch_indices), self._rank, self._world_size)
            yield batch_indices[begin:end], len(batch_indices)

    def __iter__(self) -> Iterator[Batch]:
        return self.watch(self.split.select(indices_B, global_count) for indices_B, global_count in self.indices())


class EvalBatches:
    """One rank's share of the test set, in as many batches as every other rank's."""

    def __init__(self, split: Split, rank: int, world_size: int) -> None:
        self.split = split
        count = len(split.labels_N)
        self._begin, self._end = cut_shard(count, rank, world_size)
        self._length = math.ceil(math.ceil(count / world_size) / EVAL_BATCH_SIZE)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        indices_N = torch.arange(self._begin, self._end, device=self.split.labels_N.device)
        for number in range(self._length):
            indices_B = indices_N[number * EVAL_BATCH_SIZE : (number + 1) * EVAL_BATCH_SIZE]
            yield self.split.select(indices_B, len(indices_B))


class ImageData(LightningDataModule):
    """A training and a test set, as one rank sees them.

    Args:
        train: The training set.
        test: The test set.
        batch_size: Samples per step over all ranks.
        seed: Seed of the order.
        rank: This rank.
        world_size: Ranks in all.
    """

    def __init__(self, train: Split, test: Split, *, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        super().__init__()
        self.train_batches = TrainBatches(train, batch_size, seed, rank, world_size)
        self.test_batches = EvalBatches(test, rank, world_size)

    def train_dataloader(self) -> TrainBatches:
        """This rank's training batches."""
        return self.train_batches

    def val_dataloader(self) -> EvalBatches:
        """This rank's share of the test set."""
        return self.test_batches

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """The samples are on the device already."""
        return batch


def read_mnist(data_dir: Path, device: torch.device, *, train: bool) -> Split:
    """MNIST's training or test set, read through torchvision and kept on the device; nothing is downloaded."""
    dataset = torchvision.datasets.MNIST(str(data_dir), train=train, download=False)
    return Split(dataset.data.to(device), dataset.targets.to(device))
