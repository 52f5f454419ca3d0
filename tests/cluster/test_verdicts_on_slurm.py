"""Why more GPUs did not help, said of real trainings: a slow network, slow data, a slow rank, tiny batches.

The network between the nodes is really slow (`testbed/throttle`); data and rank are slowed by what docs/steps.md has.
"""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

STUDY = """
name = "{name}"
layouts = {layouts}
[options]
time = "5"
max-steps = {steps}
batch-size = {batch}
data-dir = "{data}"
env = {{ {env} }}
[limits]
max-concurrent = 1
"""


@pytest.fixture
def study(testbed, project, mnist_dir):
    """Runs a study to its end and gives what `hpcdist report` says of it, the statements by code and variant."""

    def run(name, layouts, *, steps=60, batch=512, env=""):
        layouts = json.dumps(layouts)
        text = STUDY.format(name=name, layouts=layouts, steps=steps, batch=batch, data=mnist_dir, env=env)
        (project / f"{name}.toml").write_text(text)
        done = testbed.hpcdist("study", "run", f"{name}.toml", "--wait", cwd=project, timeout=270)
        assert done.code == 0, done.err
        return read(name)

    def read(*names):
        done = testbed.hpcdist("report", *names, "--json", cwd=project)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        found["said"] = {(one["code"], one["variant"]): one for one in found["verdict"]}
        print(json.dumps(found["verdict"], indent=1))
        return found

    run.read = read
    return run


@pytest.fixture
def slow_network(testbed):
    nodes = ("n1", "n2", "n3", "n4")
    for node in nodes:
        testbed.run(REPOSITORY / "testbed" / "throttle", node, "20mbit")
    yield
    for node in nodes:
        testbed.run(REPOSITORY / "testbed" / "unthrottle", node)


def assert_predicted(report):
    """2x1 took within a quarter of what 1x1, 1x2 and the probe between its nodes say."""
    (prediction,) = [one for one in report["predictions"] if one["variant"] == "2x1"]
    print(prediction)
    assert abs(prediction["wall_s"] / prediction["measured_s"] - 1) <= 0.25


def was_steady(report):
    """Whether the machine was about as fast for 2x1 as for 1x2, from which its time is predicted."""
    one, two = (next(row for row in report["rows"] if row["label"] == label) for label in ("1x2", "2x1"))
    figures = [(row["split"]["compute_s"], row["starting_s"]["median"]) for row in (one, two)]
    print(figures)
    return all(2 / 3 < before / after < 3 / 2 for before, after in zip(*figures, strict=True))


@pytest.mark.usefixtures("slow_network")
def test_a_slow_network_is_named_and_one_node_recommended(study):
    names = ("throttled", "throttled-again", "throttled-once-more")
    reports = (study(name, ["1x1", "1x2", "2x1"]) for name in names)
    report = next((one for one in reports if was_steady(one)), None)
    assert report, "the machine's speed changed in the middle of each of three studies"
    statement = report["said"]["communication", "2x1"]
    assert "stay on one node" in statement["advice"]
    share = statement["evidence"]["communication_share"]
    assert f"{100 * share:.0f} %" in statement["sentence"]
    (row,) = [row for row in report["rows"] if row["label"] == "2x1"]
    # By hand from the row's own figures: the share of a step, and no waiting for the other rank in it.
    split = row["split"]
    assert share == pytest.approx((split["communication_s"] - row["waiting_s"]) / split["step_s"], rel=1e-6)
    # 2 ranks all-reduce 228 kB at 20 Mbit/s: each sends them once, some 0.1 s.
    assert split["communication_s"] > 0.08
    assert_predicted(report)
    runs = [row["trials"][0]["run"] for row in report["rows"] if row["layout"]["nodes"] == 1]
    assert not [code for code, _ in study.read(*runs)["said"] if code == "communication"]


def test_slow_data_is_named(study):
    report = study("slow-data", ["1x1"], steps=40, env='HPCDIST_DRILL_SLOW_DATA_S = "0.03"')
    statement = report["said"]["data", "1x1"]
    assert statement["evidence"]["data_s"] >= 0.03
    assert "data-loader workers" in statement["advice"]


def test_a_slow_rank_s_host_is_named(study, project):
    report = study("slow-rank", ["2x1"], steps=40, env='HPCDIST_DRILL_SLOW_RANK = "1:0.05"')
    statement = report["said"]["straggler", "2x1"]
    run = report["rows"][0]["trials"][0]["run"]
    host = json.loads(Path(project, "jobs", "runs", run, "ranks", "1.json").read_text())["host"]
    assert (statement["evidence"]["host"], statement["evidence"]["rank"]) == (host, 1)
    assert re.search(rf"rank 1 on {host} holds the others up", statement["sentence"])


def test_tiny_batches_are_named(study):
    report = study("tiny", ["1x1", "2x1"], steps=300, batch=16)
    assert ("small-batch", "2x1") in report["said"]
