"""Advice, reruns and the joined record of real jobs."""

import json
import re
import time

import pytest

from hpcdist.jobs.timeline import PARTS
from tests.cluster.test_submit import submit  # noqa: F401

pytestmark = pytest.mark.slurm


def only_run(project):
    (run,) = [path for path in (project / "jobs" / "runs").iterdir() if path.is_dir()]
    return run


def test_an_over_asked_training_is_advised_and_rerun_smaller(submit, testbed, project, mnist_dir):  # noqa: F811
    options = ("--mem", "3G", "--cpus-per-task", 4, "--time", 30, "--max-steps", 60, "--data-dir", mnist_dir)
    outcome = submit(*options, "--wait", timeout=180)
    assert outcome.code == 0, outcome.err
    job_id = outcome.out.split()[0]
    _check_timeline(testbed, project, job_id, outcome.err)
    advised = testbed.hpcdist("advise", job_id, cwd=project)
    assert advised.code == 0, advised.err
    assert "--time 30 -> 5" in advised.out
    assert "--gpus 1 -> 0" in advised.out  # the testbed's GPUs don't compute, so its site file says accelerator = cpu
    found = re.search(r"--cpus-per-task 4 -> (\d)", advised.out)
    again = testbed.hpcdist("rerun", job_id, "--advised", "--run", "again", "--wait", cwd=project, timeout=180)
    assert again.code == 0, again.err
    assert f"--cpus-per-task 4 -> {found[1]}\n" in again.err
    assert "Finding: 1 GPU(s)" not in again.err
    fields = "State,AllocCPUS,TimelimitRaw,AllocTRES"
    row = testbed.run("sacct", "-X", "-n", "-P", "-j", again.out.split()[0], f"--format={fields}").strip().split("|")
    assert row[0] == "COMPLETED"
    assert int(row[1]) < 4
    assert int(row[2]) == 5
    assert "gres/gpu" not in row[3]


def _check_timeline(testbed, project, job_id, shown):
    """The record's parts against sacct's own times, to 2 %."""
    times = testbed.run("sacct", "-X", "-n", "-P", "-j", job_id, "--format=ElapsedRaw,Submit,Start")
    wall_s = int(times.split("|")[0])
    run = only_run(project)
    record = json.loads((run / "record.json").read_text())
    timeline = record["timeline"]
    parts = {name: timeline[f"{name}_s"] or 0.0 for name in PARTS}
    assert sum(parts.values()) - parts["queued"] == pytest.approx(wall_s, rel=0.02)
    assert parts["imports"] > 0.5
    assert timeline["ettr"] == pytest.approx(parts["steady"] / (wall_s + parts["queued"]))
    # The ends of the ranks lie where the timeline says that the shutdown is.
    (rank,) = record["ranks"]
    ended_s = rank["ended_at_s"] - record["efficiency"]["started_at_s"]
    assert wall_s - parts["shutdown"] - 1 <= ended_s <= wall_s + 1
    assert record["audit"]["world_size"] == 1
    assert re.search(r"Time: .*start-up .*training .*productive \d+ % of", shown)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (project / "tb_logs" / "mnist").iterdir()
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert {"timeline/steady_s", "timeline/imports_s", "efficiency/ettr"} <= set(tags["scalars"])
    assert any(tag.startswith("record") for tag in tags["tensors"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert testbed.hpcdist("wait", job_id, cwd=project).code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_job_of_somebody_else_is_advised_by_its_accounting(testbed, project):
    options = ("--parsable", "--output=/dev/null", "--wait", "--time=60", "--cpus-per-task=4", "--mem=2G")
    job_id = testbed.run("sbatch", *options, "--job-name=a\x1b[31mb", "--wrap", "srun sleep 3").strip()
    done = testbed.hpcdist("advise", job_id, cwd=project)
    assert done.code == 0, done.err
    assert "--cpus-per-task 4 -> 1" in done.out
    assert re.search(r"--mem 2048M -> \d+M", done.out)
    assert "--time 01:00:00 -> 5" in done.out
    assert "next: sbatch --cpus-per-task=1 --mem=" in done.out
    assert "\x1b" not in done.out
    (request,) = json.loads(testbed.hpcdist("advise", job_id, "--json", cwd=project).out)["requests"]
    assert request["run"] is None
    assert request["advice"]["jobs"] == [job_id]


def test_there_is_no_advice_on_a_job_that_waits_and_none_that_lowers_a_running_one(submit, testbed, project):  # noqa: F811
    running = submit("--time", "60", "--mem", "1G", "--", "sleep", "60").out.strip()
    waiting = submit("--dependency", f"afterok:{running}", "--", "true").out.strip()
    assert testbed.hpcdist("advise", waiting, cwd=project).code == 3
    assert testbed.hpcdist("wait", running, "--timeout", 2, cwd=project).code == 3
    for _ in range(20):  # the database learns of a start a moment later
        done = testbed.hpcdist("advise", running, cwd=project)
        if done.code == 0:
            break
        time.sleep(0.5)
    assert done.code == 0, done.err
    assert "--time 60: as it is" in done.out
    assert "note: a job still runs" in done.out


def test_a_rerun_uses_the_template_and_the_site_of_the_run(submit, testbed, project):  # noqa: F811
    template = project / "own.sbatch.j2"
    template.write_text('{% extends "hpcdist/base.sbatch.j2" %}{% block teardown %}# mine\n{% endblock %}')
    outcome = submit("--template", "own.sbatch.j2", "--run", "run-a", "--array", "0-1", "--wait", "--", "true")
    assert outcome.code == 0, outcome.err
    (project / "hpcdist.toml").write_text('network_interface = "ib0"\n')  # a site that changed since
    elsewhere = {"HPCDIST_CONFIG": ""}
    again = testbed.hpcdist("rerun", "run-a", "--run", "run-b", "--dry-run", cwd=project, env=elsewhere)
    assert again.code == 0, again.err
    sent = (project / "jobs" / "runs" / "run-a" / "script.sbatch").read_text()
    assert "# mine\n" in sent
    assert again.out == sent.replace("run-a", "run-b")
    job_id = outcome.out.split()[0]
    deadline = time.monotonic() + 20
    while len(testbed.run("sacct", "-X", "-n", "-s", "CD", "-j", job_id).splitlines()) < 2:
        assert time.monotonic() < deadline  # the database hears of an array's tasks a moment after they ended
        time.sleep(0.5)
    advised = testbed.hpcdist("advise", "run-a", cwd=project)
    assert "2 jobs" in advised.out  # the array's tasks count together
    template.unlink()
    gone = testbed.hpcdist("rerun", "run-a", "--dry-run", cwd=project)
    assert (gone.code, "own.sbatch.j2" in gone.err, "\nhint: " in gone.err) == (2, True, True)
