"""Images kept as they come out of decoding, so that only the first epoch decodes; the ranks of a node share them."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import psutil
import torch.distributed as dist
from PIL import Image

from hpcdist.errors import HpcdistError
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
        """A part of the image, given in its own pixels, as a square."""
        kept = len(self.pixels_HWC)
        across, down = kept / self.width, kept / self.height
        left, top, right, bottom = box
        scaled = (left * across, top * down, min(kept, right * across), min(kept, bottom * down))
        return Image.fromarray(self.pixels_HWC).resize((side, side), Image.Resampling.BILINEAR, scaled)


class BadImageError(HpcdistError):
    """A file that is no image, or only a part of one."""


def decode_picture(path: str, side: int) -> Picture:
    """The image of a file, squeezed into a square of this side.

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
        count: Pictures.
        side: Of each, in pixels.
    """

    def __init__(self, path: Path, count: int, side: int) -> None:
        self._sizes_N2 = numpy.memmap(path, numpy.uint32, "r+", 0, (count, 2))
        self._pixels_NHWC = numpy.memmap(path, numpy.uint8, "r+", SIZE_BYTES * count, (count, side, side, 3))

    def find(self, place: int) -> Picture | None:
        """A picture that any process has kept."""
        width, height = self._sizes_N2[place].tolist()
        return Picture(self._pixels_NHWC[place], width, height) if width else None

    def keep(self, place: int, picture: Picture) -> None:
        """Keeps a picture for all."""
        self._pixels_NHWC[place] = picture.pixels_HWC
        self._sizes_N2[place, 1] = picture.height
        # Last: who finds a width takes the rest for written.
        self._sizes_N2[place, 0] = picture.width


def count_bytes(count: int, side: int) -> int:
    """What so many pictures take."""
    return count * (SIZE_BYTES + 3 * side * side)


def keep_decoded(count: int, side: int, rank: RankEnvironment) -> Decoded | None:
    """Room for a set's pictures on the node's own disk; None where there is not enough. Every rank must call it.

    The file has no name any more when this returns: however the job ends, nothing is left behind.
    """
    path = _make_file(count_bytes(count, side)) if rank.local_rank == 0 else None
    if rank.rank == 0:
        _tell(count, count_bytes(count, side), kept=path is not None)
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
    """Bytes that a file in the folder may have."""
    room = int(ROOM_SHARE * shutil.disk_usage(folder).free)
    above = {str(one) for one in (folder.resolve(), *folder.resolve().parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in above]
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    return min(room, MEMORY_BYTES) if kind in {"tmpfs", "ramfs"} else room


def _tell(count: int, size_bytes: int, *, kept: bool) -> None:
    folder, size = tempfile.gettempdir(), format_bytes(size_bytes)
    if kept:
        print(f"{count:,} images are decoded once and kept: {size} in {folder}", flush=True)
    else:
        print(
            f"{count:,} images are decoded in every epoch: keeping them takes {size}, for which {folder} has no room;"
            " TMPDIR names another folder",
            flush=True,
        )
