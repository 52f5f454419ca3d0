"""What runs once per task, run for real as a process of its own."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hpcdist.errors import UsageError
from hpcdist.launcher.process import parse_tasks_per_node, read_identity
from hpcdist.launcher.rank import torchrun_command
from hpcdist.launcher.sampling import find_children
from hpcdist.records.store import Run

RANK = [sys.executable, "-m", "hpcdist.rank", "--"]
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_ID": "77",
}


def run_rank(*command, env=None, **kwargs):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "HPCDIST_"))}
    return subprocess.run([*RANK, *command], env=clean | (env or {}), capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(
    ("text", "counts"), [("1", [1]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("4,2", [4, 2])]
)
def test_tasks_per_node_are_counted_out(text, counts):
    assert parse_tasks_per_node(text) == counts


def test_the_identity_comes_from_slurm():
    assert read_identity(SLURM).variables() == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
    }


def test_torchrun_s_identity_wins_over_slurm_s():
    env = SLURM | {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
    }
    identity = read_identity(env)
    assert (identity.rank, identity.world_size, identity.node_rank) == (5, 8, 1)


def test_without_a_launcher_it_is_one_of_one():
    identity = read_identity({})
    assert (identity.rank, identity.world_size) == (0, 1)


def test_half_an_identity_is_an_error():
    with pytest.raises(UsageError):
        read_identity({"SLURM_PROCID": "3"})


def test_torchrun_gets_slurm_s_node():
    command = torchrun_command(4, ["python", "t.py"], {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "MASTER_ADDR": "n1"})
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=n1", "--no-python"} <= set(command)
    assert command[-3:] == ["--", "python", "t.py"]


def test_the_program_sees_its_rank(tmp_path):
    done = run_rank("sh", "-c", "echo $RANK $WORLD_SIZE $LOCAL_RANK $NODE_RANK", env=SLURM)
    assert done.stdout == "3 4 1 1\n"


def test_the_exit_status_passes_through_and_is_recorded(tmp_path):
    done = run_rank("sh", "-c", "exit 7", env=SLURM | {"HPCDIST_RUN_DIR": str(tmp_path)})
    usage = json.loads((tmp_path / "ranks" / "3.json").read_text())
    assert done.returncode == 7
    assert (usage["exit_code"], usage["signal"], usage["job_id"], usage["world_size"]) == (7, None, "77", 4)


def test_a_signal_that_ended_the_program_is_recorded(tmp_path):
    done = run_rank("sh", "-c", "kill -9 $$", env={"HPCDIST_RUN_DIR": str(tmp_path)})
    usage = json.loads((tmp_path / "ranks" / "0.json").read_text())
    assert done.returncode == 137
    assert (usage["exit_code"], usage["signal"]) == (None, 9)


def test_a_signal_is_passed_on(tmp_path):
    program = "import signal, time; signal.signal(signal.SIGUSR2, lambda *_: exit(5)); print('up', flush=True)"
    program += "; time.sleep(30)"
    process = subprocess.Popen([*RANK, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=10) == 5


def test_the_program_dies_with_a_killed_watcher(tmp_path):
    pid_file = tmp_path / "pid"
    process = subprocess.Popen([*RANK, "sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"])
    while not (pid_file.exists() and pid_file.read_text().strip()):
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    process.kill()
    process.wait()
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the program outlived its watcher")


def test_cpu_time_counts_children_and_memory_is_the_peak(tmp_path):
    program = (
        "import subprocess, sys, time\n"
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 1: pass'])\n"
        "block = bytearray(200_000_000); time.sleep(1.5)"
    )
    run_rank(sys.executable, "-c", program, env={"HPCDIST_RUN_DIR": str(tmp_path)})
    usage = json.loads((tmp_path / "ranks" / "0.json").read_text())
    assert 1.0 <= usage["cpu_time_s"] < 2.0
    # Sampled after 0.1, 0.3, 0.7 and 1.5 s: what the child did after the last of these is not in it.
    assert 0.2 <= usage["children_cpu_time_s"] <= 1.1
    assert 200_000_000 < usage["memory_peak_bytes"] < 300_000_000


def test_what_it_used_over_time_is_in_the_rank_s_own_file(tmp_path):
    program = (
        "import os, time\n"
        "with open('block', 'wb') as file:\n"
        "    file.write(os.urandom(8_000_000)); file.flush(); os.fsync(file.fileno())\n"
        "block = bytearray(100_000_000)\n"
        "while time.process_time() < 1.3: pass\n"
        "time.sleep(1.5)"
    )
    env = {"HPCDIST_RUN_DIR": str(tmp_path)}
    run_rank(sys.executable, "-c", program, env=env, cwd=tmp_path)
    (curve,) = Run(tmp_path).curves()
    usage = json.loads((tmp_path / "ranks" / "0.json").read_text())
    spans = [end - begin for begin, end in itertools.pairwise((0.0, *curve.at_s))]
    assert sum(cpu * span for cpu, span in zip(curve.cpu_cores, spans, strict=True)) == pytest.approx(1.35, abs=0.15)
    assert 100_000_000 < max(curve.memory_bytes) <= usage["memory_peak_bytes"]
    # The kernel counts what went to the disk (proc(5), /proc/PID/io); a file system in memory writes nothing there.
    written = sum(rate * span for rate, span in zip(curve.disk_written_bytes_per_s, spans, strict=True))
    assert written == 0 or written == pytest.approx(8_000_000, rel=0.1)
    assert None not in (*curve.network_received_bytes_per_s, *curve.network_sent_bytes_per_s)
    assert all(0 <= share <= 1.05 for share in curve.node_cpu_utilization)
    assert set(curve.gpu_utilization) == {None}
    assert usage["node_memory_bytes"] <= psutil.virtual_memory().total


def test_children_and_their_children_are_found(tmp_path):
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '9']).pid, flush=True); time.sleep(9)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    grandchild = int(child.stdout.readline())
    assert set(find_children(os.getpid())) >= {child.pid, grandchild}
    child.kill()
    os.kill(grandchild, signal.SIGKILL)
    child.wait()
    assert child.pid not in find_children(os.getpid())


def test_what_the_program_measured_is_taken_in(tmp_path):
    run_rank(
        "sh",
        "-c",
        'echo \'{"accuracy": 0.5, "steps": 3}\' > "$HPCDIST_METRICS"',
        env={"HPCDIST_RUN_DIR": str(tmp_path)},
    )
    usage = json.loads((tmp_path / "ranks" / "0.json").read_text())
    assert (usage["training"]["accuracy"], usage["training"]["steps"]) == (0.5, 3)
    assert not (tmp_path / "ranks" / "0.metrics.json").exists()


def test_a_missing_program_is_a_clear_error():
    done = run_rank("no-such-program")
    assert done.returncode == 127
    assert "error: can't start 'no-such-program'" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


LAST_WORK = """
import sys, threading, time
if len(sys.argv) > 1: sys.modules["torch.distributed"] = sys
def last_work():
    time.sleep(0.01)
    print("done", flush=True)
