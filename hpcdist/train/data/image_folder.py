"""A folder of images in ImageNet's layout, decoded by worker processes while the training computes."""

import contextlib
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import psutil
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from hpcdist.datasets import held_out_folder
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.train.data.batches import (
    Batch,
    EvalBatches,
    ImageData,
    Normalisation,
    RankSlice,
    Split,
    TrainBatches,
    cut_shard,
)
from hpcdist.train.environment import RankEnvironment
from hpcdist.units import format_bytes

ROOM_SHARE = 0.5  # of what is free in the temporary folder
MEMORY_BYTES = 1 << 30  # the most of one set where that folder is memory, which is the job's too
SIZE_BYTES = 8  # of a picture's width and height


class Picture(NamedTuple):
    """An image squeezed into a square; cutting by the size that it had stretches it back.

    Attributes:
        pixels_HWC: One byte each.
        width: Before, in pixels.
        height: Likewise.
    """

    pixels_HWC: Any
    width: int
    height: int

    def cut(self, box: tuple[float, float, float, float], side: int) -> Image.Image:
        """Return a part of the image, given in its own pixels, as a square."""
        kept = len(self.pixels_HWC)
        across, down = kept / self.width, kept / self.height
        left, top, right, bottom = box
        scaled = (left * across, top * down, min(kept, right * across), min(kept, bottom * down))
        return Image.fromarray(self.pixels_HWC).resize((side, side), Image.Resampling.BILINEAR, scaled)


class BadImageError(HpcdistError):
    """A file that is no image, or only a part of one."""


