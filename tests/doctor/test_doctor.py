"""`hpcdist doctor` on real folders, with stand-ins for Slurm's commands; tests/cluster runs it on the real cluster."""

import json
import os
import shutil
import socket
import subprocess
import time

import msgspec
import pytest

from hpcdist import datasets, mnist_wheel
from hpcdist.config.job import build_job
from hpcdist.config.site import Site
from hpcdist.doctor.doctor import Doctor
from hpcdist.doctor.runs import find_problems
from hpcdist.records.network import find_probe, read_probes
from hpcdist.records.ranks import RankUsage
from hpcdist.records.store import LocalState, RunRecord, Store
from hpcdist.slurm import commands
from tests.conftest import run_hpcdist

CONFIG = r"""if [ "$1 $2" = "show config" ]; then
printf 'Configuration data as of %s\nClusterName = c\nSLURM_VERSION = 22.05.8\n' "$(date +%s)"
printf 'AccountingStorageType = accounting_storage/slurmdbd\n'
printf 'JobAcctGatherType = jobacct_gather/linux\nJobAcctGatherFrequency = task=1\n'
else exit 1; fi"""


@pytest.fixture
def cluster(project, stand_in):
    """A healthy cluster without jobs; its commands can be written anew."""
    stand_in("scontrol", CONFIG)
    stand_in("sinfo", r"printf 'main*|infinite|2|4|8000|gpu:2|up|idle\n'")
    stand_in("sacct", "exit 0")
    stand_in("squeue", "exit 0")
    stand_in("sbatch", "echo 'sbatch: Job 7 to start at 2026-11-21T00:00:00 using 2 processors on nodes n1' >&2")
    stand_in("quota", "exit 0")
    return stand_in


@pytest.fixture
def without_slurm(monkeypatch):
    monkeypatch.setattr(commands, "is_available", lambda: False)


def examine(folder, **options):
    return {check.name: check for check in Doctor(folder).examine(**options)}


def make_run(project, name, *, backend="slurm", job_id=None, **other):
    record = RunRecord(
        run=name,
        job=build_job({"nodes": 2}),
        site=Site(),
        backend=backend,
        job_id=job_id,
        workdir=str(project),
        created_at_s=time.time() - 3600,
    )
    return Store(project).create(msgspec.structs.replace(record, **other), "#!/bin/bash\n")


def fix(folder):
    """What was done, and the checks of the runs that are left."""
    doctor = Doctor(folder)
    checks = [check for check in doctor.examine(fix=True) if check.name == "runs"]
    return doctor.repairs, checks


def assert_nothing_left(folder):
    repairs, checks = fix(folder)
    assert repairs == []
    assert [check.status for check in checks] == ["ok"], checks


