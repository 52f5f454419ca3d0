"""`hpcdist drill` on the real cluster: every kind is brought about, and gets the verdict it should."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import REPOSITORY

LONG = "SOAK" in os.environ
SURVIVED = {"preempt": ["PREEMPTED", "COMPLETED"]}
if LONG:
    SURVIVED |= {"time-limit": ["REQUEUED", "COMPLETED"], "corrupt-checkpoint": ["REQUEUED", "COMPLETED"]}
FAILED = ("kill-rank", "hang") if LONG else ("kill-rank",)

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(900 if LONG else 280)]


@pytest.fixture(scope="module")
def drill(testbed, tmp_path_factory, mnist_dir):
    project = tmp_path_factory.mktemp("drill")

    def run(*arguments):
        # Half the default's steps: these ranks share two cores.
        options = ("--nodes", 2, "--batch-size", 64, "--data-dir", mnist_dir, "--json")
        done = testbed.hpcdist("drill", *arguments, *options, cwd=project, timeout=600 if LONG else 270)
        print(done.err)
        return done.code, json.loads(done.out)

    return run


@pytest.fixture(scope="module")
def drills(drill):
    """Both sorts, side by side, each on nodes of its own."""
    with ThreadPoolExecutor(2) as pool:
        survived = pool.submit(drill, *SURVIVED, "--preempt-with", "high", "--nodelist", "n1,n2")
        failed = pool.submit(drill, *FAILED, "--hang-timeout", "3s", "--nodelist", "n3,n4")
        yield {"survived": survived, "failed": failed}


def test_what_is_survived(drills):
    code, results = drills["survived"].result()
    assert [(one["kind"], one["passed"]) for one in results] == [(kind, True) for kind in SURVIVED], results
    assert code == 0
    assert {one["kind"]: one["seen"]["states"] for one in results} == SURVIVED
    # Those that were warned saved what they had; of the other the checkpoint before the damaged one was used.
    assert all(one["seen"]["lost_s"] == 0 for one in results if one["kind"] != "corrupt-checkpoint")
    assert all(one["seen"]["is_damage_noticed"] for one in results if one["kind"] == "corrupt-checkpoint")
    assert all(one["seen"]["back_s"] > 0 for one in results)


def test_what_must_fail_fails_at_once_with_its_cause(drills):
    code, results = drills["failed"].result()
    assert [(one["kind"], one["passed"]) for one in results] == [(kind, True) for kind in FAILED], results
    assert code == 0
    assert [one["seen"]["states"] for one in results] == [["FAILED"]] * len(FAILED)
    assert [one["seen"]["cause"]["rank"] for one in results] == [1] * len(FAILED)
    assert all(one["seen"]["ended_s"] < 30 for one in results)


if LONG:  # a node's death takes a minute, and test_interruptions has one

    def test_a_node_is_killed_by_the_administrators_command_only(drill, testbed):
        command = f"{REPOSITORY / 'testbed' / 'kill-node'} {{node}}"
        try:
            code, (result,) = drill("kill-node", "--allow-kill-node", command)
        finally:
            testbed.run(REPOSITORY / "testbed" / "up")
        assert result["passed"], result
        assert code == 0
