"""Ranks of the built-in training, started as a launcher does."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forks

TRAIN = [sys.executable, "-m", "hpcdist.train"]
LIGHTNING = "hpcdist.train.fit:"  # imports all that a rank needs
RANK_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def clean_environment() -> dict[str, str]:
    """This process's environment without what a job would set."""
    ours = ("SLURM_", "HPCDIST_")
    return {
        name: value
        for name, value in forks.own_environment().items()
        if not name.startswith(ours) and name not in RANK_VARIABLES
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """The ranks of one run, on emulated nodes with one rank each.

    `more` is for their environment. A rank's two outputs go to `<rank>.out` and `<rank>.err` in the run's folder.
    Unless `anew` they have torch and Lightning imported from a process that did so once.
    """

    def __init__(
        self, folder: Path, world_size: int, arguments: list[str], program: list[str], *, anew: bool, **more: object
    ):
        self.folder = folder
        self.processes = []
        port = free_port()
        for rank in range(world_size):
            identity = {
                "RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "NODE_RANK": rank,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "HPCDIST_STARTED_AT": time.time(),
                "HPCDIST_RUN_DIR": folder, "HPCDIST_TB_DIR": folder / "events",
                "HPCDIST_CHECKPOINT_DIR": folder / "checkpoints",
                "HPCDIST_METRICS": folder / f"{rank}.json",
            }  # fmt: skip
            environment = clean_environment() | {name: str(value) for name, value in (identity | more).items()}
            command = [*program, "--nodes", str(world_size), "--gpus", "0", *arguments]
            with (folder / f"{rank}.out").open("w") as out, (folder / f"{rank}.err").open("w") as err:
                if anew:
                    self.processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
                else:
                    places = {"cwd": Path.cwd(), "out": out.fileno(), "err": err.fileno()}
                    self.processes.append(forks.start(command, [LIGHTNING], env=environment, **places))

    def wait(self, timeout_s: float = 180) -> list[int]:
        """Exit codes as Popen has them: negative for a signal."""
        deadline = time.monotonic() + timeout_s
        return [process.wait(max(0.0, deadline - time.monotonic())) for process in self.processes]

    def wait_for_progress(self, timeout_s: float = 120) -> None:
        """Until rank 0 has trained about a second."""
        deadline = time.monotonic() + timeout_s
        while not (self.folder / "progress.json").exists():
            assert time.monotonic() < deadline, self.errors(0)
            assert self.processes[0].poll() is None, self.errors(0)
            time.sleep(0.05)

    def errors(self, rank: int) -> str:
        return (self.folder / f"{rank}.err").read_text()

    def output(self, rank: int) -> str:
        return (self.folder / f"{rank}.out").read_text()

    def metrics(self, rank: int) -> dict:
        return json.loads((self.folder / f"{rank}.json").read_text())

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def run_python(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Runs one process without any of a launcher's variables: what follows `python` in its command."""
    words = [sys.executable, *map(str, command)]
    return forks.run(words, [LIGHTNING], env=clean_environment() | (env or {}), cwd=Path.cwd(), timeout=280)


@pytest.fixture
def start_ranks(tmp_path):
    """Starts ranks; what still runs at the end of the test is killed."""
    started = []

    def start(
        world_size: int, *arguments: object, program: list[str] = TRAIN, anew: bool = False, **more: object
    ) -> Ranks:
        started.append(Ranks(tmp_path, world_size, [str(word) for word in arguments], program, anew=anew, **more))
        return started[-1]

    yield start
    for ranks in started:
        ranks.end()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, mnist_dir):
    """Two ranks that trained with the default options to the end, and a checkpoint each second."""
    options = ["--data-dir", str(mnist_dir), "--checkpoint-every", "1s"]
    ranks = Ranks(tmp_path_factory.mktemp("finished"), 2, options, TRAIN, anew=True)
    codes = ranks.wait()
    assert codes == [0, 0], ranks.errors(0) + ranks.errors(1)
    yield ranks
    ranks.end()
