"""The code as it was when a job was submitted: a copy of the git tree, uncommitted changes included."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from hpcdist.errors import HpcdistError, UsageError

MOST_BYTES = 200 * 1024**2
GIT_TIMEOUT_S = 60.0
# Never copied, also where somebody has committed them: what opens doors. By a file's or folder's name.
_SECRETS = (
    *(".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.ppk", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".ssh", ".aws", ".kube", ".gnupg"),
    *(".netrc", ".pypirc", ".npmrc", ".git-credentials", "kaggle.json", "credentials", "credentials.json"),
)
# What jobs leave behind, where nobody told git to ignore it.
_OWN = ("jobs/runs", "jobs/snapshots", "tb_logs")


def take_snapshot(workdir: Path, target: Path) -> Path:
    """Copies the git tree around a folder; returns that folder's copy. A snapshot that is there is left as it is.

    Copied is what git tracks, as it is on disk now, and what is new and not ignored.

    Raises:
        UsageError: The folder is in no git tree, or the tree is too large.
        HpcdistError: The copy can't be made.
    """
    root = Path(_git(workdir, "rev-parse", "--show-toplevel").rstrip("\n"))
    inside = target / workdir.resolve().relative_to(root.resolve())
    if target.is_dir():
        return inside
    files = list(_list_files(root))
    sizes = {name: (root / name).lstat().st_size for name in files}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:3])
        most = f"{MOST_BYTES // 1024**2} MiB at most"
        raise UsageError(
            f"the code is {total / 1024**2:.0f} MiB, and a snapshot {most}; largest: {largest}",
            "add data and outputs to .gitignore, or leave out --snapshot",
        )
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        (target.parent / ".gitignore").write_text("*\n")
        for name in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, partial / name, follow_symlinks=False)
        (partial / inside.relative_to(target)).mkdir(parents=True, exist_ok=True)
        partial.rename(target)
    except OSError as error:
        raise HpcdistError(f"can't copy the code to {target}: {error.strerror}", "leave out --snapshot") from None
    return inside


def is_left_out(name: str) -> bool:
    """Whether a file, by its path from the tree's root, is never copied."""
    return any(fnmatch(part, pattern) for part in name.lower().split("/") for pattern in _SECRETS)


def _list_files(root: Path) -> Iterator[str]:
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in dict.fromkeys(listed.split("\0")):
        path = root / name
        # Deleted files are still listed; a submodule is a folder.
        is_ours = any(f"/{own}/" in f"/{name}" for own in _OWN)
        if name and (path.is_file() or path.is_symlink()) and not (is_ours or is_left_out(name)):
            yield name


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=GIT_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise UsageError("--snapshot needs git, which is not on PATH", "leave out --snapshot") from None
    except subprocess.TimeoutExpired:
        raise HpcdistError("git did not answer", "leave out --snapshot") from None
    if done.returncode != 0:
        raise UsageError(f"{folder} is in no git tree", "git init, or leave out --snapshot")
    return os.fsdecode(done.stdout)
