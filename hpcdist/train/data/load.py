"""What `--data` names, read into memory or opened as a folder; nothing is downloaded."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcdist.datasets import Dataset, Synthetic, find_dataset, is_folder, is_synthetic, parse_folder, parse_synthetic
from hpcdist.errors import NotReadyError
from hpcdist.train.data.batches import ImageData, Normalisation, Split, read_mnist
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.options import Options

# Of made-up images; not the training's, so that repeats of a training with other seeds learn the same.
SYNTHETIC_SEED = 20_170_901
NOISE, CONTRAST = 60.0, 40.0  # of a pixel's 255
CHUNK = 1000


def read_data(options: Options, rank: RankEnvironment, data_dir: Path, device: torch.device, threads: int) -> ImageData:
    """Return the training and test set of this rank.

    Raises:
        NotReadyError: What reads them is not installed.
        UsageError: The folder of images is not as it should be.
    """
    name = options.training.data_name or "mnist"
    cut = {
        "batch_size": options.batch_size,
        "seed": options.training.seed,
        "rank": rank.rank,
        "world_size": rank.world_size,
        "accumulate": options.accumulate,
    }
    if is_folder(name):
        from hpcdist.train.data.image_folder import keep_decoded, open_folder

        folder, side = parse_folder(name)
        asked = options.training.workers
        workers = max(1, threads - 1) if asked is None else asked
        return open_folder(Path(folder), side, device, workers=workers, keep=partial(keep_decoded, rank=rank), **cut)
    if is_synthetic(name):
        made = parse_synthetic(name)
        train, test = (make_split(made, device, train=train) for train in (True, False))
        return ImageData(train, test, class_count=made.class_count, **cut)
    dataset = find_dataset(name)
    train, test = (read_split(dataset, data_dir, device, train=train) for train in (True, False))
    return ImageData(train, test, class_count=dataset.class_count, **cut)


def read_split(dataset: Dataset, data_dir: Path, device: torch.device, *, train: bool) -> Split:
    """Return a dataset's training or test set, read through torchvision and kept on the device; nothing is downloaded.

    Raises:
        NotReadyError: What torchvision reads it with is not installed.
    """
    if dataset.name == "mnist":
        return read_mnist(data_dir, device, train=train)
    import torchvision

    kind = getattr(torchvision.datasets, dataset.title)
    which: dict[str, Any] = {"train": train}
    if dataset.name == "svhn":
        which = {"split": "train" if train else "test"}
        _require_scipy()
    source = kind(str(data_dir), download=False, **which)
    images = torch.as_tensor(source.data)
    if dataset.name.startswith("cifar"):
        images = images.permute(0, 3, 1, 2)  # torchvision has them as NHWC
    labels = torch.as_tensor(source.labels if dataset.name == "svhn" else source.targets)
    return Split(
        images.contiguous().to(device),
        labels.to(device),
        Normalisation(dataset.mean, dataset.standard_deviation),
        dataset.augmentation if train else None,
    )


def _require_scipy() -> None:
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise NotReadyError(
            "torchvision reads SVHN's files with scipy, which is not installed", "pip install 'hpcdist[svhn]'"
        ) from None


def make_split(made: Synthetic, device: torch.device, *, train: bool) -> Split:
    """Return made-up images: a blurred pattern per class under noise, the same in every process and run."""
    channels, height, width = made.shape
    patterns = torch.randn(made.class_count, channels, 4, 4, generator=_seeded(0))
    patterns_KCHW = functional.interpolate(patterns, (height, width), mode="bilinear", align_corners=False)
    generator = _seeded(1 if train else 2)
    count = made.count if train else max(1, made.count // 5)
    labels_N = torch.randint(0, made.class_count, (count,), generator=generator)
    images_NCHW = torch.empty((count, *made.shape), dtype=torch.uint8)
    for begin in range(0, count, CHUNK):
        chunk = labels_N[begin : begin + CHUNK]
        images_NCHW[begin : begin + CHUNK] = _paint(patterns_KCHW[chunk], generator)
    return Split(images_NCHW.to(device), labels_N.to(device), Normalisation((0.5,), (0.25,)))


def _paint(patterns_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(patterns_BCHW.shape, generator=generator)
    return (127.5 + CONTRAST * patterns_BCHW + NOISE * noise).clamp_(0, 255)


def _seeded(offset: int) -> torch.Generator:
    return torch.Generator().manual_seed(SYNTHETIC_SEED + offset)
