"""Training on the real cluster, and what is accounted for it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.by_hand import memory_bytes, seconds
from tests.cluster.waiting import eventually

pytestmark = pytest.mark.slurm
HERE = Path(__file__).parent
LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2)]


def raw_rows(testbed, job_id):
    """sacct's rows of a job as it prints them, by step, each a dict."""
    fields = "JobID,State,TotalCPU,CPUTimeRAW,ElapsedRaw,AllocCPUS,NNodes,NTasks,ReqMem,AllocTRES,TRESUsageInTot"
    printed = testbed.run("sacct", "-P", "-n", "-j", job_id, f"--format={fields}")
    rows = [dict(zip(fields.split(","), line.split("|"), strict=True)) for line in printed.splitlines()]
    return {row["JobID"]: row for row in rows}


@pytest.mark.parametrize(("nodes", "gpus"), LAYOUTS)
def test_each_layout_trains_the_real_mnist(testbed, project, mnist_dir, nodes, gpus):
    options = ("--nodes", nodes, "--gpus", gpus, "--epochs", 2, "--data-dir", mnist_dir, "--wait")
    done = testbed.hpcdist("submit", *options, cwd=project, timeout=280)
    assert done.code == 0, done.err
    job_id = done.out.strip()
    (run,) = [path for path in (project / "jobs" / "runs").iterdir() if path.is_dir()]
    ranks = [json.loads(path.read_text()) for path in sorted((run / "ranks").glob("*.json"))]
    assert len(ranks) == nodes * gpus
    accuracies = {rank["training"]["accuracy"] for rank in ranks}
    assert len(accuracies) == 1
    assert accuracies.pop() >= 0.98
    assert all(rank["training"]["world_size"] == nodes * gpus for rank in ranks)
    assert len({rank["host"] for rank in ranks}) == nodes
    _check_seff(testbed, project, job_id, nodes, gpus)


def _check_seff(testbed, project, job_id, nodes, gpus):
    """hpcdist's figures against sacct's raw rows, to the second and the kilobyte."""
    (figures,) = json.loads(testbed.hpcdist("seff", job_id, "--json", cwd=project).out)
    rows = raw_rows(testbed, job_id)
    job, step = rows[job_id], rows[f"{job_id}.0"]
    assert figures["wall_time_s"] == int(job["ElapsedRaw"])
    assert figures["core_walltime_s"] == int(job["CPUTimeRAW"])
    assert abs(figures["cpu_time_s"] - seconds(job["TotalCPU"])) < 1
    largest = max(memory_bytes(row["TRESUsageInTot"]) for row in rows.values() if row["TRESUsageInTot"])
    assert abs(figures["memory_used_bytes"] - largest) < 1024
    assert (figures["nodes"], figures["cores"]) == (nodes, int(job["AllocCPUS"]))
    assert figures["gpus"] == nodes * gpus
    assert int(step["NTasks"]) == nodes * gpus
    asked = re.fullmatch(r"(\d+)M", job["ReqMem"])
    assert figures["memory_requested_bytes"] == int(asked[1]) * 1024**2


def submit_ddp_script(testbed, project, *options):
    command = ("submit", "--nodes", 2, "--gpus", 2, *options, "--wait", "--", "python", HERE / "ddp_script.py")
    done = testbed.hpcdist(*command, cwd=project, timeout=180)
    assert done.code == 0, done.err
    return testbed.hpcdist("logs", done.out.strip(), cwd=project).out


def test_a_plain_ddp_script_runs_unchanged(testbed, project):
    text = submit_ddp_script(testbed, project)
    for rank in range(4):
        assert f"rank {rank} of 4 on node {rank // 2}: weights agree: True" in text


def test_a_plain_ddp_script_runs_under_torchrun_too(testbed, project):
    text = submit_ddp_script(testbed, project, "--launcher", "torchrun")
    assert "rank 3 of 4 on node 1: weights agree: True" in text


def test_a_lightning_script_with_other_devices_gets_the_hint(testbed, project):
    command = ("--nodes", 2, "--wait", "--", "python", HERE / "lightning_script.py")
    done = testbed.hpcdist("submit", *command, cwd=project, timeout=180)
    assert done.code == 1
    assert "hint: a Lightning script needs Trainer(devices=1, num_nodes=2)" in done.err


def test_granted_gpus_that_do_not_work_are_an_error(testbed, project, mnist_dir):
    options = ("--accelerator", "gpu", "--data-dir", mnist_dir, "--wait")
    done = testbed.hpcdist("submit", *options, cwd=project, timeout=180)
    assert done.code == 1
    assert "--accelerator cpu" in done.err


def test_a_layout_that_slurm_did_not_give_is_an_error(testbed, project, mnist_dir):
    """As when somebody edits the nodes of a rendered script and not the command."""
    script = testbed.hpcdist("render", "--nodes", 1, "--data-dir", mnist_dir, cwd=project).out
    (project / "job.sbatch").write_text(script.replace("#SBATCH --nodes=1", "#SBATCH --nodes=2"))
    command = ["sbatch", "--wait", "job.sbatch"]
    said = subprocess.run(command, env=testbed.env, cwd=project, capture_output=True, text=True)
    assert said.returncode != 0
    text = testbed.hpcdist("logs", said.stdout.split()[-1], cwd=project).out
    assert "error: " in text
    assert "hint: " in text