def decode_picture(path: str, side: int) -> Picture:
    """Return the image of a file, squeezed into a square of this side.

    Raises:
        BadImageError: It can't be decoded.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # as Pillow says it
        reason = str(error) or type(error).__name__
        raise BadImageError(f"{path} can't be decoded: {reason}", "fetch that image again, or remove it") from None
    squeezed = image.resize((side, side), Image.Resampling.BILINEAR)
    return Picture(numpy.asarray(squeezed), *image.size)


class Decoded:
    """The pictures of a set, by their places in it, in a file that processes share.

    Args:
        path: The file, with room for `count_bytes`; it may be removed once it is open.
        side: Of each, in pixels.
    """

    def __init__(self, path: Path, count: int, side: int) -> None:
        self._sizes_N2 = numpy.memmap(path, numpy.uint32, "r+", 0, (count, 2))
        self._pixels_NHWC = numpy.memmap(path, numpy.uint8, "r+", SIZE_BYTES * count, (count, side, side, 3))

    def find(self, place: int) -> Picture | None:
        """Return a picture that any process has kept."""
        width, height = self._sizes_N2[place].tolist()
        return Picture(self._pixels_NHWC[place], width, height) if width else None

    def keep(self, place: int, picture: Picture) -> None:
        """Keep a picture for all."""
        self._pixels_NHWC[place] = picture.pixels_HWC
        self._sizes_N2[place, 1] = picture.height
        # Last: who finds a width takes the rest for written.
        self._sizes_N2[place, 0] = picture.width


def count_bytes(count: int, side: int) -> int:
    """Return what so many pictures take."""
    return count * (SIZE_BYTES + 3 * side * side)


def keep_decoded(count: int, side: int, rank: RankEnvironment) -> Decoded | None:
    """Return room for a set's pictures on the node's own disk; None where there is not enough. Every rank must call it.

    The file has no name any more when this returns: however the job ends, nothing is left behind.
    """
    size_bytes = count_bytes(count, side)
    path = _make_file(size_bytes) if rank.local_rank == 0 else None
    if rank.rank == 0:
        folder, size = tempfile.gettempdir(), format_bytes(size_bytes)
        kept = f"once and kept: {size} in {folder}"
        lost = f"in every epoch: keeping them takes {size}, for which {folder} has no room; TMPDIR names another folder"
        print(f"{count:,} images are decoded {kept if path else lost}", flush=True)
    if rank.world_size > 1:
        paths: list[tuple[int, Path | None]] = [(0, None)] * rank.world_size
        dist.all_gather_object(paths, (rank.node_rank, path))
        path = next((one for node, one in paths if node == rank.node_rank and one), None)
    decoded = None
    # A rank in a container of its own may not see it: it decodes each epoch.
    with contextlib.suppress(OSError):
        decoded = Decoded(path, count, side) if path else None
    if rank.world_size > 1:
        dist.barrier()
    if path and rank.local_rank == 0:
        path.unlink()
    return decoded


def _make_file(size_bytes: int) -> Path | None:
    if size_bytes > find_room(Path(tempfile.gettempdir())):
        return None
    handle, name = tempfile.mkstemp(prefix="hpcdist-")
    try:
        # Now and not page by page: where the disk is full by then, the process that writes is killed.
        os.posix_fallocate(handle, 0, size_bytes)
    except OSError:
        Path(name).unlink()
        return None
    finally:
        os.close(handle)
    return Path(name)


def find_room(folder: Path) -> int:
    """Return the bytes that a file in the folder may have."""
    room = int(ROOM_SHARE * shutil.disk_usage(folder).free)
    above = {str(one) for one in (folder.resolve(), *folder.resolve().parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in above]
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    return min(room, MEMORY_BYTES) if kind in {"tmpfs", "ramfs"} else room


# Of ImageNet's training set, as torchvision's own references have them.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EVAL_BATCH_SIZE = 100
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop (torchvision's RandomResizedCrop)
ATTEMPTS = 10
KEPT_SHARE = 0.875  # of the shorter side, in a test: 224 of 256


class Sample(NamedTuple):
    """What a worker is asked for.

    Attributes:
        place: Of the image in the folder's order.
        draw: What its crop is drawn from; None cuts the middle out.
    """

    place: int
    draw: str | None


# Makes room for so many decoded images of a side; None where there is not enough.
Keep = Callable[[int, int], Decoded | None]


class Images(Dataset[tuple[Tensor, Tensor] | BadImageError]):
    """Decodes whole batches of a folder.

    An image is squeezed into a square before it is cut, whether it is kept or not: all epochs have the same pixels.

    Args:
        folder: With a folder per class.
        side: Of the square that each image becomes, in pixels.
        keep: Where what was decoded is kept; None keeps nothing.
    """

    def __init__(self, folder: Path, side: int, keep: Keep | None = None) -> None:
        found = ImageFolder(str(folder))
        self._paths = [path for path, _ in found.samples]
        self.labels = found.targets
        self.classes = found.classes
        self._side, self._kept_side = side, round(side / KEPT_SHARE)
        self._decoded = keep(len(self._paths), self._kept_side) if keep else None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor] | BadImageError:
        """`images_BCHW` as bytes, and `labels_B`; or why there are none, which torch would wrap up in a traceback."""
        try:
            return self._load(samples)
        except BadImageError as error:
            return error

    def _load(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images_BHWC = numpy.empty((len(samples), self._side, self._side, 3), dtype=numpy.uint8)
        for number, sample in enumerate(samples):
            images_BHWC[number] = numpy.asarray(self._cut(sample))
        labels_B = torch.tensor([self.labels[sample.place] for sample in samples], dtype=torch.int64)
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), labels_B

    def _find(self, place: int) -> Picture:
        found = self._decoded.find(place) if self._decoded else None
        if found:
            return found
        picture = decode_picture(self._paths[place], self._kept_side)
        if self._decoded:
            self._decoded.keep(place, picture)
        return picture

    def _cut(self, sample: Sample) -> Image.Image:
        picture = self._find(sample.place)
        if sample.draw is None:
            return picture.cut(cut_middle(picture.width, picture.height), self._side)
        chance = random.Random(sample.draw)
        cropped = picture.cut(draw_crop(picture.width, picture.height, chance), self._side)
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else cropped


def cut_middle(width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the square in the middle."""
    side = KEPT_SHARE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def draw_crop(width: int, height: int, chance: random.Random) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a random part, as torchvision's RandomResizedCrop draws it."""
    for _ in range(ATTEMPTS):
        area = width * height * chance.uniform(*AREA)
        ratio = math.exp(chance.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            left, top = chance.uniform(0, width - crop_width), chance.uniform(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    return cut_middle(width, height)


class Workers:
    """Worker processes that decode batches ahead of the training, started by the first pass."""

    def __init__(self, images: Images, device: torch.device, count: int) -> None:
        self._device, self._count = device, count
        self._asked: list[list[Sample]] = []  # read when a pass begins
        self._loader: DataLoader[tuple[Tensor, Tensor] | BadImageError] = DataLoader(
            images,
            batch_sampler=self._asked,
            num_workers=count,
            # The file of decoded images has no name that another process could open it by.
            multiprocessing_context="fork" if count else None,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=count > 0,
        )

    def decode(self, asked: list[list[Sample]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, normalised and on the device.

        Raises:
            BadImageError: A file can't be decoded.
        """
        # Where there are fewer batches than workers, each takes a piece.
        pieces = max(1, self._count // max(1, len(asked)))
        self._asked[:] = [
            batch[slice(*cut_shard(len(batch), piece, pieces))] for batch in asked for piece in range(pieces)
        ]
        loaded = iter(self._loader)
        for _ in asked:
            parts = []
            for _ in range(pieces):
                part = next(loaded)
                if isinstance(part, BadImageError):
                    raise part
                parts.append(part)
            pixels_BCHW = torch.cat([pixels.to(self._device, non_blocking=True) for pixels, _ in parts])
            labels_B = torch.cat([labels.to(self._device, non_blocking=True) for _, labels in parts])
            yield IMAGENET.apply(pixels_BCHW), labels_B


def _as_it_is(batch: Any) -> Any:
    return batch


class FolderTrainBatches(TrainBatches):
    """One rank's training batches, each image cut at random; the same cut in every layout."""

    def __init__(self, images: Images, side: int, workers: Workers, **cut: int) -> None:
        super().__init__(_index(images, side), **cut)
        self._workers = workers

    def load(self, slices: Iterator[RankSlice]) -> Iterator[Batch]:
        """Yield the slices' images, decoded by the workers."""
        plan = list(slices)
        begin = f"{self.seed} {self.epoch}"
        asked = [[Sample(index, f"{begin} {index}") for index in part.indices_B.tolist()] for part in plan]
        for part, (images_BCHW, labels_B) in zip(plan, self._workers.decode(asked), strict=True):
            yield Batch(images_BCHW, labels_B, part.global_count)


class FolderEvalBatches(EvalBatches):
    """One rank's share of the test set."""

    batch_size = EVAL_BATCH_SIZE

    def __init__(self, images: Images, side: int, workers: Workers, rank: int, world_size: int) -> None:
        super().__init__(_index(images, side), rank, world_size)
        self._workers = workers

    def __iter__(self) -> Iterator[Batch]:
        asked = [[Sample(index, None) for index in indices_B.tolist()] for indices_B in self.indices()]
        for images_BCHW, labels_B in self._workers.decode(asked):
            yield Batch(images_BCHW, labels_B, len(labels_B))


def _index(images: Images, side: int) -> Split:
    """Return what cutting into batches has to know of a folder: an image of no memory for each label."""
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(len(images), -1, -1, -1)
    return Split(pixels, torch.tensor(images.labels), IMAGENET)


def open_folder(
    folder: Path,
    side: int,
    device: torch.device,
    *,
    workers: int,
    keep: Keep | None = None,
    **cut: int,
) -> ImageData:
    """Return a folder with `train/<class>/` and `val/<class>/` (or `test/`), as one rank sees it.

    Args:
        side: Of the square that each image becomes, in pixels.
        workers: Processes that decode the training set; as many for the test set.
        cut: How it is cut into batches: the named arguments of `ImageData`.

    Raises:
        UsageError: A class has no images, or the two have other classes.
    """
    try:
        train, test = (Images(part, side, keep) for part in (folder / "train", held_out_folder(folder)))
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: {error}", "give every class some images, or remove its folder") from None
    if train.classes != test.classes:
        other = sorted(set(train.classes) ^ set(test.classes))[0]
        raise UsageError(f"{folder}: class {other!r} is in one of training and test set only", "rename its folder")
    data = ImageData(_index(train, side), _index(test, side), class_count=len(train.classes), **cut)
    decoders = [Workers(images, device, workers) for images in (train, test)]
    data.train_batches = FolderTrainBatches(train, side, decoders[0], **cut)
    data.test_batches = FolderEvalBatches(test, side, decoders[1], cut["rank"], cut["world_size"])
    return data
