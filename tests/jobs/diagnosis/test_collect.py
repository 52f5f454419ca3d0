"""The evidence as it is gathered, and `hpcdist why` as a user runs it; the real cluster is in tests/cluster."""

import json
import os
import subprocess
import sys
import time

import pytest

from hpcdist.jobs import status as job_status
from hpcdist.jobs.diagnosis.collect import LOG_TAIL_BYTES, LONGEST_LINE, explain, read_logs
from hpcdist.jobs.job import Job
from hpcdist.records.job import JobStatus
from hpcdist.records.ranks import RankUsage
from hpcdist.records.store import Run
from hpcdist.slurm import queue
from hpcdist.slurm.queue import parse_endings
from tests.conftest import HPCDIST, run_hpcdist
from tests.launcher.test_local import LOCAL
from tests.launcher.test_rank import run_rank


@pytest.fixture
def run(tmp_path):
    """A run without any record, as a script leaves it that was submitted by hand."""
    for folder in ("logs", "ranks"):
        (tmp_path / "r" / folder).mkdir(parents=True)
    return Run(tmp_path / "r")


def write_rank(run, number, *, restart=0, **end):
    usage = RankUsage(
        rank=number,
        local_rank=0,
        node_rank=number,
        world_size=2,
        host=f"n{number + 1}",
        job_id="9",
        restart_count=restart,
        started_at_s=1.0,
        ended_at_s=100.0 if end else None,
        **end,
    )
    run.write(f"ranks/{number}.json", usage)


def rows(*cells):
    return "\n".join("\x1f".join(row) for row in cells)


def test_only_the_end_of_a_log_is_read(run):
    path = run.logs / "9_0_log.out"
    path.write_bytes(b"first\n" + b"x" * LOG_TAIL_BYTES + b"\nlast\n")
    (log,) = read_logs(run, None)
    assert (log.task, log.lines) == (0, ("last",))


def test_no_log_moves_the_cursor_or_floods_the_screen(run):
    hostile = "\x1b]0;title\x07\x1b[2J\x9b31mred\x00 \u202eevil \ud800".encode(errors="surrogatepass")
    (run.logs / "9_0_log.out").write_bytes(
        hostile + b"\n\xff\xfe\n" + b"y" * 5000 + b"\n 10%\r 20%\r 30%\r\n  indented\n"
    )
    (log,) = read_logs(run, None)
    assert all(line.isprintable() for line in log.lines)
    assert log.lines[0].startswith("red evil")
    assert len(log.lines[2]) == LONGEST_LINE
    assert log.lines[3:] == (" 30%", "  indented")


