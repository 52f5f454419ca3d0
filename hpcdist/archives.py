"""Datasets that come as published archives: verified, and fetched from their sites or from a folder. No torch."""

import hashlib
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcdist.catalogue import Dataset, Download, KnownFile, list_paths
from hpcdist.disk import write_atomically
from hpcdist.errors import HpcdistError
from hpcdist.mnist_wheel import REPORT_INTERVAL_S, Report

CONNECT_TIMEOUT_S = 10.0
DEADLINE_S = 1800.0  # for a whole file: a site that trickles is given up
CHUNK_BYTES = 1 << 18
LARGEST_BYTES = 1 << 29  # the largest of them has 182 MB; what is larger is not it


def is_complete(dataset: Dataset, data_dir: Path) -> bool:
    """Whether all its files are there; a quick look."""
    return all((data_dir / path).is_file() for path in list_paths(dataset))


def find_trouble(dataset: Dataset, data_dir: Path) -> str | None:
    """The first file that is missing or damaged, in words; None when all are right."""
    for file in dataset.files:
        for path in filter(None, (file.packed, file.path)):
            if not (data_dir / path).is_file():
                return f"dataset {dataset.name} is not in {data_dir}: {data_dir / path} is missing"
        if not _is_intact(file, data_dir):
            return f"dataset {dataset.name} is damaged: {data_dir / file.path} does not have its checksum"
    return None


def _is_intact(file: KnownFile, data_dir: Path) -> bool:
    if file.md5 is not None:
        return _md5(data_dir / file.path) == file.md5
    if file.packed is None or _md5(data_dir / file.packed) != file.packed_md5:
        return False
    # A gzip file ends with the CRC-32 and the size of what is in it (RFC 1952, 2.3.1).
    trailer = (data_dir / file.packed).read_bytes()[-8:]
    content = (data_dir / file.path).read_bytes()
    return trailer == zlib.crc32(content).to_bytes(4, "little") + (len(content) % (1 << 32)).to_bytes(4, "little")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch_archives(dataset: Dataset, data_dir: Path, report: Report, source: Path | None) -> None:
    """Puts a dataset's files into `data_dir`, each whole, by renaming.

    Args:
        dataset: What to fetch.
        data_dir: The folder of the datasets.
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
    """Copies a dataset that lies unpacked in another folder of datasets; False when none does."""
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
    # Imported late: the command line loads this module, and these take longer than all of it.
    import http.client
    import urllib.request

    reasons = []
    for url in download.urls:
        report(f"fetching {url}")
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as response:  # noqa: S310
                content = b"".join(read_chunks(response, download.name, report, DEADLINE_S, LARGEST_BYTES))
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == download.md5:
            return content
        reasons.append(f"{url}: {download.name} arrived damaged")
    raise HpcdistError(
        "; ".join(reasons),
        f"run this where the internet can be reached, or bring {download.name} in a folder: --from FOLDER",
    )


def read_chunks(response: Any, name: str, report: Report, deadline_s: float, most_bytes: int) -> Iterator[bytes]:
    """Reads a transfer piece by piece, and reports every two seconds.

    Raises:
        OSError: It takes longer than the deadline, or is larger than it may be.
    """
    started = reported = time.monotonic()
    read_bytes = 0
    while chunk := response.read(CHUNK_BYTES):
        read_bytes += len(chunk)
        now = time.monotonic()
        if now - started > deadline_s or read_bytes > most_bytes:
            raise OSError(f"{name} is too slow or too large ({read_bytes} bytes in {now - started:.0f} s)")
        if now - reported > REPORT_INTERVAL_S:
            reported = now
            report(f"  {name}: {read_bytes / 1e6:.1f} MB")
        yield chunk


def _unpack(dataset: Dataset, download: Download, content: bytes, data_dir: Path) -> None:
    contents: dict[str, bytes] = {download.path: content} if download.path else {}
    if download.kind == "gzip" and download.path:
        contents[download.path.removesuffix(".gz")] = zlib.decompress(content, wbits=31)
    elif download.kind == "tar":
        contents = _read_members(dataset, content)
    for path, part in contents.items():
        (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(data_dir / path, part)


def _read_members(dataset: Dataset, content: bytes) -> dict[str, bytes]:
    """The files of the dataset in a tar archive, and nothing else that may be in it."""
    import io
    import tarfile

    wanted = {file.path for file in dataset.files}
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.name in wanted and (stream := archive.extractfile(member)):
                found[member.name] = stream.read()
    return found
