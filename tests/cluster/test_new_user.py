"""The first minutes of an ordinary user, as docs/cluster.md has them: from a login to a trained model, with no edit.

The user is the testbed's (testbed/cluster/student.py): not root, with nothing of root's environment, an account whose
QOS allows an hour and four GPUs, and a partition, `high`, that is closed to them.
"""

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]
USER = "hpcdist-student"
PYTHON = f"bin/python{sys.version_info.major}.{sys.version_info.minor}"
LIBRARIES = Path(sysconfig.get_path("purelib"))


class Person:
    """The user at a shell of the login node."""

    def __init__(self):
        self.home = Path(pwd.getpwnam(USER).pw_dir)
        self.project = self.home / "study"
        self.setup = ""
        self.took_s = {}

    def type(self, line, timeout=120):
        """Runs a line in a fresh login shell, as `ssh HOST LINE` does; what it did."""
        began = time.monotonic()
        done = subprocess.run(
            ["su", "-", USER, "-c", f"{self.setup}{line}"],
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        self.took_s[line] = time.monotonic() - began
        print(f"{self.took_s[line]:5.1f} s  $ {line}  [{done.returncode}]\n{done.stdout}{done.stderr}")
        return done

    def study(self, line, timeout=120):
        """Runs a line in the project's folder, with its environment on PATH."""
        return self.type(f'cd study && export PATH="$PWD/.venv/bin:$PATH" && {line}', timeout)


def link(source, target):
    """One file under a second name; copied where that can't be."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def lend(person, source, target, *left_out):
    """A folder under a name that the user can reach: root's own may lie below /root, which is closed to others."""
    shutil.copytree(source, target, symlinks=True, copy_function=link, ignore=shutil.ignore_patterns(*left_out))


def lend_python(person, software):
    """The interpreter of these tests; what a cluster has as a module."""
    own = Path(sys.base_prefix)
    if person.type(f"{own}/{PYTHON} -V").returncode == 0:
        return own / PYTHON
    lend(person, own, software / "python", "site-packages", "test", "*.a")
    # As such a module does: libpython may have been built for the place where root has it.
    person.setup = f"export LD_LIBRARY_PATH={software}/python/lib; "
    return software / "python" / PYTHON


def lend_libraries(person, software):
    """PyTorch and the rest of these tests' environment, so that 3 GB need not be installed again; but no hpcdist."""
    ours = ("hpcdist*", "_hpcdist*", "__editable__*", "*.pth")
    folder = software / "libraries"
    if person.type(f"test -r {LIBRARIES}/torch/__init__.py").returncode:
        lend(person, LIBRARIES, folder, *ours)
        return folder
    folder.mkdir()
    left_out = shutil.ignore_patterns(*ours)(str(LIBRARIES), os.listdir(LIBRARIES))
    for name in set(os.listdir(LIBRARIES)) - left_out:
        (folder / name).symlink_to(LIBRARIES / name)
    return folder


@pytest.fixture(scope="module")
def person(testbed, mnist_dir):
    """The user on a cluster that has Python, PyTorch and a wheel of hpcdist for everybody to read, and MNIST."""
    person = Person()
    software = person.home.parent / "software"
    for folder in (software, person.project):
        shutil.rmtree(folder, ignore_errors=True)
    software.mkdir(mode=0o755)
    person.python, person.libraries = lend_python(person, software), lend_libraries(person, software)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", software / "wheels"]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    shutil.copytree(mnist_dir / "MNIST", software / "MNIST")
    subprocess.run(["chmod", "-R", "a+rX", software / "wheels", software / "MNIST"], check=True)
    yield person
    print("\n".join(f"{took_s:6.1f} s  {line}" for line, took_s in person.took_s.items()))
    for folder in (software, person.project):
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def installed(person):
    """`pip install hpcdist` in an environment of the user's own."""
    software = person.libraries.parent
    # pip is among the libraries; venv's own would take 8 s, and bring a setuptools that is too old for torch.
    assert person.type(f"mkdir study && cd study && {person.python} -m venv --without-pip .venv").returncode == 0
    (site_packages,) = (person.project / ".venv/lib").glob("python*/site-packages")
    (site_packages / "cluster.pth").write_text(f"{person.libraries}\n")
    # From a folder, since nothing of it is on a package index; whatever it needs has to be there.
    options = f"--quiet --no-index --find-links {software}/wheels"
    assert person.study(f"PIP_CONFIG_FILE=/dev/null python -m pip install {options} hpcdist").returncode == 0
    assert person.study("hpcdist --version").returncode == 0
    return person


@pytest.fixture(scope="module")
def settled(installed):
    """`hpcdist init`."""
    done = installed.study("hpcdist init")
    assert done.returncode == 0, done.stderr
    installed.file = (installed.project / "hpcdist.toml").read_text()
    print(installed.file)
    return installed


@pytest.fixture(scope="module")
def supplied(settled):
    """`hpcdist data fetch mnist`; the files are there, as where somebody copied them: this test needs no internet."""
    settled.type(f"mkdir study/data && cp -r {settled.libraries.parent}/MNIST study/data/")
    done = settled.study("hpcdist data fetch mnist")
    assert "all checksums right" in done.stderr, done.stderr
    return settled


def test_init_finds_what_is_the_user_s(settled):
    settings = tomllib.loads(settled.file)
    # testbed/cluster/student.py and config.py.
    assert (settings["cluster"], settings["account"], settings["partitions"]["gpu"]) == ("testbed", "course", "main")
    assert "qos" not in settings  # course is what the account takes by itself
    assert "# QOS course: time 01:00:00, per job gres/gpu=4 (sacctmgr show qos)\n" in settled.file


def test_doctor_finds_the_nodes_well(settled):
    done = settled.study("hpcdist doctor --deep --json", timeout=200)
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check["status"] for check in said["checks"]}
    assert "error" not in checks.values()
    for name in ("slurm", "accounting", "partition", "request", "job on the nodes", "shared folder"):
        assert checks[name] == "ok", (name, checks)