def test_a_log_that_leads_elsewhere_is_not_read(run, tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    (run.logs / "9_0_log.out").symlink_to(tmp_path / "secret")
    os.mkfifo(run.logs / "9_1_log.out")  # would wait for ever
    (run.logs / "9_x_log.out").write_text("no rank\n")
    assert [log.lines for log in read_logs(run, None)] == [(), ()]


def test_an_array_task_reads_its_own_batch_log(run):
    (run.path / "3" / "logs").mkdir(parents=True)
    (run.path / "3" / "logs" / "9_3_0_log.out").write_text("mine\n")
    for task in "13":
        (run.logs / f"9_{task}_batch.out").write_text(f"batch {task}\n")
    assert [(log.task, log.lines) for log in read_logs(run, "3")] == [(None, ("batch 3",)), (0, ("mine",))]


def test_attempts_and_steps_are_told_apart():
    listed = rows(
        ("9", "PREEMPTED", "0:0", "10", "11", "20", "n[1-2]", "None"),
        ("9.batch", "CANCELLED", "0:15", "11", "11", "20", "n1", ""),
        ("9", "OUT_OF_MEMORY", "0:125", "21", "30", "40", "n3", "OutOfMemory"),
        ("9.0", "OUT_OF_MEMORY", "0:125", "30", "30", "40", "n3", ""),
        ("9_4", "CANCELLED by 0", "0:0", "10", "None", "20", "None assigned", "Dependency"),
    )
    first, second = parse_endings(listed)["9"]
    assert (first.state, first.nodes, first.submitted_at_s, first.started_at_s, first.ended_at_s) == (
        "PREEMPTED",
        "n[1-2]",
        10,
        11,
        20,
    )
    assert [(step.name, step.signal) for step in first.steps] == [("batch", 15)]
    assert (second.signal, second.reason, second.steps[0].state) == (125, "OutOfMemory", "OUT_OF_MEMORY")
    (task,) = parse_endings(listed)["9_4"]
    assert (task.state, task.cancelled_by, task.started_at_s, task.nodes) == ("CANCELLED", "0", None, None)


def test_an_unrelated_job_that_had_the_id_before_is_no_attempt():
    listed = rows(
        ("9", "FAILED", "1:0", "10", "11", "20", "n1", "None"),
        ("9", "COMPLETED", "0:0", "90", "91", "99", "n1", "None"),
    )
    assert [one.state for one in parse_endings(listed)["9"]] == ["COMPLETED"]


def test_each_attempt_has_its_own_cause_ranks_and_lines(stand_in, run):
    write_rank(run, 0, restart=1, exit_code=1)
    log = "--- restart 1 ---\nModuleNotFoundError: No module named 'apex'\n"
    (run.logs / "9_0_log.out").write_text("RuntimeError: CUDA out of memory\n" + log)
    stand_in(
        "sacct",
        r"case $* in *Reason*) printf '9\x1fPREEMPTED\x1f0:0\x1f10\x1f11\x1f20\x1fn1\x1fNone\n"
        r"9\x1fFAILED\x1f1:0\x1f21\x1f22\x1f30\x1fn1\x1fNone\n';; esac",
    )
    verdict = explain(JobStatus(job_id="9", state="FAILED", exit_code=1), run)
    assert (verdict.cause.kind, verdict.cause.rank) == ("missing-module", 0)
    assert verdict.cause.tail[0] == "--- restart 1 ---"
    (earlier,) = verdict.earlier
    assert (earlier.state, earlier.cause.kind, earlier.cause.rank) == ("PREEMPTED", "preempted", None)
    assert earlier.cause.tail == ("RuntimeError: CUDA out of memory",)


def test_a_rank_of_an_earlier_attempt_is_not_blamed_for_the_last(stand_in, run):
    """It wrote its file, then the job was requeued and ended before the rank started again."""
    write_rank(run, 0, restart=0, exit_code=7)
    write_rank(run, 1, restart=1, exit_code=3)
    verdict = explain(JobStatus(job_id="9", state="FAILED", exit_code=3), run)
    assert (verdict.cause.rank, verdict.cause.exit_code) == (1, 3)


def test_accounting_that_lags_behind_does_not_revive_a_job(stand_in, run):
    stand_in(
        "sacct",
        r"case $* in *Reason*) printf '9\x1fRUNNING\x1f0:0\x1f10\x1f11\x1fUnknown\x1fn1\x1fNone\n';; esac",
    )
    verdict = explain(JobStatus(job_id="9", state="TIMEOUT", reason="TimeLimit"), run)
    assert (verdict.cause.kind, verdict.cause.evidence[0]) == ("time-limit", "TIMEOUT, TimeLimit")


def test_who_cancelled_is_told_by_name(stand_in, run):
    stand_in(
        "sacct",
        r"case $* in *Reason*) printf '9\x1fCANCELLED by 0\x1f0:0\x1f10\x1f11\x1f20\x1fn1\x1fNone\n';; esac",
    )
    assert explain(JobStatus(job_id="9", state="CANCELLED")).cause.sentence == "it was cancelled by root"


def test_without_accounting_the_queue_and_the_ranks_tell(stand_in, run):
    write_rank(run, 0, signal=15)
    write_rank(run, 1, exit_code=7)
    verdict = explain(JobStatus(job_id="9", state="FAILED", exit_code=7), run)
    assert (verdict.cause.rank, verdict.cause.host, verdict.earlier) == (1, "n2", ())


def test_a_requeued_job_prints_a_mark_before_it_starts_again():
    done = run_rank("echo", "again", env={"SLURM_RESTART_COUNT": "2"})
    assert done.stdout == "--- restart 2 ---\nagain\n"


def submit(name, *arguments):
    return run_hpcdist(*LOCAL, "--run", name, "--wait", *arguments)


def why(name):
    (verdict,) = json.loads(run_hpcdist("why", name, "--json").out)
    return verdict


def test_why_and_wait_tell_the_cause_first(project):
    (project / "train.py").write_text("def step():\n    raise ValueError('bad batch')\n\nstep()\n")
    waited = submit("bad", "--nodes", 2, "--", sys.executable, "train.py")
    assert "local-1 FAILED: rank " in waited.err
    verdict = why("bad")
    assert (verdict["job_id"], verdict["run"], verdict["state"]) == ("local-1", "bad", "FAILED")
    assert verdict["cause"]["kind"] == "user-exception"
    assert "raised ValueError: bad batch at " in verdict["cause"]["sentence"]
    assert verdict["cause"]["tail"][-1] == "ValueError: bad batch"
    told = run_hpcdist("why", "bad")
    assert told.code == 0
    assert told.out.startswith(f"local-1 FAILED: {verdict['cause']['sentence']}\n  | Traceback")
    assert "\nhint: mend " in told.out
    for command in ("status", "logs"):
        assert run_hpcdist(command, "bad").err.startswith(f"local-1 FAILED: {verdict['cause']['sentence']}\nhint: ")
    (listed,) = json.loads(run_hpcdist("status", "bad", "--json").out)
    assert listed["cause"]["kind"] == "user-exception"
    (record,) = project.rglob("record.json")
    assert json.loads(record.read_text())["failure"]["kind"] == "user-exception"


TIME_OUT = """
import datetime, time, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=2))
if dist.get_rank() == 1:
    print("reading the data", flush=True)
    time.sleep(30)
dist.all_reduce(torch.ones(1))
"""


def test_a_real_time_out_names_the_silent_rank(project):
    (project / "train.py").write_text(TIME_OUT)
    submit("slow", "--nodes", 2, "--", sys.executable, "train.py")
    cause = why("slow")["cause"]
    assert (cause["kind"], cause["rank"], cause["tail"]) == ("time-out", 1, ["reading the data"])


LOST = """
import os, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if dist.get_rank() == 1:
    os.kill(os.getpid(), 9)
dist.all_reduce(torch.ones(1))
"""


def test_a_killed_rank_is_blamed_and_not_the_one_that_lost_it(project):
    (project / "train.py").write_text(LOST)
    submit("lost", "--nodes", 2, "--", sys.executable, "train.py")
    cause = why("lost")["cause"]
    assert (cause["kind"], cause["rank"], cause["signal"]) == ("killed", 1, 9)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--setup", "modul load cuda", "--", "true"], "bad-script"),
        (["--", "pyhton", "train.py"], "bad-script"),
        (["--resumable", "--", "sh", "-c", "exit 75"], "stopped"),
        (["--", "sh", "-c", "echo hang: no step for 5 s; exit 70"], "hang"),
        (["--time", "0:01", "--", "sleep", "60"], "time-limit"),
        (["--", "true"], "completed"),
        (["--", sys.executable, "-c", "import nothing_of_the_kind"], "missing-module"),
        (["--", sys.executable, "-c", "open('no/such/file')"], "missing-data"),
        (["--", "sh", "-c", "cat /dev/zero > /dev/full"], "full-disk"),
        (["--", "sh", "-c", "exit 7"], "unknown"),
    ],
)
def test_real_ends_of_local_runs(project, arguments, kind):
    submit("r", *arguments)
    assert why("r")["cause"]["kind"] == kind


