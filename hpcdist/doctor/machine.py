"""Check this machine: the interpreter, packages, data, the project's folder and its disk."""

import importlib.metadata
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from hpcdist import datasets
from hpcdist.config.job import build_job
from hpcdist.config.project import CONFIG_NAME, Project
from hpcdist.doctor.check import Check
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError, ParseError
from hpcdist.files import lock_file
from hpcdist.slurm.releases import NEWEST, OLDEST, parse_release
from hpcdist.submission.send import read_versions
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


def judge_room(folder: str, free_bytes: int, free_files: int | None) -> Check:
    """Say whether a folder's disk has room for runs (statvfs(3)); it need not have a fixed number of files."""
    said = f"{format_bytes(free_bytes)} free at {folder}"
    if free_files is not None:
        said += f", {free_files:,} files"
    if free_bytes < TOO_FEW_BYTES or (free_files is not None and free_files < TOO_FEW_FILES):
        return Check("disk", "error", f"only {said}: runs can't be written", _HINT)
    if free_bytes < FEW_BYTES or (free_files is not None and free_files < FEW_FILES):
        return Check("disk", "warning", f"only {said}: checkpoints may not fit", _HINT)
    return Check("disk", "ok", said)


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
        return Check("quota", "ok", sentence)
    status, rest = ("error", "is used up") if share >= 1 else ("warning", "is nearly used up")
    return Check("quota", status, f"your quota {rest}: {sentence}", _HINT)  # type: ignore[arg-type]


def _smaller(soft: int, hard: int) -> int | None:
    """The limit that comes first; 0 is none."""
    return min((limit for limit in (soft, hard) if limit), default=None)


# torch 2.N goes with torchvision 0.(N + 15): 2.4 with 0.19, 2.9 with 0.24 (the table in torchvision's README).
PAIR_OFFSET = 15
NAMED = {"torch": "torch", "torchvision": "torchvision", "pytorch-lightning": "lightning"}

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*\(?([^;)]*)")
_BOUND = re.compile(r"(>=|<)\s*([0-9.]+)")


def judge_packages(versions: Mapping[str, str], requirements: Iterable[str]) -> list[Check]:
    """Judge torch, torchvision and Lightning by hpcdist's requirements (`torch>=2.4`), and the first two as a pair."""
    bounds = _parse_bounds(requirements)
    checks = [_judge_package(package, versions.get(package), bounds.get(package, [])) for package in NAMED]
    torch, vision = versions.get("torch"), versions.get("torchvision")
    return [*checks, judge_pair(torch, vision)] if torch and vision else checks


