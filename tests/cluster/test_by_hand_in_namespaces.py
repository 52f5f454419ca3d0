"""Three machines without a scheduler: the testbed's nodes, entered as a person would log in to them."""

import json
import subprocess

import pytest

from tests.conftest import HPCDIST
from tests.train.conftest import clean_environment

pytestmark = pytest.mark.slurm

NODES = ("n1", "n2", "n3")


def inside(testbed, node, *command):
    """The command on a node: its network, its host name and its /etc/hosts are those of the node's slurmd."""
    pid = testbed.pid_of(f"slurmd.{node}")
    return [
        "nsenter",
        f"--net=/proc/{pid}/ns/net",
        f"--uts=/proc/{pid}/ns/uts",
        f"--mount=/proc/{pid}/ns/mnt",
        *command,
    ]


def test_three_nodes_train_together_without_slurm(testbed, project, mnist_dir):
    nodes = []
    for number, node in enumerate(NODES):
        words = ["train", "--nodes", 3, "--node-rank", number, "--master", "n1:9955", "--run", "by-hand"]
        words += ["--max-steps", 20, "--batch-size", 96, "--accelerator", "cpu", "--data-dir", mnist_dir]
        # nsenter changes the mount namespace, and with it the working folder.
        line = ["sh", "-c", 'cd "$0" && exec "$@"', project, *HPCDIST, *words]
        nodes.append(
            subprocess.Popen(
                inside(testbed, node, *map(str, line)),
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0, 0], outputs
    ranks = [json.loads((project / f"jobs/runs/by-hand/ranks/{rank}.json").read_text()) for rank in range(3)]
    assert [rank["host"] for rank in ranks] == list(NODES)
    assert [rank["training"]["steps"] for rank in ranks] == [20, 20, 20]
    assert len({rank["training"]["accuracy"] for rank in ranks}) == 1
    report = subprocess.run(
        [*HPCDIST, "report", "by-hand"], cwd=project, env=clean_environment(), capture_output=True, text=True
    )
    assert report.returncode == 0, report.stderr
    assert "3x1cpu" in report.stdout
    assert not (project / "jobs/runs/by-hand/script.sbatch").read_text().count("#SBATCH")
