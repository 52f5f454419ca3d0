"""Runs on disks that fail: late, full, read-only, deleted, used by two at once. The disks are real; Slurm stands in."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from hpcdist.config.job import build_job
from hpcdist.config.site import Site
from hpcdist.doctor.machine import check_folder
from hpcdist.errors import HpcdistError, NotFoundError
from hpcdist.jobs import api
from hpcdist.jobs.job import Job
from hpcdist.records import store
from hpcdist.records.ranks import RankUsage
from hpcdist.records.store import LocalState, RunRecord, Store
from tests.conftest import HPCDIST, run_hpcdist

MOUNT = "needs root with the right to mount a tmpfs"


@pytest.fixture
def small_disk(project, monkeypatch):
    """A project on a disk of 1 MB of its own, as the working folder; gives what changes how it is mounted."""
    folder = project / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=1m", "none", folder):
        pytest.skip(MOUNT)
    monkeypatch.chdir(folder)
    yield lambda options: mount("-o", f"remount,{options}", folder)
    monkeypatch.chdir(project)
    subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode


@pytest.fixture
def slurm(project, stand_in):
    """Slurm that takes every job and counts them in `sent`, beside the project's disk."""
    stand_in("scontrol", "echo 'ClusterName = c'")
    stand_in("squeue", "exit 0")
    stand_in("sacct", "exit 0")
    stand_in("sbatch", f"echo x >> {project}/sent; echo Submitted batch job 7")
    return stand_in


def count_sent(project):
    path = project / "sent"
    return len(path.read_text().splitlines()) if path.exists() else 0


def fill(folder):
    """Takes all that is free."""
    with (folder / "filler").open("wb", buffering=0) as file:
        done = subprocess.run(["cat", "/dev/zero"], stdout=file, stderr=subprocess.PIPE, text=True)
    assert "No space left" in done.stderr


def make_run(root, *, nodes=2, backend="local", job_id="local-1"):
    record = RunRecord(
        run="r",
        job=build_job({"nodes": nodes}),
        site=Site(),
        backend=backend,
        job_id=job_id,
        workdir=str(root),
        created_at_s=0.0,
    )
    return Store(root).create(record, "#!/bin/bash\n")


def write_rank(run, number, *, ended_at_s=9.0, exit_code=0):
    usage = RankUsage(
        rank=number, local_rank=0, node_rank=number, world_size=2, host="n", started_at_s=1.0, ended_at_s=ended_at_s,
        exit_code=exit_code,
    )  # fmt: skip
    run.write(f"ranks/{number}.json", usage)


def end(run, state="COMPLETED", code=0):
    ended = LocalState(
        host="h", boot_id="b", pid=1, pid_started=1, state=state, started_at_s=1.0, ended_at_s=9.0, exit_code=code
    )
    run.write("local.json", ended)


class TestLateFiles:
    """A shared disk may show a node's file seconds after the job is over."""

    def test_a_rank_that_appears_late_is_in_the_record(self, project):
        run = make_run(project)
        end(run)
        write_rank(run, 0)
        late = threading.Timer(0.7, write_rank, (run, 1))
        late.start()
        record = Job(run).record()
        late.join()
        assert [rank.rank for rank in record.ranks] == [0, 1]

    def test_a_rank_that_is_still_shown_as_running_is_waited_for(self, project):
        run = make_run(project)
        end(run)
        write_rank(run, 0)
        write_rank(run, 1, ended_at_s=None, exit_code=None)
        late = threading.Timer(0.7, write_rank, (run, 1))
        late.start()
        record = Job(run).record()
        late.join()
        assert record.ranks[1].ended_at_s == 9.0

    def test_a_rank_that_never_appears_is_given_up(self, project, monkeypatch):
        monkeypatch.setattr(store, "RANKS_LAG_S", 0.4)
        run = make_run(project)
        end(run)
        write_rank(run, 0)
        started = time.monotonic()
        assert len(Job(run).record().ranks) == 1
        assert time.monotonic() - started < 5

    def test_a_failure_that_is_told_already_is_not_waited_for(self, project, monkeypatch):
        monkeypatch.setattr(store, "RANKS_LAG_S", 60.0)
        run = make_run(project)
        end(run, "FAILED", 7)
        write_rank(run, 0, exit_code=7)  # its peer was killed, and may never write
        started = time.monotonic()
        Job(run).record()
        assert time.monotonic() - started < 20


