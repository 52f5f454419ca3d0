"""Runs on this machine without Slurm, through the program as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpcdist.launcher.local import read_start_ticks
from tests.conftest import HPCDIST, run_hpcdist

LOCAL = ("submit", "--backend", "local")


def only_run(project):
    (run,) = [path for path in (project / "jobs" / "runs").iterdir() if path.is_dir()]
    return run


def read_ranks(project):
    return [json.loads(path.read_text()) for path in sorted((only_run(project) / "ranks").glob("*.json"))]


def test_every_rank_of_the_layout_runs_with_its_node_emulated(project):
    done = run_hpcdist(
        *LOCAL, "--nodes", 2, "--gpus", 2, "--wait", "--", "sh", "-c", "echo $RANK/$WORLD_SIZE", anew=True
    )
    assert done.code == 0, done.err
    assert done.out == "local-1\n"
    assert "no Slurm here" in done.err
    ranks = read_ranks(project)
    assert [(r["rank"], r["local_rank"], r["node_rank"], r["world_size"]) for r in ranks] == [
        (0, 0, 0, 4),
        (1, 1, 0, 4),
        (2, 0, 1, 4),
        (3, 1, 1, 4),
    ]
    assert (only_run(project) / "logs" / "local-1_3_log.out").read_text() == "3/4\n"


def test_one_rank_s_failure_ends_the_others_and_is_shown_first(project):
    started = time.monotonic()
    program = 'if [ "$RANK" = 1 ]; then echo no more; exit 7; fi; sleep 600'
    done = run_hpcdist(*LOCAL, "--nodes", 3, "--wait", "--", "sh", "-c", program)
    assert time.monotonic() - started < 20
    assert done.code == 1
    assert re.search(r"local-1 FAILED: rank 1 on \S+ ended with exit code 7\n  \| no more\n", done.err)


def test_a_program_that_ignores_term_is_killed(project):
    program = 'if [ "$RANK" = 0 ]; then exit 3; fi; trap "" TERM; sleep 600 & wait; sleep 600'
    done = run_hpcdist(*LOCAL, "--nodes", 2, "--wait", "--", "bash", "-c", program, timeout=60)
    assert done.code == 1
    assert not alive("sleep 600")


def alive(words):
    return subprocess.run(["pgrep", "-f", f"^{words}$"], capture_output=True).returncode == 0


def test_it_outlives_the_process_that_submitted_it_and_is_followed_from_another(project):
    job_id = run_hpcdist(*LOCAL, "--", "sh", "-c", "sleep 2; echo late", anew=True).out.strip()
    assert "RUNNING" in run_hpcdist("status", job_id, anew=True).out
    assert run_hpcdist("wait", job_id, anew=True).code == 0
    assert "late" in run_hpcdist("logs", job_id, anew=True).out
    assert "COMPLETED" in run_hpcdist("status", anew=True).out


def test_ctrl_c_detaches_and_the_job_goes_on(project):
    command = [*HPCDIST, *LOCAL, "--wait", "--", "sleep", "4"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that puts these tests behind has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout.readline() == "local-1\n"
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the whole foreground group
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "detached; the job goes on. hpcdist wait local-1" in err
    assert run_hpcdist("wait", "local-1").code == 0


def test_cancel_ends_every_process(project):
    job_id = run_hpcdist(*LOCAL, "--nodes", 2, "--", "sleep", "54321").out.strip()
    time.sleep(0.5)
    assert run_hpcdist("cancel", job_id).code == 0
    done = run_hpcdist("wait", job_id)
    assert (done.code, "CANCELLED" in done.err) == (1, True)
    assert not alive("sleep 54321")


def test_cancel_touches_no_process_that_only_has_the_same_id(project):
    run_hpcdist(*LOCAL, "--wait", "--", "true")
    path = only_run(project) / "local.json"
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        state = json.loads(path.read_text())
        path.write_text(json.dumps(state | {"state": "RUNNING", "pid": bystander.pid}))  # its start time differs
        run_hpcdist("cancel", "local-1")
        assert bystander.poll() is None
        assert "FAILED" in run_hpcdist("status", "local-1").out
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_that_ended_is_none_before_its_parent_asks_for_its_status():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert read_start_ticks(process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert read_start_ticks(process.pid) is None


def test_a_killed_supervisor_takes_its_ranks_along_and_the_run_is_failed(project):
    run_hpcdist(*LOCAL, "--nodes", 2, "--", "sleep", "65432")
    state = json.loads((only_run(project) / "local.json").read_text())
    time.sleep(0.5)
    os.kill(state["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive("sleep 65432") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive("sleep 65432")
    assert re.search(r"FAILED.*supervisor was killed", run_hpcdist("status", "local-1").out)


def test_the_time_limit_holds(project):
    done = run_hpcdist(*LOCAL, "--time", "0:02", "--wait", "--", "sleep", "600", timeout=60)
    assert (done.code, "TIMEOUT" in done.err) == (1, True)


def test_concurrent_submissions_get_ids_of_their_own(project):
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda _: run_hpcdist(*LOCAL, "--", "true"), range(12)))
    assert sorted(outcome.out for outcome in outcomes) == sorted(f"local-{n}\n" for n in range(1, 13))
    assert len(list((project / "jobs" / "runs").glob("*/job.json"))) == 12


def test_the_record_says_what_ran(project):
    run_hpcdist(*LOCAL, "--nodes", 2, "--wait", "--", "true")
    job = json.loads((only_run(project) / "job.json").read_text())
    assert (job["backend"], job["job_id"], job["job"]["command"]) == ("local", "local-1", ["true"])
    assert job["versions"]["torch"]
    record = json.loads((only_run(project) / "record.json").read_text())
    assert record["status"]["state"] == "COMPLETED"
    assert len(record["ranks"]) == 2


def test_seff_of_a_local_run_is_what_its_ranks_measured(project):
    burn = "import time\nend = time.process_time() + 1.5\nwhile time.process_time() < end: pass"
    run_hpcdist(*LOCAL, "--nodes", 2, "--cpus-per-task", 1, "--wait", "--", sys.executable, "-c", burn)
    (figures,) = json.loads(run_hpcdist("seff", "local-1", "--json").out)
    assert figures["source"] == "ranks"
    assert 3.0 <= figures["cpu_time_s"] < 4.5
    assert figures["cores"] == 2
    assert figures["cpu_efficiency"] == pytest.approx(figures["cpu_time_s"] / (2 * figures["wall_time_s"]))
    assert figures["memory_requested_bytes"] is None


def boards(project):
    return {path: path.read_bytes() for path in (project / "tb_logs").glob("*/*/events.out.tfevents.0.*")}


@pytest.mark.parametrize("asked", [("local-1",), ("local-1", "local-2")])
def test_seff_puts_into_tensorboard_what_wait_does(project, asked):
    """The figures, and the record joined with what the ranks measured; again it changes nothing."""
    for _ in asked:
        run_hpcdist(*LOCAL, "--nodes", 2, "--wait", "--", "sh", "-c", 'mkdir -p "$HPCDIST_TB_DIR"')
    by_wait = boards(project)
    assert sorted(path.suffix for path in by_wait) == sorted([".efficiency", ".record"] * len(asked))
    for path in by_wait:
        path.unlink()
    for _ in range(2):
        assert run_hpcdist("seff", *asked).code == 0
        assert boards(project) == by_wait


def test_setup_lines_and_environment_reach_the_program(project):
    script = project / "show.sh"
    script.write_text('echo "$SAID|$PREPARED"\n')
    options = ("--env", "SAID=it's $HOME", "--setup", "export PREPARED=yes")
    done = run_hpcdist(*LOCAL, *options, "--wait", "--", "bash", "show.sh")
    assert done.code == 0, done.err
    assert "it's $HOME|yes" in run_hpcdist("logs", "local-1").out


def test_a_failing_setup_line_fails_the_job(project):
    done = run_hpcdist(*LOCAL, "--setup", "module-that-is-not-there", "--wait", "--", "true")
    assert done.code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("submit", "--nodes", "0"), 2, "nodes is 0"),
        (("submit", "--mem", "4 gigs"), 2, "4 gigs"),
        (("submit", "--nodez", "2"), 2, "--nodez"),
        (("submit", "--backend", "local", "--array", "0-3", "--", "true"), 2, "array"),
        (("submit", "--backend", "local", "--accelerator", "gpu", "--", "true"), 1, "accelerator"),
        (("submit", "--"), 2, "no COMMAND"),
        (("submit", "nothing.toml"), 2, "nothing.toml"),
        (("status", "nobody"), 1, "nobody"),
        (("logs", "local-99"), 1, "local-99"),
        (("seff", "12; rm -rf /"), 2, "12; rm"),
        (("seff", "--", "-P"), 1, "-P"),
        (("cancel", "../../etc"), 1, "../../etc"),
        (("submit", "--run", "../x", "--", "true"), 2, "../x"),
    ],
)
def test_bad_input_ends_with_two_lines(project, arguments, code, expected):
    done = run_hpcdist(*arguments)
    assert done.code == code
    assert done.err.startswith("error: ")
    assert expected in done.err
    assert "\nhint: " in done.err
    assert "Traceback" not in done.err


def test_without_a_command_the_help_is_shown(project):
    done = run_hpcdist()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: hpcdist")


def test_missing_data_is_said_before_the_job_is_sent(project):
    done = run_hpcdist(*LOCAL)
    assert done.code == 3
    assert "hint: hpcdist data fetch mnist --data-dir" in done.err
    assert not (project / "jobs").exists()


def test_a_job_file_and_the_project_s_defaults_are_merged(project):
    (project / "hpcdist.toml").write_text('[env]\nA = "site"\nB = "site"\n')
    (project / "job.toml").write_text('nodes = 2\ncommand = ["sh", "-c", "echo $A $B $RANK"]\n[env]\nB = "file"\n')
    done = run_hpcdist(*LOCAL, "job.toml", "--wait", "--env", "B=line")
    assert done.code == 0, done.err
    assert "site line 1" in run_hpcdist("logs", "local-1", "--rank", 1).out


def test_the_python_api_refuses_what_it_does_not_know(project):
    code = (
        "import hpcdist\ntry:\n  hpcdist.submit(epoch=3)\nexcept hpcdist.HpcdistError as e:\n  print(e.message, e.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "submit(): unknown key 'epoch' did you mean 'epochs'?\n"


def test_signs_of_slurm_without_its_commands_are_an_error(project):
    environment = {"SLURM_CONF": "/nowhere/slurm.conf", "PATH": "/nowhere"}
    done = run_hpcdist("submit", "--", "true", env=environment)
    assert done.code == 3
    assert "sbatch is not on PATH" in done.err
    assert "--backend local" in done.err


def test_the_training_runs_here(project, mnist_dir):
    """The whole way: two ranks train, the accuracy, the efficiency and TensorBoard's events are there."""
    done = run_hpcdist(*LOCAL, "--nodes", 2, "--epochs", 1, "--data-dir", mnist_dir, "--wait", timeout=280)
    assert done.code == 0, done.err
    assert re.search(r"Test accuracy: 9[5-9]\.\d\d%", done.err)
    first, second = (rank["training"] for rank in read_ranks(project))
    assert first["accuracy"] == second["accuracy"] > 0.95
    assert (first["finished"], first["world_size"]) == (True, 2)
    assert first["samples"] + second["samples"] == 60_000
    (folder,) = (project / "tb_logs" / "mnist").iterdir()
    assert folder.name == f"2x1-{only_run(project).name}"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    assert {"val/accuracy", "train/loss", "efficiency/cpu", "wall_time_s"} <= set(events.Tags()["scalars"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run_hpcdist("seff", "local-1").code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # writing twice changes nothing
