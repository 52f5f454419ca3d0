"""Images in memory, cut into batches by index and augmented a batch at a time: no Python work per sample.

The random numbers come from the seed, the epoch and the batch alone, and are drawn for the batch over all ranks: an
image is changed the same way in every layout, and in a training that goes on from a checkpoint.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional

from hpcdist.datasets import Augmentation

PADDING = 4


class CropFlip(NamedTuple):
    """What is done to each image of a batch.

    Attributes:
        down_B: Rows that the crop begins below the padded image's top, 0 to 8.
        right_B: Columns likewise.
        mirrored_B: Whether it is mirrored.
    """

    down_B: Tensor
    right_B: Tensor
    mirrored_B: Tensor

    def cut(self, begin: int, end: int, device: torch.device) -> "CropFlip":
        """Return those of a part of the batch."""
        return CropFlip(*(numbers_B[begin:end].to(device, non_blocking=True) for numbers_B in self))


def draw_crop_flips(kind: Augmentation, count: int, seed: int, epoch: int, batch: int) -> CropFlip:
    """Return the crops and flips of a batch of `count` images over all ranks."""
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + epoch) * 1_000_003 + batch) % (1 << 63))
    offsets_2B = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator)
    mirrored_B = torch.rand(count, generator=generator) < 0.5
    return CropFlip(offsets_2B[0], offsets_2B[1], mirrored_B if kind == "crop-flip" else torch.zeros_like(mirrored_B))


def crop_and_flip(images_BCHW: Tensor, crop_flips: CropFlip) -> Tensor:
    """Crops of the images with a black border of 4 pixels around them, some mirrored; one indexing does it all."""
    _, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded = functional.pad(images_BCHW, (PADDING,) * 4)
    rows_BH = crop_flips.down_B[:, None] + torch.arange(height, device=device)
    columns_W = torch.arange(width, device=device)
    columns_BW = torch.where(crop_flips.mirrored_B[:, None], columns_W.flip(0), columns_W) + crop_flips.right_B[:, None]
    image_B = torch.arange(len(images_BCHW), device=device)
    # Index tensors on both sides of a slice: their dimensions come first, so this is B H W C.
    moved_BHWC = padded[image_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


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


class Normalisation(NamedTuple):
    """What turns pixels of 0 to 255 into numbers around 0.

    Attributes:
        mean: Of the training set's pixels, per channel, as fractions of full brightness.
        standard_deviation: Likewise.
    """

    mean: tuple[float, ...] = (MEAN,)
    standard_deviation: tuple[float, ...] = (STANDARD_DEVIATION,)

    def apply(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the images as floats."""
        if len(self.mean) == 1:
            offset, scale = 255 * self.mean[0], 1 / (255 * self.standard_deviation[0])
            return torch.sub(pixels_BCHW, offset).mul_(scale)
        offset_C11 = 255 * torch.tensor(self.mean, device=pixels_BCHW.device).view(-1, 1, 1)
        scale_C11 = 1 / (255 * torch.tensor(self.standard_deviation, device=pixels_BCHW.device).view(-1, 1, 1))
        return torch.sub(pixels_BCHW, offset_C11).mul_(scale_C11)


class Split(NamedTuple):
    """A training or test set in memory.

    Attributes:
        images_NHW: Pixels, one byte each: a quarter of what floats would take. Grey ones have no axis of channels;
            others are `images_NCHW`.
        labels_N: Classes.
        normalisation: What makes numbers of them.
        augmentation: What is done to training images.
    """

    images_NHW: Tensor
    labels_N: Tensor
    normalisation: Normalisation = Normalisation()
    augmentation: Augmentation | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = (1, *self.images_NHW.shape[1:])[-3:]
        return channels, height, width

    def select(self, indices_B: Tensor, global_count: int, crop_flips: CropFlip | None = None) -> Batch:
        """Return the samples at these indices, normalised."""
        pixels = self.images_NHW.index_select(0, indices_B)
        pixels_BCHW = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
        if crop_flips is not None:
            pixels_BCHW = crop_and_flip(pixels_BCHW, crop_flips)
        images_BCHW = self.normalisation.apply(pixels_BCHW)
        return Batch(images_BCHW, self.labels_N.index_select(0, indices_B), global_count)


class RankSlice(NamedTuple):
    """What one rank computes of a batch, or of a part of it.

    Attributes:
        indices_B: Its samples.
        begin: Its place in the batch over all ranks.
        batch: The batch's number in its epoch.
        global_count: Samples of the batch over all ranks.
    """

    indices_B: Tensor
    begin: int
    batch: int
    global_count: int


