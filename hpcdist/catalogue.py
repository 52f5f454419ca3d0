"""The datasets that the built-in training knows: their files, checksums, shapes and usual augmentation. Pure.

Checksums of MNIST are SHA-256 of the files as torchvision reads them. Those of the others are the MD5 sums that
torchvision 0.29.1 publishes in its classes: enough against damage, and against nothing else.
"""

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from hpcdist.errors import NotFoundError, UsageError

Augmentation = Literal["crop", "crop-flip"]
SYNTHETIC = "synthetic"
SYNTHETIC_DEFAULT = "3x32x32x10"
_SYNTHETIC_FORM = re.compile(r"([0-9]+)x([0-9]+)x([0-9]+)x([0-9]+)(?:@([0-9]+))?")


class KnownFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a dataset where torchvision looks for it.

    Attributes:
        path: Below the folder of the datasets.
        md5: Checksum of its content; None where only that of the packed file is published.
        packed: Path of the gzip file that it comes in and that stays beside it, whose MD5 is `packed_md5`.
        packed_md5: Checksum of that file.
    """

    path: str
    md5: str | None = None
    packed: str | None = None
    packed_md5: str | None = None


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """One file to fetch.

    Attributes:
        name: Its name, as mirrors and other people's folders have it.
        urls: Where it is.
        md5: Its checksum.
        kind: "tar" is unpacked into the folder of the datasets, "gzip" beside where it is kept, "plain" is only kept.
        path: Where it is kept, below the folder of the datasets; None does not keep it.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    kind: Literal["tar", "gzip", "plain"]
    path: str | None = None


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular about a dataset.

    Attributes:
        name: As `--data` has it.
        title: torchvision's class.
        shape: Channels, height and width of an image.
        class_count: Classes.
        mean: Of the training set's pixels, per channel, as fractions of full brightness.
        standard_deviation: Likewise.
        augmentation: What is done to training images: "crop" moves them by up to 4 pixels, "crop-flip" also mirrors
            half of them; None leaves them as they are.
        files: Its files; empty for MNIST, whose own are in `datasets`.
        downloads: What to fetch for them.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    class_count: int
    mean: tuple[float, ...]
    standard_deviation: tuple[float, ...]
    augmentation: Augmentation | None = None
    files: tuple[KnownFile, ...] = ()
    downloads: tuple[Download, ...] = ()


class Synthetic(msgspec.Struct, frozen=True, kw_only=True):
    """A made-up dataset: `synthetic:3x32x32x10@5000`.

    Attributes:
        shape: Channels, height and width of an image.
        class_count: Classes.
        count: Training images; the test set has a fifth of that.
    """

    shape: tuple[int, int, int]
    class_count: int
    count: int


