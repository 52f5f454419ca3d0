"""Find, start and end processes of the testbed, and never anybody else's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.layout import Testbed, TestbedError

# Every daemon carries this in its environment, so that it can be told from a foreign one. No job and no shell does.
MARKER = "HPCDIST_TESTBED_OF"
# Not the caller's: `su` without a dash leaves root without the sbin folders.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLIENTS = frozenset({"srun", "salloc", "sbatch", "sattach"})


def daemon_environment(testbed: Testbed) -> dict[str, str]:
    """The whole environment of a daemon: nothing of the caller's shell gets in."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "SLURM_CONF": str(testbed.slurm_conf),
        "MYSQL_UNIX_PORT": str(testbed.database_socket),
        MARKER: str(testbed.folder),
    }


def start(testbed: Testbed, name: str, command: list[str]) -> None:
    """Start a daemon that outlives the shell that called us."""
    with testbed.log(f"{name}.out").open("ab") as output:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=daemon_environment(testbed),
            cwd=testbed.folder,
            start_new_session=True,
        )


def attempt(testbed: Testbed, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a short command that may well fail; one that hangs counts as failed."""
    try:
        return subprocess.run(
            command, env=daemon_environment(testbed), capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "no answer within 60 s")


def run(testbed: Testbed, *command: str) -> str:
    """The output of a short command.

    Raises:
        TestbedError: it failed; the message quotes what it printed.
    """
    done = attempt(testbed, *command)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise TestbedError(
            f"`{' '.join(command)}` failed with status {done.returncode}: {said[-1] if said else 'no output'}",
            f"look into {testbed.folder}/log, then run `testbed/down` and `testbed/up`",
        )
    return done.stdout


def wait_until(ready: Callable[[], bool], what: str, hint: str, seconds: float = 20) -> None:
    """Poll until `ready` says so.

    Raises:
        TestbedError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TestbedError(f"{what} was not ready within {seconds:.0f} s", hint)
        time.sleep(0.05)


def pids() -> Iterator[int]:
    """Every process that lives; the dead ones that a container's lazy init has not reaped are no process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _state(int(entry.name)) not in {"Z", "X", ""}:
            yield int(entry.name)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def command_name(pid: int) -> str:
    """The name of the program, or "" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it is gone or not ours to read."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)


def network_namespace(path: str) -> int | None:
    """The identity of a network namespace, or None when `path` is not one."""
    try:
        return Path(path).stat().st_ino
    except OSError:
        return None


def in_namespaces(namespaces: set[int]) -> list[int]:
    """Every process that runs inside one of these network namespaces."""
    return [pid for pid in pids() if network_namespace(f"/proc/{pid}/ns/net") in namespaces]


def daemons(testbed: Testbed) -> dict[int, str]:
    """The testbed's own processes outside the nodes, by id, with their names."""
    mine = str(testbed.folder)
    return {pid: command_name(pid) for pid in pids() if environment(pid).get(MARKER) == mine}


def clients(testbed: Testbed) -> list[int]:
    """The `srun`s and `salloc`s that wait for this cluster: without it they would wait for ever."""
    mine = str(testbed.slurm_conf)
    return [pid for pid in pids() if command_name(pid) in CLIENTS and environment(pid).get("SLURM_CONF") == mine]


def kill_all(find: Callable[[], list[int]], seconds: float = 10) -> int:
    """Kill what `find` finds until it finds nothing; the number of processes killed.

    A process is pinned by a pidfd and looked for once more before the signal, so a reused id is never hit.
    """
    deadline = time.monotonic() + seconds
    killed: set[int] = set()
    while found := find():
        handles = {}
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        still = set(find())
        for pid, handle in handles.items():
            if pid in still:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                killed.add(pid)
            os.close(handle)
        if time.monotonic() > deadline:
            raise TestbedError(f"processes {sorted(found)} do not die", "look at them with `ps -o pid,stat,args`")
        time.sleep(0.05)
    return len(killed)