def cut_shard(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Begin and end of a rank's contiguous share of `count` samples; shares differ by at most one sample."""
    return count * rank // world_size, count * (rank + 1) // world_size


def shuffle_indices(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, `indices_N`: the same on every rank, another one each epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(count, generator=generator)


class TrainBatches:
    """The batches of one rank: each epoch every sample once, over all ranks.

    Attributes:
        batch_size: Samples of a batch over all ranks.
        seed: Seed of the order.
        epoch: The epoch of the next pass, from 0.
        watch: What an epoch's batches go through on their way out.
        steps_per_epoch: Batches over all ranks in an epoch.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, rank: int, world_size: int, *, accumulate: int = 1
    ) -> None:
        self.split = split
        self.seed = seed
        self.batch_size = batch_size
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate
        self.steps_per_epoch = math.ceil(len(split.labels_N) / batch_size)
        self.epoch = 0
        self.watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter
        self._given = 0  # batches of this epoch so far
        self._skipped = 0
        self._ordered, self._order_N = -1, torch.empty(0, dtype=torch.int64)  # the epoch whose order is known

    def state_dict(self) -> dict[str, int]:
        """Return where in which epoch the training is (Lightning keeps it in its checkpoints)."""
        return {"epoch": self.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass there."""
        self.epoch, self._skipped = state["epoch"], state["batch"]

    def __len__(self) -> int:
        return self.steps_per_epoch * self._accumulate

    def slices(self, begin: int) -> Iterator[RankSlice]:
        """Yield this rank's slices of the epoch from number `begin` on, as many of a batch as are accumulated."""
        for number in range(begin, len(self)):
            batch, part = divmod(number, self._accumulate)
            yield self.cut(batch, part, self._accumulate, self._rank, self._world_size)

    def cut(self, batch: int, part: int, parts: int, rank: int, world_size: int) -> RankSlice:
        """Return what a rank computes of a part of a batch of this epoch."""
        if self._ordered != self.epoch:
            order_N = shuffle_indices(len(self.split.labels_N), self.seed, self.epoch)
            self._ordered, self._order_N = self.epoch, order_N.to(self.split.labels_N.device)
        begin = batch * self.batch_size
        count = min(self.batch_size, len(self._order_N) - begin)
        # Of a last batch with fewer samples than parts the last part has some, so each step has a loss.
        part_begin, part_end = cut_shard(count, part, parts)
        first, last = cut_shard(part_end - part_begin, rank, world_size)
        mine = part_begin + first
        return RankSlice(self._order_N[begin + mine : begin + part_begin + last], mine, batch, count)

    def load(self, slices: Iterator[RankSlice]) -> Iterator[Batch]:
        """Yield the samples of the slices."""
        kind = self.split.augmentation
        for part in slices:
            crop_flips = None
            if kind is not None:
                whole = draw_crop_flips(kind, part.global_count, self.seed, self.epoch, part.batch)
                crop_flips = whole.cut(part.begin, part.begin + len(part.indices_B), part.indices_B.device)
            yield self.split.select(part.indices_B, part.global_count, crop_flips)

    def nothing(self) -> Batch:
        """Return a batch without samples."""
        return self.split.select(torch.empty(0, dtype=torch.int64, device=self.split.labels_N.device), 1)

    def _count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._given += 1
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        self._given, self._skipped = self._skipped, 0
        return self.watch(self._count(self.load(self.slices(self._given))))


class EvalBatches:
    """One rank's share of the test set, in as many batches as every other rank's."""

    batch_size = EVAL_BATCH_SIZE

    def __init__(self, split: Split, rank: int, world_size: int) -> None:
        self.split = split
        count = len(split.labels_N)
        self._begin, self._end = cut_shard(count, rank, world_size)
        self._length = math.ceil(math.ceil(count / world_size) / self.batch_size)

    def __len__(self) -> int:
        return self._length

    def indices(self) -> Iterator[Tensor]:
        """Yield the samples of each batch."""
        indices_N = torch.arange(self._begin, self._end, device=self.split.labels_N.device)
        for number in range(self._length):
            yield indices_N[number * self.batch_size : (number + 1) * self.batch_size]

    def __iter__(self) -> Iterator[Batch]:
        return (self.split.select(indices_B, len(indices_B)) for indices_B in self.indices())


class ImageData(LightningDataModule):
    """A training and a test set, as one rank sees them.

    Args:
        batch_size: Samples per step over all ranks.
        seed: Seed of the order.
        accumulate: Parts that each batch of a rank is computed in.
    """

    def __init__(
        self,
        train: Split,
        test: Split,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        accumulate: int = 1,
        class_count: int = 10,
    ) -> None:
        super().__init__()
        self.train_batches = TrainBatches(train, batch_size, seed, rank, world_size, accumulate=accumulate)
        self.test_batches = EvalBatches(test, rank, world_size)
        self.shape = train.shape
        self.class_count = class_count

    def train_dataloader(self) -> TrainBatches:
        """Return this rank's training batches."""
        return self.train_batches

    def val_dataloader(self) -> EvalBatches:
        """Return this rank's share of the test set."""
        return self.test_batches

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch, whose samples are on the device already."""
        return batch


def read_mnist(data_dir: Path, device: torch.device, *, train: bool) -> Split:
    """Return MNIST's training or test set, read through torchvision and kept on the device; nothing is downloaded."""
    import torchvision

    dataset = torchvision.datasets.MNIST(str(data_dir), train=train, download=False)
    return Split(dataset.data.to(device), dataset.targets.to(device))
