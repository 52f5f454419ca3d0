"""`hpcdist doctor` on the real cluster: what it says of it, of its nodes, and what it mends."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from hpcdist.records.network import find_probe, read_probes
from hpcdist.records.ranks import RankUsage
from hpcdist.records.store import Store
from tests.cluster.waiting import eventually

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]


@pytest.fixture
def examine(testbed, project):
    def run(*arguments, env=None):
        done = testbed.hpcdist("doctor", "--json", *arguments, cwd=project, timeout=270, env=env)
        said = json.loads(done.out)
        print(json.dumps(said, indent=1))
        checks = {}
        for check in said["checks"]:
            checks.setdefault(check["name"], []).append(check)
        return done.code, {name: found[0] for name, found in checks.items()}, said

    return run


@pytest.fixture
def sleeping(testbed, project):
    """Submits a run that sleeps; cancelled at the end."""
    sent = []

    def submit(name):
        done = testbed.hpcdist("submit", "--run", name, "--gpus", 0, "--", "sleep", "120", cwd=project)
        assert done.code == 0, done.err
        sent.append(done.out.strip())
        return done.out.strip(), Store(project).run(name)

    yield submit
    for job_id in sent:
        subprocess.run(["scancel", job_id], env=testbed.env, check=False)


def test_the_testbed_is_well(examine):
    code, checks, _ = examine()
    assert code == 0
    wrong = {name: check for name, check in checks.items() if check["status"] in ("error", "warning")}
    assert set(wrong) <= {"data", "disk"}, wrong
    assert re.fullmatch(r"cluster \S+ answers", checks["slurm"]["sentence"])
    assert checks["accounting"]["sentence"] == "sacct answers; memory is sampled every 1 s"
    assert re.match(r"partition main: \d of 4 node\(s\) usable, with GPUs", checks["partition"]["sentence"])
    assert checks["request"]["evidence"][0].startswith("Job ")
    # One machine has one clock: the controller's was read, and read right.
    assert (checks["clock"]["status"], "agree" in checks["clock"]["sentence"]) == ("ok", True), checks["clock"]


def test_the_nodes_are_asked_and_their_network_is_kept(examine, project):
    code, checks, said = examine("--deep")
    assert code == 0
    for name in ("job on the nodes", "shared folder", "nodes' software", "gpus", "nodes' clocks"):
        assert checks[name]["status"] == "ok", checks[name]
    assert re.search(r"ran well on n\d, n\d$", checks["job on the nodes"]["sentence"])
    assert checks["network"]["status"] in ("ok", "warning")  # two busy cores
    (probe,) = read_probes(project)
    assert (probe.nodes, probe.device, probe.partition, len(set(probe.hosts))) == (2, "cpu", "main", 2)
    assert find_probe([probe], cluster=probe.cluster, partition="main", device="cpu") == probe
    record = Store(project).run(said["run"]).record()
    assert record.job_id.isdigit()


def test_a_partition_or_a_constraint_that_is_not_there_is_found(examine, testbed, project):
    site = project / "site.toml"
    site.write_text('partition = "mian"\n')
    code, checks, _ = examine(env={"HPCDIST_CONFIG": str(site)})
    assert (code, checks["partition"]["status"], "did you mean 'main'" in checks["partition"]["hint"]) == (
        1,
        "error",
        True,
    )
    site.write_text('partition = "main"\nconstraint = "never-heard-of"\n')
    code, checks, _ = examine(env={"HPCDIST_CONFIG": str(site)})
    assert (code, checks["request"]["status"]) == (1, "error")
    assert "feature" in checks["request"]["sentence"].lower()


def test_a_controller_that_is_away_is_not_ready(examine, testbed, tmp_path):
    conf = tmp_path / "slurm.conf"
    text = Path(testbed.env["SLURM_CONF"]).read_text()
    conf.write_text(re.sub(r"(?m)^SlurmctldPort=.*\n", "", text) + "\nSlurmctldPort=1\n")
    code, checks, _ = examine(env={"SLURM_CONF": str(conf)})
    assert (code, checks["slurm"]["status"]) == (3, "error")


def test_a_job_whose_id_was_never_written_down_is_found_by_its_run(examine, sleeping):
    job_id, run = sleeping("cut-off")
    run.write_record(msgspec.structs.replace(run.record(), job_id=None, cluster=None, created_at_s=0.0))
    _, checks, _ = examine()
    assert "its job's id was not written down" in checks["runs"]["sentence"]
    _, checks, said = examine("--fix")
    assert [repair["done"] for repair in said["repairs"]] == [True]
    assert run.record().job_id == job_id
    _, checks, said = examine("--fix")
    assert (said["repairs"], checks["runs"]["status"]) == ([], "ok")


def test_a_job_that_is_over_is_found_in_accounting(examine, sleeping, testbed):
    job_id, run = sleeping("over")
    testbed.run("scancel", job_id)
    eventually(lambda: "CANCELLED" in testbed.run("sacct", "-X", "-n", "-j", job_id, "-o", "State"))
    run.write_record(msgspec.structs.replace(run.record(), job_id=None, created_at_s=0.0))
    shutil.rmtree(run.path / "ranks")
    (run.path / "ranks").mkdir()
    examine("--fix")
    assert run.record().job_id == job_id


def test_a_folder_deleted_under_its_job_is_told(examine, sleeping, testbed, project):
    job_id, run = sleeping("deleted")
    eventually(lambda: [rank for rank in run.ranks() if isinstance(rank, RankUsage)])
    shutil.rmtree(run.path)
    _, checks, said = examine("--fix")
    assert checks["runs"]["hint"].startswith(f"scancel {job_id}")
    assert said["repairs"] == []
    assert testbed.run("squeue", "-h", "-j", job_id, "-o", "%T").strip() == "RUNNING"
    done = testbed.hpcdist("wait", "deleted", cwd=project)
    assert done.code == 1
    assert "no run here is called 'deleted'" in done.err
