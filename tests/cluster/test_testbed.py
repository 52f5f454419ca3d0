"""The testbed is a cluster: real nodes, real accounting, real preemption, and real ways to break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

COMMANDS = Path(__file__).resolve().parents[2] / "testbed"

# Task 1 sends 4 MB to task 0, which prints the seconds it took.
TRANSFER = """
import os, socket, sys, time
if os.environ["SLURM_PROCID"] == "0":
    server = socket.create_server(("", 23456))
    peer = server.accept()[0]
    began, left = time.monotonic(), 4_000_000
    while left:
        left -= len(peer.recv(65536))
    print(time.monotonic() - began)
else:
    for attempt in range(100):
        try:
            peer = socket.create_connection((sys.argv[1], 23456))
            break
        except OSError:
            time.sleep(0.1)
    peer.sendall(bytes(4_000_000))
"""


class Cluster(Protocol):
    """What the session's fixture `testbed` gives."""

    env: dict[str, str]


def command(testbed: Cluster, *words: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        env=testbed.env | settings,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def output(testbed: Cluster, *words: str | Path) -> str:
    done = command(testbed, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


@pytest.fixture
def long_job(testbed: Cluster, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submits jobs that would sleep for minutes, and cancels them afterwards.

    No `srun` in them: a step ends at the first signal of a preemption, and its job has then failed, not been requeued.
    """
    jobs = []

    def submit(*options: str) -> str:
        log = f"--output={tmp_path}/log"
        script = "--wrap=sleep 300"
        jobs.append(output(testbed, "sbatch", "--parsable", "--requeue", log, *options, script))
        assert eventually(lambda: state(testbed, jobs[-1]) == "RUNNING", 20)
        return jobs[-1]

    yield submit
    command(testbed, "scancel", *jobs)
    # Let the node settle, or the next test finds it completing.
    assert eventually(lambda: not output(testbed, "squeue", "--noheader", f"--jobs={','.join(jobs)}"), 30)


def state(testbed: Cluster, job: str) -> str:
    return output(testbed, "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


def restarts(testbed: Cluster, job: str) -> int:
    words = output(testbed, "scontrol", "--oneliner", "show", "job", job).split()
    return int(next(word for word in words if word.startswith("Restarts=")).removeprefix("Restarts="))


def transfer_time_s(testbed: Cluster) -> float:
    nodes = ("--nodes=2", "--ntasks=2", "--nodelist=n3,n4")
    return float(output(testbed, "srun", *nodes, sys.executable, "-c", TRANSFER, "n3"))


def test_nodes_have_names_and_addresses_of_their_own(testbed: Cluster) -> None:
    said = output(testbed, "srun", "--nodes=2", "--nodelist=n1,n2", "sh", "-c", "hostname; hostname -I")
    assert sorted(said.split()) == ["10.77.0.1", "10.77.0.2", "n1", "n2"]


def test_nodes_resolve_each_other(testbed: Cluster) -> None:
    assert output(testbed, "srun", "--nodelist=n1", "getent", "hosts", "n2").split() == ["10.77.0.2", "n2"]


def test_gpus_schedule(testbed: Cluster) -> None:
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
    said = output(testbed, "srun", *options, "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES")
    lines = said.splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 2
    assert {line.split()[1] for line in lines} == {"0,1"}


def test_more_gpus_than_a_node_has_are_refused(testbed: Cluster) -> None:
    done = command(testbed, "sbatch", "--test-only", "--gpus-per-node=3", "--wrap=true")
    assert done.returncode == 1
    assert "node configuration is not available" in done.stderr


def test_accounting_sees_a_job_of_two_seconds(testbed: Cluster) -> None:
    program = "import time; held = bytearray(b'1' * 100_000_000); time.sleep(2.5)"
    output(testbed, "srun", "--job-name=measured", sys.executable, "-c", program)
    fields = ("--format=MaxRSS", "--name=measured", "--noheader", "--parsable2", "--units=K")

    def measured() -> bool:
        sizes = output(testbed, "sacct", *fields).split()
        return bool(sizes) and float(sizes[-1].rstrip("K")) > 90_000

    assert eventually(measured, 10)


def test_preempted_job_starts_again_within_seconds(testbed: Cluster, long_job: Callable[..., str]) -> None:
    job = long_job("--nodes=1", "--nodelist=n1", "--exclusive")
    output(testbed, "srun", "--partition=high", "--nodelist=n1", "--exclusive", "true")
    assert eventually(lambda: restarts(testbed, job) == 1 and state(testbed, job) == "RUNNING", 20)


def test_throttle_slows_a_transfer_and_unthrottle_ends_it(testbed: Cluster) -> None:
    assert transfer_time_s(testbed) < 1
    try:
        output(testbed, COMMANDS / "throttle", "n4", "16mbit")
        assert json.loads(output(testbed, COMMANDS / "status", "--json"))["throttles"] == {"n4": 16e6}
        assert 1.5 < transfer_time_s(testbed) < 4
    finally:
        output(testbed, COMMANDS / "unthrottle")
    assert transfer_time_s(testbed) < 1


def test_throttle_refuses_nonsense(testbed: Cluster) -> None:
    for words in (("n1", "fast"), ("n1", "0mbit"), ("n99", "1mbit")):
        done = command(testbed, COMMANDS / "throttle", *words)
        assert done.returncode == 2
        assert [line.split()[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]


def test_env_is_all_a_bare_shell_needs(testbed: Cluster) -> None:
    script = 'set -eu; eval "$(testbed/env)"; test -f "$HPCDIST_CONFIG"; scontrol show config'
    bare = {"PATH": testbed.env["PATH"]} | {k: v for k, v in testbed.env.items() if k == "TESTBED_DIR"}
    shown = subprocess.run(
        ["bash", "-c", script], env=bare, cwd=COMMANDS.parent, capture_output=True, text=True, check=True
    )
    assert "ClusterName             = testbed" in shown.stdout


def test_status_says_all_is_up(testbed: Cluster) -> None:
    status = json.loads(output(testbed, COMMANDS / "status", "--json"))
    assert status["healthy"]
    assert set(status["daemons"].values()) == {True}


def test_up_twice_changes_nothing(testbed: Cluster) -> None:
    before = output(testbed, "scontrol", "show", "config")
    done = command(testbed, COMMANDS / "up")
    assert done.returncode == 0
    assert "already up" in done.stderr
    boot = next(line for line in before.splitlines() if line.startswith("BOOT_TIME"))
    assert boot in output(testbed, "scontrol", "show", "config")


def test_up_refuses_beside_a_foreign_slurm(testbed: Cluster, tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=production\n")
    done = command(testbed, COMMANDS / "up", TESTBED_FOREIGN=str(tmp_path))
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error == f"error: this machine belongs to a Slurm cluster: {tmp_path}/slurm.conf exists"
    assert hint.startswith("hint: ")


def test_folder_of_somebody_else_is_left_alone(testbed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("f")
    (folder / "thesis").touch()
    refused = command(testbed, COMMANDS / "up", TESTBED_DIR=str(folder))
    assert refused.returncode == 2
    assert "is no testbed" in refused.stderr
    command(testbed, COMMANDS / "down", TESTBED_DIR=str(folder))
    assert os.listdir(folder) == ["thesis"]
    assert command(testbed, COMMANDS / "status").returncode == 0


def test_drained_node_is_mended_by_up(testbed: Cluster) -> None:
    output(testbed, "scontrol", "update", "NodeName=n4", "State=DRAIN", "Reason=test")
    assert command(testbed, COMMANDS / "status").returncode == 3
    output(testbed, COMMANDS / "up")
    assert command(testbed, COMMANDS / "status").returncode == 0


def test_dead_node_loses_its_job_and_comes_back(testbed: Cluster, long_job: Callable[..., str]) -> None:
    job = long_job("--nodes=2", "--exclude=n1")
    try:
        output(testbed, COMMANDS / "kill-node", "n2")
        assert command(testbed, COMMANDS / "status").returncode == 3
        # Not asked of sinfo, whose words for the node can be stale when it is asked twice within a second.
        assert eventually(lambda: restarts(testbed, job) == 1, 45)
        # Accounting hears of it a moment later.
        ends = ("sacct", "--duplicates", "-X", "--noheader", f"--jobs={job}", "--format=State")
        assert eventually(lambda: output(testbed, *ends).split()[0] == "NODE_FAIL", 20)
    finally:
        output(testbed, COMMANDS / "heal-node", "n2")
    assert output(testbed, "srun", "--nodelist=n2", "hostname") == "n2"