def test_two_nodes_train_to_the_known_accuracy(supplied):
    done = supplied.study("hpcdist submit --nodes 2 --gpus 1 --wait", timeout=200)
    assert done.returncode == 0, done.stderr
    (accuracy,) = re.findall(r"Test accuracy: ([0-9.]+)%", done.stdout + done.stderr)
    assert float(accuracy) > 98
    assert (supplied.project / "hpcdist.toml").read_text() == supplied.file
    # Logs and checkpoints are nobody else's.
    for run in (supplied.project / "jobs/runs").iterdir():
        if run.is_dir():
            found = run.stat()
            assert (found.st_mode & 0o777, found.st_uid) == (0o700, pwd.getpwnam(USER).pw_uid), run
    total_s = sum(supplied.took_s.values())
    print(f"from login to {accuracy} %: {total_s:.0f} s")
    assert total_s < 300  # five minutes are promised


@pytest.mark.parametrize(
    ("options", "seen", "next_command"),
    [
        # Slurm takes this one and lets it wait for ever: EnforcePartLimits is NO.
        (("--partition", "high"), "account not permitted to use this partition", "hpcdist init"),
        (("--time", "2:00:00"), "QOSMaxWallDurationPerJobLimit", "sacctmgr show qos"),
        (("--nodes", "4", "--gpus", "2"), "QOSMaxGRESPerJob", "sacctmgr show qos"),
    ],
)
def test_what_the_user_may_not_have_is_refused_with_what_to_do(settled, testbed, options, seen, next_command):
    done = settled.study(shlex.join(["hpcdist", "submit", *options, "--wait", "--", "true"]))
    assert done.returncode == 1
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith("error: "), done.stderr
    assert seen in error
    assert hint.startswith("hint: "), done.stderr
    assert next_command in hint
    assert testbed.run("squeue", "--noheader", f"--user={USER}").strip() == ""


@pytest.fixture
def harder(testbed):
    """The default partition is the closed one, and the account has two QOS of which one must be named."""
    testbed.run("scontrol", "update", "PartitionName=high", "Default=YES")
    testbed.run("sacctmgr", "--immediate", "add", "qos", "exam")
    associations = ("user", USER, "set", "qos=course,exam")
    testbed.run("sacctmgr", "--immediate", "modify", *associations, "defaultqos=-1")
    yield
    testbed.run("scontrol", "update", "PartitionName=main", "Default=YES")
    testbed.run("sacctmgr", "--immediate", "modify", "user", USER, "set", "qos=course", "defaultqos=course")
    testbed.run("sacctmgr", "--immediate", "delete", "qos", "exam")


def test_init_passes_over_a_closed_default_and_names_a_qos_that_must_be(settled, harder):
    settings = tomllib.loads(settled.study("mkdir -p harder && cd harder && hpcdist init --dry-run").stdout)
    assert (settings["partitions"], settings["qos"]) == ({"gpu": "main", "cpu": "main"}, "course")
