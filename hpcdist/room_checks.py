"""Whether there is room on a disk: blocks, files, quota. Pure."""

import re
from collections.abc import Iterable

import msgspec

from hpcdist.check import Check
from hpcdist.units import format_bytes

GIB = 1024**3
# A run of the built-in training leaves some 20 MB; a few gigabytes are what checkpoints of a real one take.
FEW_BYTES, TOO_FEW_BYTES = 5 * GIB, 100 * 1024**2
# A run leaves a few dozen files.
FEW_FILES, TOO_FEW_FILES = 10_000, 100
NEARLY_FULL = 0.9
# quota(1) counts in blocks of 1 KiB.
QUOTA_BLOCK_BYTES = 1024

_NUMBERS = re.compile(r"(\d+)\*?")


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What is free on a file system (statvfs(3)).

    Attributes:
        free_bytes: For an ordinary user.
        free_files: Inodes likewise; None where the file system has no fixed number.
    """

    free_bytes: int
    free_files: int | None = None


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """A user's share of a file system, and what is used of it.

    Attributes:
        filesystem: Its device or server.
        used_bytes: In bytes.
        limit_bytes: The smaller of the soft and the hard limit, in bytes; None without one.
        used_files: Files.
        limit_files: The smaller limit; None without one.
    """

    filesystem: str
    used_bytes: int
    limit_bytes: int | None = None
    used_files: int = 0
    limit_files: int | None = None


def judge_room(folder: str, room: Room) -> Check:
    """Whether a folder's disk has room for runs."""
    said = f"{format_bytes(room.free_bytes)} free at {folder}"
    if room.free_files is not None:
        said += f", {room.free_files:,} files"
    lacks_bytes = room.free_bytes < TOO_FEW_BYTES
    lacks_files = room.free_files is not None and room.free_files < TOO_FEW_FILES
    if lacks_bytes or lacks_files:
        return Check(name="disk", status="error", sentence=f"only {said}: runs can't be written", hint=_HINT)
    if room.free_bytes < FEW_BYTES or (room.free_files is not None and room.free_files < FEW_FILES):
        return Check(name="disk", status="warning", sentence=f"only {said}: checkpoints may not fit", hint=_HINT)
    return Check(name="disk", status="ok", sentence=said)


_HINT = "du -sh jobs/runs/* shows what runs take; remove what is not needed, or put the project on a larger disk"


def parse_quota(text: str) -> list[Quota]:
    """The rows of `quota -w -p` (quota(1)): file system, blocks, soft, hard, grace, files, soft, hard, grace."""
    found = []
    for line in text.splitlines():
        words = line.split()
        numbers = [_NUMBERS.fullmatch(word) for word in words[1:]]
        if len(words) != 9 or not all(numbers):
            continue
        used, soft, hard, _, files, files_soft, files_hard, _ = (int(number[1]) for number in numbers if number)
        found.append(
            Quota(
                filesystem=words[0],
                used_bytes=used * QUOTA_BLOCK_BYTES,
                limit_bytes=_smaller(soft * QUOTA_BLOCK_BYTES, hard * QUOTA_BLOCK_BYTES),
                used_files=files,
                limit_files=_smaller(files_soft, files_hard),
            )
        )
    return found


def judge_quota(quotas: Iterable[Quota]) -> Check | None:
    """The fullest of a user's quotas; None where there is none."""
    shares = [
        (used / limit, f"{quota.filesystem}: {said(used)} of {said(limit)}{what}")
        for quota in quotas
        for used, limit, said, what in (
            (quota.used_bytes, quota.limit_bytes, format_bytes, ""),
            (quota.used_files, quota.limit_files, str, " files"),
        )
        if limit
    ]
    if not shares:
        return None
    share, sentence = max(shares)
    if share < NEARLY_FULL:
        return Check(name="quota", status="ok", sentence=sentence)
    status, rest = ("error", "is used up") if share >= 1 else ("warning", "is nearly used up")
    return Check(name="quota", status=status, sentence=f"your quota {rest}: {sentence}", hint=_HINT)  # type: ignore[arg-type]


def _smaller(soft: int, hard: int) -> int | None:
    """The limit that comes first; 0 is none."""
    return min((limit for limit in (soft, hard) if limit), default=None)
