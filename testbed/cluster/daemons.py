"""Start each daemon unless it runs, and wait until it answers."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from pathlib import Path

from cluster import config
from cluster.layout import Testbed, TestbedError
from cluster.network import inside, namespace_id
from cluster.processes import attempt, command_name, daemons, in_namespaces, run, start, wait_until

HOST_DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")
# What `slurmd -N` needs around it: own host name, own /etc/hosts, own shared memory.
NODE_SCRIPT = """\
set -e
mount --bind "$2/etc/hosts" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
hostname "$1"
exec slurmd -D -N "$1"
"""


def write_files(testbed: Testbed) -> None:
    """Write configuration, key and device files, unless they are there already."""
    for name in ("etc", "munge", "mariadb", "netns", "dev", "log", "run", "state", "spool"):
        (testbed.folder / name).mkdir(exist_ok=True)
    for node in testbed.nodes:
        (testbed.folder / "spool" / node).mkdir(exist_ok=True)
    etc = testbed.folder / "etc"
    _write(etc / "slurm.conf", config.render_slurm_conf(testbed))
    _write(etc / "slurmdbd.conf", config.render_slurmdbd_conf(testbed), 0o600)
    _write(etc / "gres.conf", config.render_gres_conf(testbed))
    _write(etc / "hosts", config.render_hosts(testbed))
    if not (testbed.folder / "munge" / "key").exists():
        _write(testbed.folder / "munge" / "key", secrets.token_hex(64), 0o400)
    for device in (testbed.folder / "dev" / "gpu0", testbed.folder / "dev" / "gpu1"):
        if not device.exists():
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
            device.chmod(0o666)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write atomically, and not at all when nothing changed: nodes hold bind mounts of these files."""
    if path.exists() and path.read_text() == text:
        return
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=mode)
    partial.write_text(text)
    partial.replace(path)


def running(testbed: Testbed, name: str) -> bool:
    """Whether this daemon of the testbed lives."""
    return name in daemons(testbed).values()


def node_running(testbed: Testbed, node: str) -> bool:
    """Whether the node's slurmd lives."""
    namespace = namespace_id(testbed, node)
    return namespace is not None and "slurmd" in {command_name(pid) for pid in in_namespaces({namespace})}


def _hint(testbed: Testbed, name: str) -> str:
    return f"read {testbed.log(name)} and {testbed.log(name + '.out')}, then run `testbed/down` and `testbed/up`"


def start_munged(testbed: Testbed) -> None:
    """Start munged; `--force` because the folder may be below one that others can write."""
    munge = testbed.folder / "munge"
    if not running(testbed, "munged"):
        testbed.munge_socket.unlink(missing_ok=True)
        options = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed")]
        options += [f"--log-file={testbed.log('munged')}", f"--socket={testbed.munge_socket}"]
        start(testbed, "munged", ["munged", "--foreground", "--force", *options])
    wait_until(lambda: _accepts(str(testbed.munge_socket)), "munged", _hint(testbed, "munged"))


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def start_mariadbd(testbed: Testbed) -> None:
    """Start MariaDB on its own data and a Unix socket that only root may use; it listens on no port."""
    data = testbed.folder / "mariadb" / "data"
    if not data.exists():
        create_database(testbed, data)
    if not running(testbed, "mariadbd"):
        testbed.database_socket.unlink(missing_ok=True)
        files = [f"--datadir={data}", f"--socket={testbed.database_socket}", f"--pid-file={data}/pid"]
        sizes = ["--innodb-log-file-size=4M", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]
        start(
            testbed,
            "mariadbd",
            ["mariadbd", "--no-defaults", "--user=root", "--skip-networking", *files, *sizes],
        )
    wait_until(lambda: _accepts(str(testbed.database_socket)), "mariadbd", _hint(testbed, "mariadbd"))


def create_database(testbed: Testbed, data: Path) -> None:
    """Create the data folder under another name first: killed half-way, it is simply made again.

    `--force`: also where the machine cannot look up its own name.
    """
    partial = data.with_name("data.partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--no-defaults", "--user=root", "--force", "--skip-test-db", "--innodb-log-file-size=4M"]
    options += ["--auth-root-authentication-method=socket", "--auth-root-socket-user=root"]
    run(testbed, "mariadb-install-db", *options, f"--datadir={partial}")
    partial.rename(data)


def start_slurmdbd(testbed: Testbed) -> None:
    """Start the accounting daemon, and make the cluster known to it."""
    if not running(testbed, "slurmdbd"):
        start(testbed, "slurmdbd", ["slurmdbd", "-D"])
    show = ["sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster"]
    wait_until(lambda: succeeds(testbed, show), "slurmdbd", _hint(testbed, "slurmdbd"), 30)
    if "testbed" not in run(testbed, *show).split():
        run(testbed, "sacctmgr", "--immediate", "add", "cluster", "testbed")


def succeeds(testbed: Testbed, command: list[str]) -> bool:
    """Whether a short command exits 0; what it prints does not matter."""
    return attempt(testbed, *command).returncode == 0


def start_slurmctld(testbed: Testbed) -> None:
    """Start the controller, on the host's side of the bridge."""
    if not running(testbed, "slurmctld"):
        start(testbed, "slurmctld", ["slurmctld", "-D"])
    wait_until(lambda: succeeds(testbed, ["sinfo"]), "slurmctld", _hint(testbed, "slurmctld"))


def start_slurmd(testbed: Testbed, node: str) -> None:
    """Start the node's slurmd inside its namespaces."""
    if not node_running(testbed, node):
        script = ["unshare", "--uts", "--mount", "--", "sh", "-c", NODE_SCRIPT, "sh", node, str(testbed.folder)]
        start(testbed, f"slurmd.{node}", inside(testbed, node, *script))


def node_states(testbed: Testbed) -> dict[str, str]:
    """Each node's state in Slurm's words; empty when the controller does not answer."""
    shown = attempt(testbed, "sinfo", "--noheader", "--Node", "--format=%N %T")
    return dict(line.split() for line in shown.stdout.splitlines())


def usable(state: str) -> bool:
    """Whether a node in this state takes jobs: sinfo(1), NODE STATE CODES."""
    return state.rstrip("-") in {"idle", "planned", "mixed", "allocated", "completing", "reserved"}


def wait_for_nodes(testbed: Testbed, nodes: list[str]) -> None:
    """Wait until Slurm can use the nodes.

    Raises:
        TestbedError: one of them does not come.
    """

    def all_usable() -> bool:
        states = node_states(testbed)
        return all(usable(states.get(node, "absent")) and node_running(testbed, node) for node in nodes)

    try:
        wait_until(all_usable, ", ".join(nodes), _hint(testbed, f"slurmd.{nodes[0]}"), 30)
    except TestbedError as error:
        raise TestbedError(f"{error.message}: {node_states(testbed)}", error.hint) from None