def test_what_is_said_of_a_program_that_stopped_makes_it_go_on(project):
    goes_on = 'cd "$HPCDIST_CHECKPOINT_DIR" && exec cat step; mkdir -p "$HPCDIST_CHECKPOINT_DIR" && cd "$_" && '
    submit("r", "--resumable", "--", "bash", "-c", goes_on + "echo 41 > step; exit 75")
    again = f'hpcdist() {{ {" ".join(HPCDIST)} "$@"; }}; {why("r")["cause"]["hint"]} --wait'
    done = subprocess.run(["bash", "-c", again], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert run_hpcdist("logs", "r-on", "--rank", "0").out == "41\n"


def test_a_local_run_that_runs_and_is_cancelled(project):
    run_hpcdist(*LOCAL, "--run", "r", "--", "sleep", "60")
    assert why("r")["cause"]["kind"] == "running"
    run_hpcdist("cancel", "r")
    run_hpcdist("wait", "r")
    assert why("r")["cause"]["kind"] == "cancelled"


def test_of_an_array_with_many_failures_status_explains_a_few(project, stand_in):
    tasks = "".join(rf"9_{task}\x1fFAILED\x1fNonZeroExitCode\x1f0:01\x1fn1\x1fa\n" for task in range(40))
    stand_in("squeue", f"printf '{tasks}'")
    done = run_hpcdist("status", "9")
    assert done.err.count("FAILED: NonZeroExitCode") == 5
    assert done.err.endswith("35 more did not end well: hpcdist why JOB\n")
    assert done.out.count("FAILED") == 40


@pytest.mark.parametrize("reason", ["launch failed requeued held", "launch_failed_requeued_held"])
def test_a_job_that_slurm_holds_after_a_failed_start_is_to_be_released(project, stand_in, reason):
    """squeue has either form, by its release; scontrol has underscores."""
    stand_in("squeue", rf"printf '9\x1fPENDING\x1f{reason}\x1f0:00\x1f\x1fa\n'")
    hint = "hint: its start failed on a node, and it is held: scontrol release 9\n"
    for command in ("status", "why"):
        done = run_hpcdist(command, "9")
        assert hint in done.out + done.err
    stand_in("squeue", r"printf '9\x1fPENDING\x1fPriority\x1f0:00\x1f\x1fa\n'")
    assert run_hpcdist("status", "9").err == ""


def put_on_slurm(project):
    """Makes the project's only run one that was submitted to Slurm, as job 9."""
    record = next(project.rglob("job.json"))
    for path in (record, *project.rglob("ranks/*.json")):
        path.write_text(path.read_text().replace('"local"', '"slurm"').replace("local-1", "9"))


@pytest.fixture
def forgetful(stand_in):
    """A Slurm that answers, and knows no job."""
    for command in ("squeue", "scontrol"):
        stand_in(command, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")


@pytest.mark.parametrize("accounting", ["exit 0", "echo 'Slurm accounting storage is disabled' >&2; exit 1"])
def test_what_slurm_does_not_know_any_more_the_ranks_tell(project, stand_in, forgetful, accounting):
    submit("r", "--", "sh", "-c", "exit 3")
    put_on_slurm(project)
    stand_in("sacct", accounting)
    done = run_hpcdist("wait", "9")
    assert done.code == 1
    assert "9 FAILED: rank 0" in done.err
    assert "exit code 3" in done.err
    rank = next(project.rglob("ranks/0.json"))
    rank.write_text(rank.read_text().replace('"exit_code": 3', '"exit_code": 0'))
    assert run_hpcdist("wait", "9").code == 0


def test_of_an_array_that_slurm_does_not_know_any_more_the_ranks_of_each_task_tell(project, stand_in, forgetful):
    submit("r", "--", "true")
    put_on_slurm(project)
    stand_in("sacct", "exit 0")
    rank = next(project.rglob("ranks/0.json"))
    for task, code in (("1", 0), ("2", 4)):
        copy = rank.parents[1] / task / "ranks" / "0.json"
        copy.parent.mkdir(parents=True)
        text = rank.read_text().replace('"job_id": "9"', f'"job_id": "9_{task}"')
        copy.write_text(text.replace('"exit_code": 0', f'"exit_code": {code}'))
    rank.unlink()
    states = [(status.job_id, status.state, status.exit_code) for status in Job.find("9").statuses()]
    assert states == [("9_1", "COMPLETED", 0), ("9_2", "FAILED", 4)]
    assert [(status.job_id, status.state) for status in Job.find("9_2").statuses()] == [("9_2", "FAILED")]


def test_a_run_that_slurm_does_not_know_and_whose_ranks_did_not_end_is_lost(project, stand_in, forgetful):
    submit("r", "--", "true")
    put_on_slurm(project)
    stand_in("sacct", "exit 0")
    next(project.rglob("ranks/0.json")).unlink()
    done = run_hpcdist("wait", "9")
    assert done.code == 1
    assert "9 LOST: Slurm lost the job: Slurm does not know it any more\nhint: hpcdist rerun r\n" in done.err
    (verdict,) = json.loads(run_hpcdist("why", "9", "--json").out)
    assert (verdict["state"], verdict["cause"]["kind"]) == ("LOST", "lost")


def test_a_run_of_another_cluster_is_not_lost(project, stand_in, forgetful):
    submit("r", "--", "true")
    put_on_slurm(project)
    stand_in("sacct", "exit 0")
    stand_in("scontrol", 'case "$2" in config) echo "ClusterName = here";; *) echo "Invalid job id" >&2; exit 1;; esac')
    record = next(project.rglob("job.json"))
    record.write_text(record.read_text().replace('"cluster": null', '"cluster": "there"'))
    (status,) = Job.find("9").statuses()
    assert (status.state, status.reason) == ("UNKNOWN", "it was sent to the cluster there, which is not this one")
    record.write_text(record.read_text().replace('"there"', '"here"'))
    assert Job.find("9").status().state == "COMPLETED"


def test_wait_releases_a_job_that_slurm_holds_after_a_failed_start(project, stand_in):
    submit("r", "--", "true")
    put_on_slurm(project)
    stand_in(
        "squeue",
        r"""[ -e released ] && printf '9\x1fCOMPLETED\x1fNone\x1f0:01\x1fn1\x1fa\n' && exit
        printf '9\x1fPENDING\x1flaunch failed requeued held\x1f0:00\x1f\x1fa\n'""",
    )
    stand_in("scontrol", 'echo "$@" >> asked; [ "$1 $2" != "release 9" ] || touch released')
    done = run_hpcdist("wait", "9")
    assert done.code == 0, done.err
    assert "9 PENDING  (launch failed requeued held: released)" in done.err
    assert (project / "asked").read_text().count("release") == 1


def test_wait_does_not_release_for_ever_nor_what_somebody_holds(project, stand_in):
    submit("r", "--", "true")
    put_on_slurm(project)
    stand_in("squeue", r"printf '9\x1fPENDING\x1flaunch_failed_requeued_held\x1f0:00\x1f\x1fa\n'")
    stand_in("scontrol", 'echo "$@" >> asked')
    assert run_hpcdist("wait", "9", "--timeout", 5).code == 3
    assert (project / "asked").read_text().count("release 9") == 3
    (project / "asked").write_text("")
    stand_in("squeue", r"printf '9\x1fPENDING\x1fjob_requeued_in_held_state\x1f0:00\x1f\x1fa\n'")
    assert run_hpcdist("wait", "9", "--timeout", 2).code == 3
    assert "release" not in (project / "asked").read_text()


@pytest.mark.parametrize(
    ("waited_s", "least_s", "pause_s"), [(0, 1, 1), (60, 1, 1), (90, 1, 1.5), (90, 2, 2), (600, 1, 10), (86400, 1, 10)]
)
def test_the_longer_it_was_waited_for_the_longer_slurm_is_left_alone(waited_s, least_s, pause_s):
    assert job_status.pause_s(waited_s, least_s) == pause_s


def test_who_follows_the_logs_asks_slurm_once_a_second(project, stand_in):
    submit("r", "--", "true")
    put_on_slurm(project)
    stand_in(
        "squeue",
        r"""echo >> asked; state=RUNNING; [ $(wc -l < asked) -lt 5 ] || state=COMPLETED
        printf "9\x1f$state\x1fNone\x1f0:01\x1fn1\x1fa\n" """,
    )
    stand_in("sacct", "exit 1")
    stand_in("scontrol", "exit 1")
    began = time.monotonic()
    assert run_hpcdist("logs", "-f", "9").code == 0
    assert time.monotonic() - began >= 4
    assert (project / "asked").read_text().count("\n") < 8


def test_nobody_s_job_is_an_error_of_two_lines(project, stand_in):
    stand_in("squeue", "exit 0")
    done = run_hpcdist("why", "123")
    assert done.code == 1
    assert done.err.startswith("error: Slurm knows no job 123\nhint: ")
    assert run_hpcdist("why", "no-such-run").code == 1
    assert run_hpcdist("why").code == 2


def test_the_logs_are_there_when_slurm_is_not(project, monkeypatch):
    submit("r", "--", "sh", "-c", "echo said; exit 1")
    put_on_slurm(project)
    done = run_hpcdist("logs", "r", env={"PATH": "/nowhere"})
    assert (done.code, done.out) == (0, "said\n")


def test_slurm_is_asked_about_attempts_only_where_it_answers(stand_in):
    stand_in("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert queue.query_endings(["9"]) == {}