threading.Thread(target=last_work, daemon=True).start()
"""


def test_threads_of_torch_distributed_finish_before_the_interpreter_ends():
    assert run_rank(sys.executable, "-c", LAST_WORK, "torch").stdout == "done\n"
    assert run_rank(sys.executable, "-c", LAST_WORK).stdout == ""


@pytest.mark.parametrize("own", [True, False])
def test_the_program_s_own_startup_and_path_stay_as_they_are(tmp_path, own):
    if own:
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.own = True")
    env = {"PYTHONPATH": str(tmp_path)}
    script = [sys.executable, "-c", "import sys; print(sys.path, getattr(sys, 'own', False))"]
    plain = subprocess.run(script, env=os.environ | env, capture_output=True, text=True)
    assert plain.stdout.endswith(f" {own}\n")
    assert run_rank(*script, env=env).stdout == plain.stdout


def test_a_resumable_program_is_asked_by_a_file_and_its_workers_survive_the_signals(tmp_path):
    script = (
        "import os, signal, subprocess, sys, time\n"
        "worker = subprocess.Popen(['sleep', '20'])\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(os.environ['HPCDIST_STOP_FILE']): time.sleep(0.02)\n"
        "print(worker.poll(), os.environ['HPCDIST_CHECKPOINT_DIR'], flush=True)\n"
        "worker.kill()\n"
        "sys.exit(75)"
    )
    rank = [*RANK[:-1], "--max-requeues", "3", "--", sys.executable, "-c", script]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "HPCDIST_"))}
    process = subprocess.Popen(
        rank, env=clean | {"HPCDIST_RUN_DIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    # As Slurm does: to every process of the step.
    os.killpg(process.pid, signal.SIGUSR2)
    assert process.stdout.readline() == f"None {tmp_path}/checkpoints\n"
    assert process.wait(10) == 75
    assert json.loads((tmp_path / "ranks" / "0.json").read_text())["exit_code"] == 75
    assert not list((tmp_path / "ranks").glob("*.stop"))


def test_a_signal_while_it_ends_does_not_change_its_status():
    # What is ignored stays so to the very end; what Python handles does not.
    program = (
        "import atexit, runpy, signal, sys\n"
        "last = lambda: [signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGTERM, signal.SIGUSR2)]\n"
        "atexit.register(lambda: print(last()))\n"
        "sys.argv = ['rank', '--', 'sh', '-c', 'exit 3']\n"
        "runpy.run_module('hpcdist.rank', run_name='__main__')\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "HPCDIST_"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert (done.stdout, done.returncode) == ("[True, True]\n", 3), done.stderr


@pytest.mark.parametrize(
    ("words", "settings", "kept"),
    [
        (["-m", "hpcdist.train", "--epochs", "1"], {}, ["33554432", "1073741824"]),
        (["-m", "hpcdist.train"], {"MALLOC_TRIM_THRESHOLD_": "5"}, ["33554432", "5"]),
        (["-m", "mine"], {}, ["", ""]),
        (["train.py", "-m", "hpcdist.train"], {}, ["", ""]),
    ],
)
def test_only_the_built_in_training_is_told_to_keep_freed_memory(tmp_path, words, settings, kept):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$MALLOC_MMAP_THRESHOLD_,$MALLOC_TRIM_THRESHOLD_"\n')
    python.chmod(0o755)
    assert run_rank(str(python), *words, env=settings).stdout.strip().split(",") == kept
