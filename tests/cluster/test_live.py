"""Jobs that run or wait: what can be said of them before accounting can."""

import json
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slurm

# Holds 100 MB, gives them back, and goes on.
PEAK = "import time\nheld = bytearray(b'1') * 100_000_000\ntime.sleep(3)\ndel held\ntime.sleep(60)\n"


@pytest.fixture
def submit(testbed, tmp_path):
    """Submits, and cancels at the end."""
    sent = []

    def submit(*options):
        command = ["sbatch", "--parsable", "--output=/dev/null", f"--chdir={tmp_path}", "--exclude=n4", *options]
        sent.append(testbed.run(*command).strip())
        return sent[-1]

    yield submit
    subprocess.run(["scancel", *sent], env=testbed.env, check=False)


def seff(testbed, folder, *arguments):
    for _ in range(20):  # the database learns of a start a moment later
        done = testbed.hpcdist("seff", *arguments, "--source", "sacct", cwd=folder)
        if done.code != 3:
            break
        time.sleep(0.5)
    assert done.code == 0, done.err
    return done.out


def test_a_running_job_has_the_figures_of_now(testbed, submit, tmp_path):
    (tmp_path / "peak.py").write_text(PEAK)
    job_id = submit("--wrap", f"srun {sys.executable} -S -E peak.py")
    deadline = time.monotonic() + 30
    before = None
    while not before and time.monotonic() < deadline:  # until the memory was given back
        time.sleep(1)
        before = usage(testbed, job_id, lambda peak, now: peak > 90e6 and now < 50e6)
    (one,) = json.loads(seff(testbed, tmp_path, job_id, "--json"))
    assert before
    assert (one["state"], one["live"], one["source"]) == ("RUNNING", True, "sstat")
    assert one["memory_used_bytes"] == before
    assert one["memory_efficiency"] == before / (1000 * 1024**2)
    assert one["cpu_time_s"] is not None
    assert one["kinds"]["memory_used_bytes"] == {
        "kind": "peak",
        "gathered": "sampled",
        "every_s": 1,
        "source": "sstat",
    }
    assert one["gathering"]["slurm_version"] == testbed.run("sinfo", "--version").split()[1]


def usage(testbed, job_id, wanted):
    """The step's highest memory as sstat has it, once it and the memory in use are as wanted."""
    fields = "--format=JobID,MaxRSS,TRESUsageInTot"
    said = subprocess.run(
        ["sstat", "-a", "-P", "-n", "--noconvert", fields, "-j", job_id],
        env=testbed.env,
        capture_output=True,
        text=True,
    ).stdout
    for line in said.splitlines():
        step, peak, tres = line.split("|")
        if step == f"{job_id}.0" and peak and "mem=" in tres:
            now = int(tres.split("mem=")[1].split(",")[0])
            return int(peak) if wanted(int(peak), now) else None
    return None


def test_an_array_s_task_that_waits_is_said_to_wait(testbed, submit, tmp_path):
    job_id = submit("--hold", "--array=1-3", "--wrap", "true")
    done = testbed.hpcdist("seff", f"{job_id}_2", "--source", "sacct", cwd=tmp_path)
    assert (done.code, done.out) == (3, "")
    assert "PENDING" in done.err
    assert f"hpcdist wait {job_id}_2" in done.err


def test_a_task_the_array_has_not_got_is_not_found(testbed, submit, tmp_path):
    job_id = submit("--hold", "--array=1-3", "--wrap", "true")
    done = testbed.hpcdist("seff", f"{job_id}_7", "--source", "sacct", cwd=tmp_path)
    assert done.code != 0
    assert f"{job_id}_7" in done.err


def test_brackets_name_an_array_s_tasks_from_python_too(testbed, submit, tmp_path):
    job_id = submit("--array=1-3", "--wait", "--wrap", "true")
    for _ in range(50):  # the database learns of an array's tasks a moment later
        if testbed.run("sacct", "-X", "-n", "-j", job_id, "-o", "State").split() == ["COMPLETED"] * 3:
            break
        time.sleep(0.2)
    program = (
        f"from hpcdist.jobs.job import read_efficiencies as r; print([j.array_job_id for j in r(['{job_id}_[2-3]'])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=testbed.env, capture_output=True, text=True, cwd=tmp_path
    )
    assert sorted(json.loads(done.stdout.replace("'", '"'))) == [f"{job_id}_2", f"{job_id}_3"], done.stderr
