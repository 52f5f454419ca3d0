"""What the commands do: up, down, status, kill-node, heal-node."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import checks, daemons, network, processes, student
from cluster.layout import BRIDGE, MAX_NODES, STUDENT, Testbed, TestbedError, read_testbed

DEFAULT_NODES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What runs. `throttles` holds bits per second for the slowed nodes only."""

    folder: str
    daemons: dict[str, bool]
    nodes: dict[str, str]
    throttles: dict[str, float]

    @property
    def healthy(self) -> bool:
        """Whether every daemon lives and every node takes jobs."""
        return bool(self.nodes) and all(self.daemons.values()) and all(map(daemons.usable, self.nodes.values()))


@contextlib.contextmanager
def machine_lock(seconds: float = 120) -> Iterator[None]:
    """One command at a time on this machine; the kernel drops the lock with the process and no file stays."""
    with socket.socket(socket.AF_UNIX) as lock:
        deadline = time.monotonic() + seconds
        while True:
            try:
                lock.bind("\0hpcdist-testbed")
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    message = f"another testbed command has been running for {seconds:.0f} s"
                    raise TestbedError(message, "wait for it, or end it, then try again") from error
                time.sleep(0.1)
        yield


def up(folder: Path, node_count: int | None, report: Callable[[str], None]) -> None:
    """Bring up whatever of the testbed is not up yet."""
    if node_count is not None and not 1 <= node_count <= MAX_NODES:
        raise TestbedError(f"{node_count} nodes: expected 1 to {MAX_NODES}", "testbed/up --nodes 4", 2)
    known = read_testbed(folder)
    testbed = known or Testbed(folder=folder, node_count=node_count or DEFAULT_NODES)
    checks.check_all(testbed)
    if node_count not in (None, testbed.node_count):
        raise TestbedError(
            f"the testbed in {folder} has {testbed.node_count} nodes, not {node_count}",
            f"testbed/down, then testbed/up --nodes {node_count}",
            2,
        )
    if known and status(testbed).healthy:
        report("already up")
        return
    folder.mkdir(parents=True, exist_ok=True)
    testbed.mark.write_text("This folder belongs to hpcdist's testbed: `testbed/down` deletes it.\n")
    for step, do in _steps(testbed):
        do(testbed)
        report(step)


def _steps(testbed: Testbed) -> list[tuple[str, Callable[[Testbed], None]]]:
    return [
        ("configuration", daemons.write_files),
        (f"network {BRIDGE}", _build_network),
        ("munged", daemons.start_munged),
        ("mariadbd", daemons.start_mariadbd),
        ("slurmdbd", daemons.start_slurmdbd),
        ("slurmctld", daemons.start_slurmctld),
        (f"user {STUDENT}", _add_student),
        (f"nodes {' '.join(testbed.nodes)}", _start_nodes),
    ]


def _add_student(testbed: Testbed) -> None:
    student.add_login(testbed)
    student.add_account(testbed)


def _build_network(testbed: Testbed) -> None:
    network.build_bridge(testbed)
    for node in testbed.nodes:
        network.build_node_network(testbed, node)


def _start_nodes(testbed: Testbed) -> None:
    for node in testbed.nodes:
        daemons.start_slurmd(testbed, node)
    for node in testbed.nodes:
        _resume(testbed, node)
    daemons.wait_for_nodes(testbed, testbed.nodes)


def _resume(testbed: Testbed, node: str) -> None:
    """Clear what keeps a node from being used: somebody drained it, or it was dead.

    Slurm refuses when the node came back by itself in the meantime; waiting for the nodes tells whether all is well.
    """
    if not daemons.usable(daemons.node_states(testbed).get(node, "")):
        daemons.succeeds(testbed, ["scontrol", "update", f"NodeName={node}", "State=RESUME"])


def down(folder: Path, *, keep_logs: bool, report: Callable[[str], None]) -> None:
    """End every process of the testbed and take away everything it made."""
    checks.check_root()
    testbed = Testbed(folder=folder, node_count=0)
    namespaces = network.namespaces(testbed)

    def ours() -> list[int]:
        on_nodes = processes.in_namespaces(namespaces)
        return [*processes.daemons(testbed), *on_nodes, *processes.clients(testbed), *student.processes_of(testbed)]

    report(f"{processes.kill_all(ours)} processes ended")
    network.remove_network(testbed)
    report("network removed")
    student.remove_login(testbed)
    if testbed.mark.exists():
        _empty_folder(testbed, keep_logs=keep_logs)
        report(f"{folder} {'reduced to its logs' if keep_logs else 'removed'}")


def _empty_folder(testbed: Testbed, *, keep_logs: bool) -> None:
    """Remove the folder, its mark last: a `down` killed half-way can be repeated."""
    for entry in testbed.folder.iterdir():
        if entry == testbed.mark or (keep_logs and entry.name == "log"):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()  # a daemon's core
    if not keep_logs:
        testbed.mark.unlink()
        testbed.folder.rmdir()


def status(testbed: Testbed) -> Status:
    """Look, and change nothing."""
    running = {name: daemons.running(testbed, name) for name in daemons.HOST_DAEMONS}
    states = daemons.node_states(testbed) if running["slurmctld"] else {}
    nodes = {}
    for node in testbed.nodes:
        state = states.get(node, "unknown")
        nodes[node] = state if daemons.node_running(testbed, node) or not daemons.usable(state) else f"{state}, dead"
    limits = {node: limit.rate_bits_per_s for node in nodes if (limit := network.read_throttle(testbed, node))}
    return Status(folder=str(testbed.folder), daemons=running, nodes=nodes, throttles=limits)


def kill_node(testbed: Testbed, node: str) -> int:
    """A power cut: nothing on the node says goodbye. The number of processes that died."""
    namespace = network.namespace_id(testbed, node)
    if namespace is None:
        return 0
    network.unplug(testbed, node)
    return processes.kill_all(lambda: processes.in_namespaces({namespace}))


def heal_node(testbed: Testbed, node: str) -> None:
    """Bring a dead or drained node back."""
    network.build_node_network(testbed, node)
    daemons.start_slurmd(testbed, node)
    _resume(testbed, node)
    daemons.wait_for_nodes(testbed, [node])
