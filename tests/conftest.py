"""What several test files share."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import forks

REPOSITORY = Path(__file__).parent.parent
HPCDIST = [sys.executable, "-m", "hpcdist.cli.main"]


# What stays together when tests run in two processes, and begins first: the tests that use the cluster, most of whose
# time is waiting, beside those of the training, which share a finished run and the imports of torch.
TOGETHER = ("tests/cluster/", "tests/train/")


class Groups(LoadScopeScheduling):
    """Gives each process a whole group, or else a whole file, at a time."""

    def _split_scope(self, nodeid):
        return next((group for group in TOGETHER if nodeid.startswith(group)), nodeid.partition("::")[0])


def pytest_collection_modifyitems(items):
    groups = [*TOGETHER, ""]
    items.sort(key=lambda item: next(at for at, group in enumerate(groups) if item.nodeid.startswith(group)))


def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A folder with the real MNIST, fetched once."""
    from hpcdist import datasets

    folder = Path(os.environ.get("HPCDIST_DATA_DIR", REPOSITORY / "data"))
    datasets.fetch("mnist", folder, lambda text: None)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project as the working folder, without Slurm and without a configuration from outside."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_", "HPCDIST_")) and name != "HPCDIST_DATA_DIR":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts shell scripts on PATH in place of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name, text):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    for name in ("srun", "squeue", "sacct", "scontrol"):
        write(name, "exit 1")
    return write


class Outcome:
    """What a command did."""

    def __init__(self, done: subprocess.CompletedProcess):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


def run_hpcdist(*arguments, env=None, cwd=None, timeout=120, anew=False) -> Outcome:
    """Runs the program as a user does; unless `anew`, in a process that has its imports from another one."""
    environment = {**forks.own_environment(), **(env or {})}
    # A test runner's own idea of a terminal, where there is none.
    for name in ("COLUMNS", "LINES"):
        if name not in (env or {}):
            environment.pop(name, None)
    command = [*HPCDIST, *map(str, arguments)]
    if anew:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=timeout)
    else:
        places = {"env": environment, "cwd": cwd or Path.cwd()}
        done = forks.run(command, ["hpcdist.cli", "submitit:"], timeout=timeout, is_tidy=False, **places)
    return Outcome(done)