def test_several_jobs_are_read_in_one_go(testbed, project):
    ids = [testbed.run("sbatch", "--parsable", "--output=/dev/null", "--wait", "--wrap", "true").strip() for _ in "12"]
    done = testbed.hpcdist("seff", *ids, "--json", cwd=project)
    assert [one["job_id"] for one in json.loads(done.out)] == ids
    assert testbed.hpcdist("seff", ids[0], "999999", cwd=project).code == 1


def test_a_running_job_s_figures_are_labelled_live(testbed, project):
    job_id = testbed.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "srun sleep 30").strip()
    try:
        while testbed.run("squeue", "-h", "-j", job_id, "-o", "%T").strip() == "PENDING":
            time.sleep(0.2)
        done = testbed.hpcdist("seff", job_id, "--json", cwd=project)
        for _ in range(20):  # the database learns of the start a moment later
            if done.code == 0:
                break
            time.sleep(0.5)
            done = testbed.hpcdist("seff", job_id, "--json", cwd=project)
        (figures,) = json.loads(done.out)
        assert (figures["state"], figures["live"]) == ("RUNNING", True)
    finally:
        testbed.run("scancel", job_id)


def test_without_accounting_states_come_from_the_controller(testbed, project, tmp_path):
    """sacct as it answers where accounting is off; squeue and scontrol are the real ones."""
    (tmp_path / "bin").mkdir()
    sacct = tmp_path / "bin" / "sacct"
    sacct.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    sacct.chmod(0o755)
    off = {"PATH": f"{tmp_path / 'bin'}:{testbed.env['PATH']}"}
    done = testbed.hpcdist("submit", "--wait", "--", "sh", "-c", "exit 7", cwd=project, env=off)
    assert done.code == 1
    assert "exit code 7" in done.err
    job_id = done.out.strip()
    assert re.search(r"FAILED.* 7 ", testbed.hpcdist("status", job_id, cwd=project, env=off).out)
    unread = testbed.hpcdist("seff", job_id, cwd=project, env=off)
    assert unread.code == 3
    assert "accounting storage is disabled" in unread.err


def test_a_genuine_looking_seff_on_path_is_used(testbed, project, tmp_path):
    """A stand-in for the site's seff: it prints one of the genuine outputs."""
    (tmp_path / "bin").mkdir()
    seff = tmp_path / "bin" / "seff"
    text = (HERE.parent / "data" / "seff" / "24.11plus__mnist-2n4g.txt").read_text()
    seff.write_text(f"#!/bin/sh\ncat <<EOF\n{text.replace('9003', '$1')}EOF\n")
    seff.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{testbed.env['PATH']}"}
    job_id = testbed.run("sbatch", "--parsable", "--output=/dev/null", "--wait", "--wrap", "true").strip()
    (figures,) = json.loads(testbed.hpcdist("seff", job_id, "--json", cwd=project, env=environment).out)
    assert (figures["source"], figures["cpu_time_s"], figures["wall_time_s"]) == ("seff", 967, 71)


def test_the_wheel_alone_renders_submits_and_trains(testbed, tmp_path, mnist_dir):
    """Built from the checkout and used from an empty folder, the checkout out of sight."""
    wheel_dir, site, project = tmp_path / "wheel", tmp_path / "site", tmp_path / "project"
    project.mkdir()
    repository = HERE.parent.parent
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheel_dir, repository], check=True)
    (wheel,) = wheel_dir.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = testbed.env | {"PYTHONPATH": str(site)}
    program = [sys.executable, "-m", "hpcdist.cli.main"]
    where = subprocess.run(
        [sys.executable, "-c", "import hpcdist; print(hpcdist.__file__)"],
        env=environment,
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    rendered = subprocess.run([*program, "render"], env=environment, cwd=project, capture_output=True, text=True)
    assert rendered.stdout.startswith("#!/bin/bash"), rendered.stderr
    options = ["--nodes", "2", "--max-steps", "40", "--epochs", "1", "--data-dir", str(mnist_dir), "--wait"]
    done = subprocess.run(
        [*program, "submit", *options], env=environment, cwd=project, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Test accuracy" in done.stderr


def test_nothing_is_left_on_the_nodes(testbed):
    """Last in this file: no rank outlived its job."""
    here = os.readlink("/proc/self/ns/net")

    def on_nodes():
        """Ranks in the nodes' network namespaces; others are of tests that run beside these."""
        found = []
        for pid in subprocess.run(["pgrep", "-f", "hpcdist[.]rank"], capture_output=True, text=True).stdout.split():
            try:
                if os.readlink(f"/proc/{pid}/ns/net") != here:
                    found.append(pid)
            except FileNotFoundError:
                continue
        return found

    eventually(lambda: not on_nodes(), 10)