def _parse_bounds(requirements: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for text in requirements:
        if match := _REQUIREMENT.match(text):
            found.setdefault(match[1].lower(), []).extend(_BOUND.findall(match[2]))
    return found


def _judge_package(package: str, version: str | None, bounds: list[tuple[str, str]]) -> Check:
    name = NAMED[package]
    expected = ", ".join(f"{sign}{bound}" for sign, bound in bounds)
    hint = f"pip install '{package}{expected.replace(' ', '')}'"
    if version is None:
        return Check(name, "error", f"{package} is not installed beside hpcdist", hint)
    found = parse_version(version)
    if all(found >= parse_version(bound) if sign == ">=" else found < parse_version(bound) for sign, bound in bounds):
        evidence = (f"expected {expected or 'any'}",)
        return Check(name, "ok", f"{package} {version}", evidence=evidence)
    return Check(name, "error", f"{package} is {version}, expected {expected}", hint)


def judge_pair(torch: str, vision: str) -> Check:
    """Whether torchvision was built for this torch: another one fails on import (`torchvision::nms does not exist`)."""
    name = "torchvision for torch"
    ours, theirs = parse_version(torch), parse_version(vision)
    if ours[0] != 2 or theirs[0] != 0 or len(ours) < 2 or len(theirs) < 2:
        return Check(name, "unknown", f"torch {torch} and torchvision {vision}: not known as a pair")
    expected = f"0.{ours[1] + PAIR_OFFSET}"
    hint = f"pip install 'torchvision=={expected}.*' from the same index as torch"
    if theirs[1] != ours[1] + PAIR_OFFSET:
        sentence = f"torchvision is {vision}, expected {expected} for torch {torch}: it may fail on import"
        return Check(name, "error", sentence, hint)
    builds = [version.partition("+")[2] for version in (torch, vision)]
    if builds[0] != builds[1] and "cpu" in builds:
        sentence = f"torch {torch} and torchvision {vision} are of different builds: one is for CPUs only"
        return Check(name, "error", sentence, hint)
    return Check(name, "ok", f"torchvision {vision} goes with torch {torch}")


def judge_slurm_release(text: str | None) -> Check:
    """Slurm's release against those that hpcdist was written for."""
    try:
        release = parse_release(text or "")
    except ParseError:
        return Check("slurm release", "unknown", "Slurm does not say its release")
    known = " to ".join(f"{year}.{month:02}" for year, month in (OLDEST, NEWEST))
    if OLDEST <= release <= NEWEST:
        return Check("slurm release", "ok", f"Slurm {text}", evidence=(f"known: {known}",))
    hint = "read what `hpcdist submit --dry-run` prints before the first job"
    return Check("slurm release", "warning", f"Slurm is {text}; hpcdist is known to work with {known}", hint)


def parse_version(text: str) -> tuple[int, ...]:
    """`2.14.1+cu130` as (2, 14, 1); what is no number ends it."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


QUOTA_TIMEOUT_S = 10.0
# File systems of one machine; what is on them no other node sees (man mount, FILESYSTEM SPECIFIC).
LOCAL_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"})


def check_python(project: Project) -> Check:
    """Whether the interpreter that jobs start is there."""
    own = project.site.python
    if own is None:
        return Check("python", "ok", f"Python {platform.python_version()}")
    if os.access(own, os.X_OK):
        return Check("python", "ok", f"jobs start {own}")
    hint = f"change python in {project.config}, or leave it out to use the one that runs hpcdist"
    return Check("python", "error", f"jobs would start {own}, which is no program here", hint)


def check_packages() -> list[Check]:
    """The versions of what a training needs, by what is installed; nothing is imported."""
    try:
        requirements = importlib.metadata.requires("hpcdist") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    return judge_packages(read_versions(), requirements)


def check_options(project: Project) -> Check:
    """Whether the settings of the project make a job; that its file can be read was found before."""
    if project.config is None:
        return Check("settings", "ok", f"there is no {CONFIG_NAME}: the options' own defaults hold, and Slurm's")
    try:
        build_job(project.defaults, str(project.config))
    except HpcdistError as error:
        hint = error.hint or f"change {project.config}"
        return Check("settings", "error", f"{project.config}: {error.message}", hint)
    count = len(project.defaults)
    return Check("settings", "ok", f"{project.config} is sound, with {count} default(s) for jobs")


def check_data(project: Project) -> Check:
    """Whether the built-in training's data is there, with its checksums."""
    folder = Path(project.defaults.get("data_dir", project.root / "data"))
    name = project.defaults.get("data", "mnist")
    try:
        datasets.verify(name, folder)
    except (NotReadyError, NotFoundError) as error:
        # A program of one's own needs none of it.
        damaged = not isinstance(error, NotFoundError) and datasets.is_present(name, folder)
        return Check("data", "error" if damaged else "warning", error.message, error.hint)
    except OSError as error:
        return Check("data", "error", f"can't read {error.filename}: {error.strerror}", f"ls -l {folder}")
    return Check("data", "ok", f"{name} is in {folder}, with its checksums")


def check_folder(root: Path) -> Check:
    """Whether the runs can be written where they are to be, and held by one process against another."""
    folder = nearest_folder(root)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"hpcdist doctor")
            is_locked = lock_file(file.fileno())
    except OSError as error:
        sentence = f"can't write to {folder}: {error.strerror}"
        return Check("folder", "error", sentence, "change its permissions, or work elsewhere")
    if not is_locked:
        sentence = f"the disk of {folder} locks no files: one run must not be submitted from two shells at once"
        return Check("folder", "warning", sentence, "mount it with flock, or take another")
    return Check("folder", "ok", f"{folder} can be written to")


def check_disk(root: Path) -> list[Check]:
    """The room on the disk of the runs, and the user's quotas."""
    folder = nearest_folder(root)
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return [Check("disk", "unknown", f"{folder}: {error.strerror}")]
    room = judge_room(str(folder), stat.f_bavail * stat.f_frsize, stat.f_favail if stat.f_files else None)
    quota = judge_quota(parse_quota(_read_quota()))
    return [room, *([quota] if quota else [])]


def _read_quota() -> str:
    try:
        # It ends with a status of its own where a limit is passed, and has printed all the same.
        done = subprocess.run(
            ["quota", "-w", "-p"], stdin=subprocess.DEVNULL, capture_output=True, timeout=QUOTA_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def check_shared(root: Path) -> Check:
    """What the disk of the project says about whether nodes see it; only a node can tell for certain."""
    folder = nearest_folder(root)
    kind = find_filesystem(folder, Path("/proc/self/mounts").read_text(errors="replace"))
    hint = "hpcdist doctor --deep asks the nodes"
    if kind in LOCAL_FILESYSTEMS:
        return Check("shared folder", "unknown", f"{folder} is on {kind}, which is seldom shared with the nodes", hint)
    sentence = f"{folder} is on {kind or 'an unknown file system'}; whether the nodes see it was not asked"
    return Check("shared folder", "unknown", sentence, hint)


def find_filesystem(folder: Path, mounts: str) -> str | None:
    """The type of the file system that a folder is on, from /proc/self/mounts (proc(5)); the last mount counts."""
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = Path(words[1].replace("\\040", " "))
        if folder.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = (len(point.parts), words[2])
    return found[1] if found else None


def nearest_folder(root: Path) -> Path:
    """`jobs/runs` of a project, or what there is of the way to it."""
    runs = root / "jobs" / "runs"
    return next(folder for folder in (runs, *runs.parents) if folder.is_dir())