def _fashion() -> tuple[tuple[KnownFile, ...], tuple[Download, ...]]:
    folder = "FashionMNIST/raw"
    sums = {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    mirror = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    files = [
        KnownFile(path=f"{folder}/{name}", packed=f"{folder}/{name}.gz", packed_md5=md5) for name, md5 in sums.items()
    ]
    downloads = [
        Download(name=f"{name}.gz", urls=(f"{mirror}{name}.gz",), md5=md5, kind="gzip", path=f"{folder}/{name}.gz")
        for name, md5 in sums.items()
    ]
    return tuple(files), tuple(downloads)


def _cifar(number: int, archive_md5: str, sums: dict[str, str]) -> tuple[tuple[KnownFile, ...], tuple[Download, ...]]:
    folder = "cifar-10-batches-py" if number == 10 else "cifar-100-python"
    name = f"cifar-{number}-python.tar.gz"
    files = tuple(KnownFile(path=f"{folder}/{file}", md5=md5) for file, md5 in sums.items())
    download = Download(name=name, urls=(f"https://www.cs.toronto.edu/~kriz/{name}",), md5=archive_md5, kind="tar")
    return files, (download,)


def _svhn() -> tuple[tuple[KnownFile, ...], tuple[Download, ...]]:
    sums = {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }
    site = "http://ufldl.stanford.edu/housenumbers/"
    files = tuple(KnownFile(path=name, md5=md5) for name, md5 in sums.items())
    downloads = [
        Download(name=name, urls=(f"{site}{name}",), md5=md5, kind="plain", path=name) for name, md5 in sums.items()
    ]
    return files, tuple(downloads)


_CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


def list_datasets() -> tuple[Dataset, ...]:
    """Every dataset that has a name; their pixels' figures are the ones in common use."""
    fashion_files, fashion_downloads = _fashion()
    cifar10_files, cifar10_downloads = _cifar(10, "c58f30108f718f92721af3b95e74349a", _CIFAR10)
    cifar100_files, cifar100_downloads = _cifar(100, "eb9058c3a382ffc7106e4002c42a8d85", _CIFAR100)
    svhn_files, svhn_downloads = _svhn()
    grey, colour = (1, 28, 28), (3, 32, 32)
    return (
        Dataset(name="mnist", title="MNIST", shape=grey, class_count=10, mean=(0.1307,), standard_deviation=(0.3081,)),
        Dataset(
            name="fashion-mnist",
            title="FashionMNIST",
            shape=grey,
            class_count=10,
            mean=(0.2860,),
            standard_deviation=(0.3530,),
            files=fashion_files,
            downloads=fashion_downloads,
        ),
        Dataset(
            name="cifar10",
            title="CIFAR10",
            shape=colour,
            class_count=10,
            mean=(0.4914, 0.4822, 0.4465),
            standard_deviation=(0.2470, 0.2435, 0.2616),
            augmentation="crop-flip",
            files=cifar10_files,
            downloads=cifar10_downloads,
        ),
        Dataset(
            name="cifar100",
            title="CIFAR100",
            shape=colour,
            class_count=100,
            mean=(0.5071, 0.4865, 0.4409),
            standard_deviation=(0.2673, 0.2564, 0.2762),
            augmentation="crop-flip",
            files=cifar100_files,
            downloads=cifar100_downloads,
        ),
        Dataset(
            name="svhn",
            title="SVHN",
            shape=colour,
            class_count=10,
            mean=(0.4377, 0.4438, 0.4728),
            standard_deviation=(0.1980, 0.2010, 0.1970),
            augmentation="crop",  # a mirrored digit is no digit
            files=svhn_files,
            downloads=svhn_downloads,
        ),
    )


def find_dataset(name: str) -> Dataset:
    """The dataset of this name.

    Raises:
        NotFoundError: There is none.
    """
    known = {dataset.name: dataset for dataset in list_datasets()}
    if name not in known:
        raise NotFoundError(f"no dataset is called {name!r}", f"the datasets are: {', '.join(known)}")
    return known[name]


def is_folder(data: str) -> bool:
    """Whether `--data` means a folder of images: a name with a slash in it, or a dot."""
    return "/" in data or data in (".", "..")


def parse_folder(data: str) -> tuple[str, int]:
    """`/data/imagenet@64`: the folder, and the side of the images that are cut from its own; 224 without a number."""
    folder, at, side = data.rpartition("@")
    return (folder, int(side)) if at and side.isdecimal() and int(side) else (data, 224)


def is_synthetic(data: str) -> bool:
    """Whether `--data` means made-up images."""
    return data.partition(":")[0] == SYNTHETIC


def parse_synthetic(data: str) -> Synthetic:
    """`synthetic:3x32x32x10@5000`: channels, height, width, classes, and how many training images there are.

    Without a number there are 10,000 of them, or as many as fit into 256 MiB.

    Raises:
        UsageError: It is of another form.
    """
    words = data.partition(":")[2] or SYNTHETIC_DEFAULT
    found = _SYNTHETIC_FORM.fullmatch(words)
    numbers = [int(group) for group in found.groups() if group] if found else [0]
    if not min(numbers) or numbers[3] < 2:
        raise UsageError(
            f"data: {data!r} does not say channels, height, width and two or more classes",
            f"write --data {SYNTHETIC}:{SYNTHETIC_DEFAULT}, with @5000 behind it for 5,000 training images",
        )
    channels, height, width, class_count, *count = numbers
    most = max(class_count, (256 << 20) // (channels * height * width))
    return Synthetic(
        shape=(channels, height, width), class_count=class_count, count=count[0] if count else min(10_000, most)
    )


def check_data(data: str) -> None:
    """Refuses what `--data` can't be.

    Raises:
        UsageError: It is no dataset, no folder and not synthetic.
    """
    if is_synthetic(data):
        parse_synthetic(data)
    elif not is_folder(data):
        names = [dataset.name for dataset in list_datasets()]
        if data not in names:
            raise UsageError(
                f"data: no dataset is called {data!r}",
                f"use one of {', '.join([*names, SYNTHETIC])}, or a folder of images by a path with a slash (./{data})",
            )


def list_paths(dataset: Dataset) -> Iterator[str]:
    """The paths of all its files below the folder of the datasets."""
    for file in dataset.files:
        yield file.path
        if file.packed:
            yield file.packed
