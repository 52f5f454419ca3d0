"""What a run was made with: versions of the programs, commit of the code."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator

from hpcdist.records.store import RunRecord

PACKAGES = ("hpcdist", "torch", "torchvision", "pytorch-lightning", "submitit", "tensorboard", "numpy")
GIT_TIMEOUT_S = 10.0


def read_versions() -> dict[str, str]:
    """Versions of Python and of the packages a training depends on, as far as they are installed."""
    return {"python": platform.python_version()} | dict(_package_versions())


def _package_versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def read_git_commit(folder: str) -> str | None:
    """The folder's commit, with `+changes` when tracked files differ from it; None outside a checkout."""
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def compare(record: RunRecord) -> dict[str, tuple[str | None, str | None]]:
    """What is not as it was when a run was submitted: then and now, by name."""
    then: dict[str, str | None] = {**record.versions, "git commit": record.git_commit}
    now: dict[str, str | None] = {**read_versions(), "git commit": read_git_commit(record.workdir)}
    return {name: (then.get(name), now.get(name)) for name in then | now if then.get(name) != now.get(name)}
