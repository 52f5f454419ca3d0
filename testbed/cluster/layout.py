"""Where the testbed lives, and the names, addresses and ports it uses."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from pathlib import Path

DEFAULT_FOLDER = "/var/tmp/hpcdist-testbed"
BRIDGE = "hpcdist0"
SUBNET = "10.77.0"
MAX_NODES = 32
# Not a name that anybody on this machine may have already.
STUDENT = "hpcdist-student"
STUDENT_ACCOUNT = "course"


class TestbedError(Exception):
    """What was seen, what to do about it, and the exit status that goes with it."""

    __test__ = False

    def __init__(self, message: str, hint: str, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Testbed:
    """One testbed: its folder and how many nodes it has."""

    __test__ = False

    folder: Path
    node_count: int

    @property
    def nodes(self) -> list[str]:
        """Their host names, which are their names in Slurm too."""
        return [f"n{i}" for i in range(1, self.node_count + 1)]

    @property
    def host_name(self) -> str:
        """The name slurmctld must find itself under: what `hostname -s` prints."""
        return socket.gethostname().split(".")[0]

    @property
    def host_address(self) -> str:
        """The host's end of the bridge, where nodes find slurmctld."""
        return f"{SUBNET}.254"

    @property
    def home(self) -> Path:
        """The home folder of the ordinary user."""
        return self.folder / "home"

    @property
    def mark(self) -> Path:
        """The file that says the folder is ours to delete: written first, removed last."""
        return self.folder / "TESTBED"

    @property
    def slurm_conf(self) -> Path:
        """The configuration every daemon and client reads."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Where munged listens."""
        return self.folder / "munge" / "socket"

    @property
    def database_socket(self) -> Path:
        """Where MariaDB listens."""
        return self.folder / "mariadb" / "socket"

    def address(self, node: str) -> str:
        """The node's address on the bridge."""
        return f"{SUBNET}.{node.removeprefix('n')}"

    def namespace(self, node: str) -> Path:
        """The file that keeps the node's network namespace alive (a bind mount of it)."""
        return self.folder / "netns" / node

    def veth(self, node: str) -> str:
        """The host's end of the node's cable; inside the node it is eth0."""
        return f"hpcdist-{node}"

    def log(self, name: str) -> Path:
        """The log of a daemon."""
        return self.folder / "log" / f"{name}.log"


def testbed_folder() -> Path:
    """The folder of the testbed, from `TESTBED_DIR`.

    Raises:
        TestbedError: slurm.conf could not hold the path, or its Unix sockets would be too long.
    """
    text = os.environ.get("TESTBED_DIR") or DEFAULT_FOLDER
    if not re.fullmatch(r"/[\w.+-][\w./+-]{2,68}", text, re.ASCII) or ".." in text:
        raise TestbedError(
            f"TESTBED_DIR={text!r} cannot be used: it must be an absolute path of at most 70 plain characters",
            f"export TESTBED_DIR={DEFAULT_FOLDER}",
            2,
        )
    return Path(text.rstrip("/"))


def read_testbed(folder: Path) -> Testbed | None:
    """The testbed in `folder`, with as many nodes as its slurm.conf has; None without one."""
    testbed = Testbed(folder=folder, node_count=0)
    if not testbed.mark.exists() or not testbed.slurm_conf.exists():
        return None
    count = len(re.findall(r"^NodeName=", testbed.slurm_conf.read_text(), re.MULTILINE))
    return dataclasses.replace(testbed, node_count=count)
