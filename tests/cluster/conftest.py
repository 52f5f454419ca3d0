"""The real cluster that these tests run on: the testbed.

It is used as it is when it is up. Otherwise, as root in a container or with CI or TESTBED_INSTALL set, Slurm's
packages are installed and it is started for these tests. Elsewhere the tests are skipped; with CI set that is a
failure.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY, run_hpcdist

TESTBED = REPOSITORY / "testbed" / "testbed"
HOW = "needs the testbed: run `TESTBED_INSTALL=1 make test` as root on Debian or Ubuntu (installs Slurm's packages)"


class Testbed:
    """The cluster, and what commands need to reach it."""

    def __init__(self):
        self.env = dict(os.environ)
        for name in [name for name in self.env if name.startswith(("SLURM_", "SBATCH_"))]:
            del self.env[name]
        exports = subprocess.run([TESTBED, "env"], capture_output=True, text=True, check=True).stdout
        for line in exports.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.env[name] = shlex.split(value)[0]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(self.env["SLURM_CONF"]).parents[1]

    def pid_of(self, daemon):
        """The process of slurmctld, slurmdbd or a node's slurmd, as in slurmd.n1."""
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def stop_controller(self):
        """As an administrator does: killed outright it forgets the jobs and the ends of jobs of its last seconds."""
        controller = psutil.Process(self.pid_of("slurmctld"))
        controller.terminate()
        controller.wait(30)

    def run(self, *command, **kwargs):
        """Runs one of Slurm's commands and returns what it printed."""
        done = subprocess.run([str(word) for word in command], env=self.env, capture_output=True, text=True, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def hpcdist(self, *arguments, env=None, cwd=None, timeout=120):
        """Runs hpcdist against this cluster."""
        return run_hpcdist(*arguments, env={**self.env, **(env or {})}, cwd=cwd, timeout=timeout)


def is_up() -> bool:
    return subprocess.run([TESTBED, "status"], capture_output=True).returncode == 0


def may_start() -> bool:
    in_container = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    invited = "CI" in os.environ or os.environ.get("TESTBED_INSTALL") == "1" or in_container
    own_slurm = Path("/etc/slurm/slurm.conf").exists()
    return os.geteuid() == 0 and invited and not own_slurm


def refuse(reason: str):
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def testbed():
    """The running cluster; stopped afterwards if these tests started it."""
    if is_up():
        yield Testbed()
        return
    if not may_start():
        refuse(HOW)
    if not (shutil.which("slurmctld") or Path("/usr/sbin/slurmctld").exists()):
        subprocess.run([TESTBED, "install"], check=True)
    # One that is there and not well is mended and left standing: somebody else started it.
    found = Path(os.environ.get("TESTBED_DIR", "/var/tmp/hpcdist-testbed")).exists()
    subprocess.run([TESTBED, "up"], check=True)
    yield Testbed()
    if not found:
        subprocess.run([TESTBED, "down"], check=True)
