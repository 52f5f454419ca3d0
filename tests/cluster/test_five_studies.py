"""The five write-ups' studies at their small scale: each from one command to an HTML report, in under five minutes.

A minute or two each, so only when asked: `SOAK=1 pytest -s tests/cluster/test_five_studies.py`. `make studies` runs
them too, and the other four; the files themselves are read by tests/studies/test_study_scale.py.
"""

import html
import json
import os
import time

import pytest

from tests.conftest import REPOSITORY

FIVE = ("mnist-layouts", "instance-survey", "svhn-allreduce-vs-ps", "cifar10-five-cnns", "imagenet-resnet18")
# The testbed has no such nodes.
REFUSED = {"instance-survey": {"1x1 type-5", "1x1 type-6"}}
LONGEST_S = 300.0

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(700)]


def run_small(testbed, project, name):
    """Runs a study to its end; returns the seconds it took and the exit status."""
    began = time.monotonic()
    file = REPOSITORY / "jobs" / f"{name}.toml"
    done = testbed.hpcdist("study", "run", file, "--scale", "small", "--wait", cwd=project, timeout=600)
    print(done.out, done.err)
    return time.monotonic() - began, done.code


if "SOAK" in os.environ:

    @pytest.mark.parametrize("name", FIVE)
    def test_a_write_up_s_study_goes_from_one_command_to_a_report(testbed, project, mnist_dir, name):
        (project / "data").symlink_to(mnist_dir)
        took_s, code = run_small(testbed, project, name)
        page = project / "report.html"
        done = testbed.hpcdist("report", f"{name}-small", "--html", page, "--json", cwd=project)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        print(f"{name}: {took_s:.0f} s", *[one["sentence"] for one in found["verdict"]], sep="\n  ", flush=True)
        refused = REFUSED.get(name, set())
        states = {row["label"]: {trial["state"] for trial in row["trials"]} for row in found["rows"]}
        assert states == {label: {"REFUSED" if label in refused else "COMPLETED"} for label in states}
        assert refused <= set(states)
        assert code == (1 if refused else 0)
        text = page.read_text()
        assert [label for label in states if html.escape(label) not in text] == []
        assert found["verdict"]
        assert took_s < LONGEST_S