class TestCluster:
    def test_a_healthy_cluster_is_well(self, project, cluster):
        checks = examine(project)
        assert {name for name, check in checks.items() if check.status not in ("ok", "unknown")} == {"data"}
        assert checks["slurm"].sentence == "cluster c answers"
        assert checks["accounting"].sentence == "sacct answers; memory is sampled every 1 s"
        assert checks["request"].evidence[0].startswith("Job 7 to start at")
        assert checks["shared folder"].hint == "hpcdist doctor --deep asks the nodes"

    def test_a_controller_that_is_away_is_not_ready(self, project, cluster):
        cluster("scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
        done = run_hpcdist("doctor")
        assert done.code == 3
        assert "error    slurm" in done.out
        assert "Unable to contact slurm controller" in done.out

    def test_a_module_that_is_not_loaded_is_named(self, project):
        done = run_hpcdist("doctor", env={"PATH": "/nowhere", "SLURM_CONF": "/etc/slurm.conf"})
        assert done.code == 3
        assert "module load slurm" in done.out

    def test_without_slurm_and_without_need_of_it_all_is_well(self, project, without_slurm):
        checks = examine(project)
        assert checks["slurm"].status == "ok"
        assert not {"partition", "request", "clock", "accounting", "shared folder"} & set(checks)

    def test_a_project_that_names_a_partition_needs_slurm(self, project, without_slurm):
        (project / "hpcdist.toml").write_text('partition = "gpu"\n')
        check = examine(project)["slurm"]
        assert (check.status, "names a partition (gpu)" in check.sentence) == ("error", True)

    def test_a_partition_that_is_not_there_is_found(self, project, cluster):
        (project / "hpcdist.toml").write_text('partition = "mian"\n')
        checks = examine(project)
        assert checks["partition"].status == "error"
        assert "request" not in checks

    def test_an_account_is_judged_by_slurm_s_own_words(self, project, cluster):
        (project / "hpcdist.toml").write_text('account = "ab1"\nqos = "long"\n')
        cluster(
            "sbatch",
            f'cp "${{@: -1}}" {project}/tried\n'
            "echo 'sbatch: error: Invalid account or account/partition combination specified' >&2; exit 1",
        )
        check = examine(project)["request"]
        assert check.status == "error"
        assert "Invalid account" in check.sentence
        assert "sacctmgr" in check.hint
        script = (project / "tried").read_text()
        assert "#SBATCH --account=ab1\n" in script
        assert "#SBATCH --qos=long\n" in script

    def test_accounting_that_is_off_is_a_warning(self, project, cluster):
        cluster("scontrol", CONFIG.replace("accounting_storage/slurmdbd", "accounting_storage/none"))
        cluster("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
        check = examine(project)["accounting"]
        assert (check.status, "it is off" in check.sentence) == ("warning", True)

    def test_a_clock_that_is_off_is_told(self, project, cluster):
        cluster("scontrol", CONFIG.replace('"$(date +%s)"', '"$(( $(date +%s) - 90 ))"'))
        check = examine(project)["clock"]
        assert (check.status, "ahead of the controller" in check.sentence) == ("warning", True)


class TestMachine:
    def test_a_faulty_file_of_settings_is_told_and_the_rest_looked_at(self, project, without_slurm):
        (project / "hpcdist.toml").write_text("partitoin = 'x'\n")
        checks = examine(project)
        assert "unknown key 'partitoin'" in checks["settings"].sentence
        assert checks["runs"].status == "ok"

    def test_a_value_that_no_job_can_have_is_told(self, project, without_slurm):
        (project / "hpcdist.toml").write_text("nodes = 0\n")
        assert "nodes is 0" in examine(project)["settings"].sentence
        (project / "hpcdist.toml").write_text("nodes = 2\n")
        assert examine(project)["settings"].status == "ok"

    def test_an_interpreter_that_is_gone_is_told(self, project, without_slurm):
        (project / "hpcdist.toml").write_text('python = "/nowhere/python"\n')
        assert examine(project)["python"].status == "error"
        (project / "hpcdist.toml").write_text('python = "/bin/sh"\n')
        assert examine(project)["python"].status == "ok"

    def test_data_is_verified(self, project, without_slurm, monkeypatch):
        content = b"image"
        sha256 = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"  # printf image | sha256sum
        monkeypatch.setattr(datasets, "MNIST_FILES", (mnist_wheel.RawFile("file", len(content), sha256),))
        assert examine(project)["data"].status == "warning"
        folder = project / "data" / "MNIST" / "raw"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(content)
        assert examine(project)["data"].status == "ok"
        (folder / "file").write_bytes(b"imago")
        assert examine(project)["data"].status == "error"

    def test_json_has_the_checks_and_nothing_else_is_on_standard_output(self, project, cluster):
        done = run_hpcdist("doctor", "--json", "--fix")
        assert done.code == 0, done.err
        said = json.loads(done.out)
        assert {"settings", "slurm", "partition", "runs"} <= {check["name"] for check in said["checks"]}
        assert (said["repairs"], said["run"]) == ([], None)


class TestRepair:
    def test_a_run_whose_submission_was_cut_off_gets_its_job(self, project, cluster):
        run = make_run(project, "r")
        cluster("squeue", rf"printf '55\x1f{project}\x1fhpcdist:r\n'")
        assert "its job's id was not written down" in examine(project)["runs"].sentence
        (repair,), _ = fix(project)
        assert (repair.done, "is job 55" in repair.sentence) == (True, True)
        assert (run.record().job_id, run.record().cluster) == ("55", "c")
        assert_nothing_left(project)

    def test_one_that_slurm_never_had_is_marked_so(self, project, cluster):
        run = make_run(project, "r")
        (repair,), _ = fix(project)
        assert "never sent" in repair.sentence
        assert run.record().job_id is None
        assert "before Slurm had the job" in run.record().refused
        assert_nothing_left(project)

    def test_what_slurm_can_no_longer_know_is_not_decided(self, project, cluster):
        run = make_run(project, "old", created_at_s=0.0)
        (repair,), (check,) = fix(project)
        assert (repair.done, check.status, run.record().refused) == (False, "warning", None)

    def test_of_an_old_run_its_ranks_tell_the_job(self, project, cluster):
        run = make_run(project, "old", created_at_s=0.0)
        usage = RankUsage(rank=0, local_rank=0, node_rank=0, world_size=1, host="n1", job_id="41", started_at_s=1.0)
        run.write("ranks/0.json", usage)
        (repair,), _ = fix(project)
        assert repair.done
        assert run.record().job_id == "41"

    def test_without_slurm_a_run_that_may_have_a_job_is_left(self, project, without_slurm):
        run = make_run(project, "r")
        (repair,), _ = fix(project)
        assert (repair.done, run.record().refused) == (False, None)

    def test_a_run_that_another_process_holds_is_left_alone(self, project, cluster):
        run = make_run(project, "r")
        (run.path / ".job.json.0123abcd").write_text("half")
        os.utime(run.path / ".job.json.0123abcd", (0, 0))
        cluster("squeue", rf"printf '55\x1f{project}\x1fhpcdist:r\n'")
        with run.locked():
            repairs, _ = fix(project)
        assert [repair.done for repair in repairs] == [False] * len(repairs)
        assert all("held by another process" in repair.sentence for repair in repairs)
        assert run.record().job_id is None

    def test_a_submission_that_goes_on_is_no_problem(self, project, cluster):
        make_run(project, "r", created_at_s=time.time())
        assert examine(project)["runs"].status == "ok"

    def test_a_run_that_is_removed_while_doctor_looks_is_no_problem(self, project, monkeypatch):
        runs = [make_run(project, name, job_id="7") for name in ("stays", "goes")]
        monkeypatch.setattr(Store, "__iter__", lambda store: iter(runs))
        for run in runs:
            run.path.chmod(0o755)
        shutil.rmtree(runs[1].path)
        assert [(problem.kind, problem.run) for problem in find_problems(Store(project), [])] == [("open", "stays")]

    def test_a_local_run_whose_supervisor_is_gone_is_marked_failed(self, project, without_slurm):
        run = make_run(project, "r", backend="local", job_id="local-1")
        Store(project).last_local.raise_to(1)
        gone = subprocess.Popen(["true"])
        gone.wait()
        state = LocalState(
            host=socket.gethostname(), boot_id="earlier", pid=gone.pid, pid_started=1, state="RUNNING", started_at_s=5.0
        )
        run.write("local.json", state)
        (run.logs / "local-1_0_log.out").write_text("working")
        os.utime(run.logs / "local-1_0_log.out", (100, 100))
        (repair,), _ = fix(project)
        assert repair.sentence == "run r (local-1) is marked FAILED"
        now = run.local_state()
        # The last that was heard of it was its log.
        assert (now.state, now.ended_at_s, now.exit_code) == ("FAILED", 100.0, None)
        assert_nothing_left(project)

    def test_a_local_run_of_another_machine_is_not_judged(self, project, without_slurm):
        run = make_run(project, "r", backend="local", job_id="local-1")
        Store(project).last_local.raise_to(1)
        run.write(
            "local.json",
            LocalState(host="elsewhere", boot_id="b", pid=1, pid_started=1, state="RUNNING", started_at_s=5.0),
        )
        assert_nothing_left(project)

    def test_a_local_run_that_never_started_is_marked_failed(self, project, without_slurm):
        run = make_run(project, "r", backend="local", job_id="local-1")
        Store(project).last_local.raise_to(1)
        (repair,), _ = fix(project)
        assert (repair.done, run.local_state().state) == (True, "FAILED")
        assert_nothing_left(project)

    def test_what_killed_writers_left_is_removed_and_nothing_else(self, project, cluster):
        run = make_run(project, "r", job_id="7")
        cluster(
            "sacct", r"""[[ "$*" = *JobName* ]] && printf '7\x1fCOMPLETED\x1f0:0\x1f1\x1fn1\x1fNone\x1fa\n'; exit 0"""
        )
        names = (".job.json.0123abcd", "ranks/.0.json.0123abcd", ".preflight-0123456789abcdef", ".lock", ".mine")
        for name in (*names, ".new.json.0123abcd", ".held.json.0123abcd"):
            (run.path / name).write_text("half")
            os.utime(run.path / name, (0, 0))
        (run.path / ".new.json.0123abcd").touch()
        with (run.path / ".held.json.0123abcd").open():
            repairs, _ = fix(project)
        assert len(repairs) == 3
        left = {path.name for path in run.path.rglob(".*")}
        assert left == {".lock", ".mine", ".new.json.0123abcd", ".held.json.0123abcd"}

    def test_what_a_running_job_may_be_writing_is_left(self, project, cluster):
        run = make_run(project, "r", job_id="7")
        cluster("squeue", r"printf '7\x1fRUNNING\x1fNone\x1f0:01\x1fn1\x1fa\n'")
        path = run.path / ".step-00000010.ckpt.0123abcd"
        path.write_text("half")
        os.utime(path, (0, 0))
        assert_nothing_left(project)
        assert path.exists()

    def test_a_run_that_others_may_enter_is_closed(self, project, cluster):
        run = make_run(project, "r", job_id="7")
        run.path.chmod(0o755)
        (repair,), _ = fix(project)
        assert repair.done
        assert run.path.stat().st_mode & 0o777 == 0o700
        assert_nothing_left(project)

    def test_a_damaged_record_is_moved_aside_with_all_that_it_has(self, project, cluster):
        run = make_run(project, "r", job_id="7")
        (run.path / "job.json").write_text('{"run": "r')
        (run.path / "checkpoints").mkdir()
        (run.path / "checkpoints" / "kept").write_text("work")
        (repair,), _ = fix(project)
        assert repair.done
        (moved,) = (project / "jobs" / "runs" / ".aside").iterdir()
        assert (moved / "checkpoints" / "kept").read_text() == "work"
        assert not run.path.exists()
        assert_nothing_left(project)

    def test_a_damaged_record_of_a_job_that_lives_stays(self, project, cluster):
        run = make_run(project, "r", job_id="7")
        (run.path / "job.json").write_text('{"run": "r')
        cluster("squeue", rf"printf '7\x1f{project}\x1fhpcdist:r\n'")
        repairs, (check,) = fix(project)
        assert (repairs, run.path.is_dir(), "its job 7 waits or runs" in check.sentence) == ([], True, True)

    def test_a_record_of_another_version_s_rules_stays(self, project, cluster):
        run = make_run(project, "r", job_id="7")
        path = run.path / "job.json"
        path.write_text(path.read_text().replace('"nodes": 2', '"nodes": 0'))
        repairs, (check,) = fix(project)
        assert (repairs, run.path.is_dir(), "nodes is 0" in check.sentence) == ([], True, True)

    def test_a_half_made_run_is_moved_aside(self, project, cluster):
        run = make_run(project, "r")
        (run.path / "job.json").unlink()
        os.utime(run.path, (0, 0))
        (repair,), _ = fix(project)
        assert repair.done
        assert not run.path.exists()
        assert_nothing_left(project)

    def test_a_script_submitted_by_hand_is_no_half_made_run(self, project, cluster):
        folder = project / "jobs" / "runs" / "mnist-2x1-7"
        for name in ("logs", "ranks"):
            (folder / name).mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
        assert_nothing_left(project)  # it has only begun
        (folder / "logs" / "7_0_log.out").write_text("")
        os.utime(folder, (0, 0))
        assert_nothing_left(project)

    def test_a_job_whose_folder_was_deleted_is_told_and_not_cancelled(self, project, cluster):
        (project / "jobs" / "runs").mkdir(parents=True)
        cluster("squeue", rf"printf '55\x1f{project}\x1fhpcdist:gone\n56\x1f/elsewhere\x1fhpcdist:theirs\n'")
        cluster("scancel", f"touch {project}/cancelled")
        repairs, (check,) = fix(project)
        assert (repairs, check.hint) == ([], "scancel 55; its logs and checkpoints are lost")
        assert not (project / "cancelled").exists()

    def test_a_job_of_a_project_within_this_one_is_not_missed_here(self, project, cluster):
        (project / "inner").mkdir()
        (project / "inner" / "hpcdist.toml").write_text("")
        (project / "jobs" / "runs").mkdir(parents=True)
        cluster("squeue", rf"printf '55\x1f{project}/inner\x1fhpcdist:theirs\n'")
        assert_nothing_left(project)

    @pytest.mark.parametrize("text", [None, "1", "", "rubbish"])
    def test_a_counter_that_is_behind_is_raised(self, project, without_slurm, text):
        make_run(project, "r", backend="local", job_id="local-3")
        make_run(project, "s", backend="local", job_id="local-2")
        ended = LocalState(
            host="h", boot_id="b", pid=1, pid_started=1, state="COMPLETED", started_at_s=5.0, ended_at_s=6.0
        )
        for name in ("r", "s"):
            Store(project).run(name).write("local.json", ended)
        path = project / "jobs" / "runs" / ".last-local-id"
        if text is not None:
            path.write_text(text)
        (repair,), _ = fix(project)
        assert repair.sentence == "the next local job is local-4"
        assert Store(project).next_local_id() == "local-4"
        assert_nothing_left(project)

    def test_looking_changes_nothing(self, project, cluster):
        run = make_run(project, "r")
        run.path.chmod(0o755)
        before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if "bin" not in path.parts}
        assert {problem.kind for problem in find_problems(Store(project), [])} == {"open", "unregistered"}
        examine(project)
        assert {path: path.stat().st_mtime_ns for path in project.rglob("*") if "bin" not in path.parts} == before


class TestDeep:
    def test_two_ranks_here_are_asked_and_their_network_is_kept(self, project):
        done = run_hpcdist("doctor", "--deep", "--backend", "local", "--json", timeout=240)
        said = json.loads(done.out)
        checks = {check["name"]: check for check in said["checks"]}
        assert done.code == 0, done.out
        assert checks["job on the nodes"]["status"] == "ok", checks["job on the nodes"]
        assert checks["network"]["sentence"].startswith("all-reduce over ")
        assert checks["nodes' software"]["status"] == "ok"
        (probe,) = read_probes(project)
        assert probe.run == said["run"]
        assert [one.size_bytes for one in probe.all_reduce] == [4, 228_000, 4_000_000]
        assert find_probe([probe], cluster=None, partition=None, device=probe.device) == probe
        run = Store(project).run(said["run"])
        assert {rank.rank: rank.training.finished for rank in run.ranks()} == {0: True, 1: True}
        # Nothing was trained: no checkpoint, no curve.
        assert not (run.path / "checkpoints").exists()
        assert not (project / "tb_logs").exists()

    def test_a_job_that_does_not_start_in_time_is_cancelled(self, project, cluster):
        cluster("sbatch", '[[ "$*" = *test-only* ]] || echo Submitted batch job 77')
        cluster("squeue", r"""[[ "$*" = *-j* ]] && printf '77\x1fPENDING\x1fResources\x1f0:00\x1f\x1fa\n'; exit 0""")
        cluster("scancel", f'echo "$@" > {project}/cancelled')
        doctor = Doctor(project)
        assert not [check for check in doctor.examine() if check.status == "error"]
        (check,) = doctor.examine_nodes(timeout_s=0.0)
        assert (check.status, "(Resources)" in check.sentence) == ("unknown", True)
        assert (project / "cancelled").read_text() == "77\n"
        script = (project / "jobs" / "runs" / doctor.trial.run / "script.sbatch").read_text()
        assert "--preflight-only" in script
        assert "#SBATCH --nodes=2\n" in script
        assert "#SBATCH --time=3\n" in script

    def test_a_refusal_is_told(self, project, cluster):
        cluster("sbatch", "[[ $* = *test-only* ]] || { echo 'sbatch: error: no more' >&2; exit 1; }")
        doctor = Doctor(project)
        list(doctor.examine())
        (check,) = doctor.examine_nodes()
        assert (check.status, check.sentence) == ("error", "sbatch: no more")

    def test_where_slurm_is_needed_and_away_no_job_is_sent(self, project, cluster):
        cluster("scontrol", "exit 1")
        doctor = Doctor(project)
        list(doctor.examine())
        (check,) = doctor.examine_nodes()
        assert check.status == "unknown"
        assert not (project / "jobs").exists()