class TestDeletedFolder:
    def test_waiting_ends_with_a_clear_error(self, project, slurm):
        run = make_run(project, backend="slurm", job_id="7")
        slurm("squeue", r"printf '7\x1fRUNNING\x1fNone\x1f0:01\x1fn1\x1fa\n'")
        job = Job(run)
        gone = threading.Timer(0.5, shutil.rmtree, (run.path,))
        gone.start()
        with pytest.raises(NotFoundError, match="folder of run r was deleted") as caught:
            job.wait(timeout_s=30)
        gone.join()
        assert "squeue --me" in caught.value.hint

    def test_logs_that_are_followed_end_with_it_too(self, project, slurm):
        run = make_run(project, backend="slurm", job_id="7")
        (run.logs / "7_0_log.out").write_text("first\n")
        slurm("squeue", r"printf '7\x1fRUNNING\x1fNone\x1f0:01\x1fn1\x1fa\n'")
        process = subprocess.Popen(
            [*HPCDIST, "logs", "-f", "r"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline().endswith("first\n")
        shutil.rmtree(run.path)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert err.startswith("error: the folder of run r was deleted")
        assert "Traceback" not in err

    @pytest.mark.parametrize("command", ["status", "logs", "wait"])
    def test_a_run_that_is_gone_is_named(self, project, command):
        done = run_hpcdist(command, "r")
        assert done.code == 1
        assert done.err.startswith("error: no run here is called 'r'")

    def test_a_program_keeps_its_status_when_its_figures_can_t_be_written(self, project):
        run = make_run(project)
        removes = f"until rm -rf {run.path}; do :; done; exit 5"  # more than once where the rank writes meanwhile
        command = [sys.executable, "-m", "hpcdist.rank", "--", "sh", "-c", removes]
        done = subprocess.run(
            command, env={**os.environ, "HPCDIST_RUN_DIR": str(run.path)}, capture_output=True, text=True
        )
        assert done.returncode == 5
        assert "warning: can't write" in done.stderr
        assert "Traceback" not in done.stderr


class TestUnwritableDisk:
    def test_a_read_only_project_is_refused_before_anything_is_sent(self, project, slurm, small_disk):
        assert small_disk("ro") == 0
        done = run_hpcdist("submit", "--", "true")
        assert done.code == 1
        assert "Read-only file system" in done.err
        assert "\nhint: " in done.err
        assert "Traceback" not in done.err
        assert count_sent(project) == 0

    def test_so_is_a_run_that_became_read_only(self, project, slurm, small_disk):
        assert run_hpcdist("submit", "--run", "r", "--", "true").code == 0
        assert small_disk("ro") == 0
        done = run_hpcdist("submit", "--run", "r", "--", "true")
        assert done.code == 1
        assert "Read-only file system" in done.err
        assert "Traceback" not in done.err
        assert count_sent(project) == 1

    def test_doctor_says_so(self, project, slurm, small_disk):
        assert check_folder(project / "disk").status == "ok"
        assert small_disk("ro") == 0
        assert check_folder(project / "disk").status == "error"

    def test_without_the_rights_nothing_is_sent(self, project, slurm):
        # Root may write everywhere, but for this right taken from it.
        less = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
        project.chmod(0o500)
        try:
            done = subprocess.run([*less, *HPCDIST, "submit", "--", "true"], capture_output=True, text=True)
        finally:
            project.chmod(0o700)
        assert (done.returncode, count_sent(project)) == (1, 0)
        assert "Permission denied" in done.stderr

    @pytest.mark.parametrize("backend", ["slurm", "local"])
    def test_a_full_disk_is_told_before_anything_is_sent(self, project, slurm, small_disk, backend):
        fill(Path.cwd())
        done = run_hpcdist("submit", "--backend", backend, "--", "true")
        assert done.code == 1
        assert "No space left on device" in done.err
        assert "Traceback" not in done.err
        assert count_sent(project) == 0

    def test_a_disk_that_fills_while_the_job_is_sent_loses_no_job(self, project, slurm, small_disk):
        here = Path.cwd()
        slurm(
            "sbatch", f"echo x >> {project}/sent; cat /dev/zero > {here}/filler 2>/dev/null; echo Submitted batch job 7"
        )
        done = run_hpcdist("submit", "--run", "r", "--", "true")
        assert done.code == 1
        assert "job 7 was submitted, and its id can't be written" in done.err
        assert "hint: free some space, then: hpcdist doctor --fix" in done.err
        run = Store(here).run("r")
        assert run.record().job_id is None
        # Found again, not sent again: by the run's name, whoever asks.
        (here / "filler").unlink()
        slurm("squeue", rf"printf '7\x1f{here}\x1fhpcdist:r\n'")
        assert run_hpcdist("submit", "--run", "r", "--", "true").out == "7\n"
        assert run.record().job_id == "7"
        assert count_sent(project) == 1
        assert not list(here.rglob(".job.json.*"))

    def test_a_refusal_is_told_also_where_it_can_t_be_noted(self, project, slurm, small_disk):
        here = Path.cwd()
        slurm(
            "sbatch", f"cat /dev/zero > {here}/filler 2>/dev/null; echo 'sbatch: error: no such partition' >&2; exit 1"
        )
        done = run_hpcdist("submit", "--run", "r", "--", "true")
        assert done.code == 1
        assert "no such partition" in done.err
        assert "Traceback" not in done.err


class TestTwoAtOnce:
    def test_one_run_that_several_submit_at_once_is_sent_once(self, project, slurm):
        slurm("sbatch", f"echo x >> {project}/sent; sleep 0.5; echo Submitted batch job 7")
        command = [*HPCDIST, "submit", "--run", "same", "--", "true"]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
        ]
        answers = [process.communicate(timeout=120) for process in processes]
        assert [out for out, _ in answers] == ["7\n"] * 4, answers
        assert count_sent(project) == 1
        assert Store(project).run("same").record().job_id == "7"

    def test_the_later_of_two_does_not_overwrite_the_first_one_s_job(self, project, slurm, monkeypatch):
        """The second looks for a record before the first has written one, and goes on when that was sent."""
        first = threading.Event()
        claim = Store.claim

        def claim_late(store, name):
            # This process has seen that there is no record; the other one sends the run meanwhile.
            if not first.is_set():
                first.set()
                assert run_hpcdist("submit", "--run", "same", "--", "true").out == "7\n"
            return claim(store, name)

        monkeypatch.setattr(Store, "claim", claim_late)
        slurm("sbatch", f"echo x >> {project}/sent; echo Submitted batch job 7")
        assert api.submit(run="same", command=["true"], backend="slurm").id == "7"
        assert count_sent(project) == 1

    def test_of_two_that_differ_the_later_is_refused(self, project, slurm):
        assert run_hpcdist("submit", "--run", "same", "--", "true").code == 0
        done = run_hpcdist("submit", "--run", "same", "--", "false")
        assert (done.code, "exists with another script" in done.err) == (2, True)
        assert count_sent(project) == 1

    def test_a_disk_that_locks_nothing_is_worked_on_all_the_same(self, project, slurm, monkeypatch):
        def refuse(descriptor, operation):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # Lustre mounted without flock

        monkeypatch.setattr(fcntl, "flock", refuse)
        assert api.submit(command=["true"], backend="slurm").id == "7"
        assert Store(project).next_local_id() == "local-1"
        check = check_folder(project)
        assert (check.status, "locks no files" in check.sentence) == ("warning", True)

    def test_a_lock_that_fails_otherwise_is_an_error(self, project, monkeypatch):
        def fail(descriptor, operation):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(fcntl, "flock", fail)
        with pytest.raises(HpcdistError, match="Input/output error"):
            Store(project).next_local_id()
        run = make_run(project)
        with pytest.raises(HpcdistError, match="Input/output error"), run.locked():
            pass


class TestLocalIds:
    @pytest.mark.parametrize("text", ["", "rubbish", None])
    def test_a_lost_or_damaged_counter_gives_no_id_twice(self, project, text):
        run = make_run(project, job_id="local-41")
        path = project / "jobs" / "runs" / ".last-local-id"
        if text is not None:
            path.write_text(text)
        assert Store(project).next_local_id() == "local-42"
        assert Store(project).next_local_id() == "local-43"
        assert msgspec.json.decode((run.path / "job.json").read_bytes())["job_id"] == "local-41"
