"""What this machine has: the interpreter, packages, data, the project's folder and its disk."""

import importlib.metadata
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from hpcdist import datasets
from hpcdist.check import Check
from hpcdist.config.job import build_job
from hpcdist.config.project import CONFIG_NAME, Project
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError
from hpcdist.files import lock_file
from hpcdist.room_checks import Room, judge_quota, judge_room, parse_quota
from hpcdist.submission.send import read_versions
from hpcdist.version_checks import judge_packages

QUOTA_TIMEOUT_S = 10.0
# File systems of one machine; what is on them no other node sees (man mount, FILESYSTEM SPECIFIC).
LOCAL_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"})


def check_python(project: Project) -> Check:
    """Whether the interpreter that jobs start is there."""
    own = project.site.python
    if own is None:
        return Check(name="python", status="ok", sentence=f"Python {platform.python_version()}")
    if os.access(own, os.X_OK):
        return Check(name="python", status="ok", sentence=f"jobs start {own}")
    hint = f"change python in {project.config}, or leave it out to use the one that runs hpcdist"
    return Check(name="python", status="error", sentence=f"jobs would start {own}, which is no program here", hint=hint)


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
        sentence = f"there is no {CONFIG_NAME}: the options' own defaults hold, and Slurm's"
        return Check(name="settings", status="ok", sentence=sentence)
    try:
        build_job(project.defaults, str(project.config))
    except HpcdistError as error:
        hint = error.hint or f"change {project.config}"
        return Check(name="settings", status="error", sentence=f"{project.config}: {error.message}", hint=hint)
    count = len(project.defaults)
    return Check(name="settings", status="ok", sentence=f"{project.config} is sound, with {count} default(s) for jobs")


def check_data(project: Project) -> Check:
    """Whether the built-in training's data is there, with its checksums."""
    folder = Path(project.defaults.get("data_dir", project.root / "data"))
    name = project.defaults.get("data", "mnist")
    try:
        datasets.verify(name, folder)
    except (NotReadyError, NotFoundError) as error:
        # A program of one's own needs none of it.
        damaged = not isinstance(error, NotFoundError) and datasets.is_present(name, folder)
        return Check(name="data", status="error" if damaged else "warning", sentence=error.message, hint=error.hint)
    except OSError as error:
        sentence = f"can't read {error.filename}: {error.strerror}"
        return Check(name="data", status="error", sentence=sentence, hint=f"ls -l {folder}")
    return Check(name="data", status="ok", sentence=f"{name} is in {folder}, with its checksums")


def check_folder(root: Path) -> Check:
    """Whether the runs can be written where they are to be, and held by one process against another."""
    folder = nearest_folder(root)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"hpcdist doctor")
            is_locked = lock_file(file.fileno())
    except OSError as error:
        sentence = f"can't write to {folder}: {error.strerror}"
        return Check(name="folder", status="error", sentence=sentence, hint="change its permissions, or work elsewhere")
    if not is_locked:
        sentence = f"the disk of {folder} locks no files: one run must not be submitted from two shells at once"
        return Check(name="folder", status="warning", sentence=sentence, hint="mount it with flock, or take another")
    return Check(name="folder", status="ok", sentence=f"{folder} can be written to")


def check_disk(root: Path) -> list[Check]:
    """The room on the disk of the runs, and the user's quotas."""
    folder = nearest_folder(root)
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return [Check(name="disk", status="unknown", sentence=f"{folder}: {error.strerror}")]
    room = Room(free_bytes=stat.f_bavail * stat.f_frsize, free_files=stat.f_favail if stat.f_files else None)
    quota = judge_quota(parse_quota(_read_quota()))
    return [judge_room(str(folder), room), *([quota] if quota else [])]


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
        sentence = f"{folder} is on {kind}, which is seldom shared with the nodes"
        return Check(name="shared folder", status="unknown", sentence=sentence, hint=hint)
    sentence = f"{folder} is on {kind or 'an unknown file system'}; whether the nodes see it was not asked"
    return Check(name="shared folder", status="unknown", sentence=sentence, hint=hint)


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
