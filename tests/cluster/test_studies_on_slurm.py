"""Studies on a real Slurm: interrupted and resumed, and a thousand trials beside a plain array."""

import itertools
import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.cluster.waiting import eventually
from tests.conftest import HPCDIST

pytestmark = pytest.mark.slurm

TWO = """
name = "{name}"
layouts = ["1x1", "2x1"]
repeat = 3
[options]
command = ["sh", "-c", "echo trial $SLURM_ARRAY_TASK_ID; sleep 1"]
time = "5"
[limits]
max-concurrent = 2
"""
MANY = """
name = "many"
layouts = ["1x1"]
repeat = 1000
[options]
command = ["true"]
time = "5"
"""


@pytest.fixture
def cluster(testbed, project):
    """The testbed in a project of its own; all that is left in its queue is cancelled at the end."""
    yield testbed
    for path in (project / "jobs" / "runs").glob("*/job.json"):
        job_id = json.loads(path.read_text())["job_id"]
        if job_id:
            subprocess.run(["scancel", job_id], env=testbed.env, check=False)


def count_jobs(cluster, name):
    """Tasks of jobs of a name that Slurm knows, by accounting."""
    listed = cluster.run("sacct", "-X", "-n", "-P", f"--name={name}", "--format=JobID", "-S", "now-1hour")
    return len(listed.split())


def run_study(cluster, project, *options, timeout=300):
    return cluster.hpcdist("study", "run", "s.toml", *options, cwd=project, timeout=timeout)


def test_a_study_runs_from_one_command_to_its_end(cluster, project):
    name = f"small-{os.getpid()}"
    (project / "s.toml").write_text(TWO.format(name=name))
    done = run_study(cluster, project, "--wait")
    assert done.code == 0, done.err
    assert "6 trials: 6 done" in done.err
    logs = sorted(path.read_text() for path in (project / "jobs/runs").glob("*/[0-9]/logs/*_0_log.out"))
    assert logs == [f"trial {task}\n" for task in (0, 0, 1, 1, 2, 2)]
    table = cluster.hpcdist("seff", "--study", name, "--json", cwd=project)
    assert len(json.loads(table.out)) == 6
    again = run_study(cluster, project)
    assert again.code == 0, again.err
    eventually(lambda: count_jobs(cluster, name) == 6)


@pytest.mark.parametrize("delay_s", [0.6, 1.2])
def test_a_study_killed_while_it_is_sent_has_no_job_twice_and_none_missing(cluster, project, delay_s):
    name = f"killed-{os.getpid()}-{int(delay_s * 10)}"
    (project / "s.toml").write_text(TWO.format(name=name))
    begun = subprocess.Popen(
        [*HPCDIST, "study", "run", "s.toml"], env=cluster.env, cwd=project, stderr=subprocess.DEVNULL
    )
    time.sleep(delay_s)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    done = run_study(cluster, project, "--wait")
    assert done.code == 0, done.err
    assert "6 trials: 6 done" in done.err
    eventually(lambda: count_jobs(cluster, name) >= 6)
    assert count_jobs(cluster, name) == 6


def read_spans(cluster, name):
    """Start and end of each task, seconds since the epoch, as far as accounting knows them."""
    ask = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "-X", "-n", "-P", f"--name={name}", "--format=Start,End")
    rows = [line.split("|") for line in cluster.run(*ask, "-S", "now-1hour").split()]
    return sorted((int(start), int(end)) for start, end in rows if start.isdigit() and end.isdigit())


def test_no_more_trials_run_at_once_than_the_limit(cluster, project):
    name = f"limited-{os.getpid()}"
    text = TWO.format(name=name).replace("max-concurrent = 2", "max-concurrent = 1")
    (project / "s.toml").write_text(text)
    assert run_study(cluster, project, "--wait").code == 0
    eventually(lambda: len(read_spans(cluster, name)) == 6)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(read_spans(cluster, name)))


def test_a_thousand_trials_are_sent_about_as_fast_as_a_plain_array(cluster, project):
    plain = project / "plain.sbatch"
    plain.write_text("#!/bin/bash\n#SBATCH --array=0-999\n#SBATCH --hold\n#SBATCH --gpus-per-node=1\ntrue\n")
    began = time.monotonic()
    sent = cluster.run("sbatch", plain, cwd=project)
    plain_s = time.monotonic() - began
    cluster.run("scancel", re.findall(r"[0-9]+", sent)[-1])
    # Held: what is measured is sending, and the machine is not to run a thousand jobs.
    (project / "s.toml").write_text(MANY + 'sbatch = { hold = "" }\n')
    began = time.monotonic()
    done = run_study(cluster, project)
    ours_s = time.monotonic() - began
    assert done.code == 0, done.err
    assert ours_s <= plain_s + 3, (ours_s, plain_s)
    began = time.monotonic()
    status = cluster.hpcdist("study", "status", "many", "--json", cwd=project)
    read_s = time.monotonic() - began
    assert len(json.loads(status.out)) == 1000
    assert read_s < 5
    assert cluster.hpcdist("study", "cancel", "many", cwd=project).code == 0
