"""Jobs on this machine, without a scheduler."""

import os
import signal
import socket
import subprocess
import sys
import time

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.errors import HpcdistError, SubmitError
from hpcdist.launch import read_boot_id, read_start_ticks
from hpcdist.records.store import LocalState, Run

START_TIMEOUT_S = 30.0


def submit(run: Run, job: JobSpec) -> None:
    """Starts a run's supervisor, in a session of its own so that it outlives the shell.

    Raises:
        SubmitError: It did not start.
    """
    use_gpus = job.layout.gpus and job.training.accelerator != "cpu"
    needed = job.layout.nodes * job.layout.gpus if use_gpus else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(needed)]
    # A file, not a pipe: the supervisor inherits it and lives on.
    with (run.logs / "start.log").open("wb") as log:
        started = subprocess.run(
            [sys.executable, "-m", "hpcdist.slurm.executor", str(run.path)],
            env=os.environ | {"HPCDIST_LOCAL_GPUS": ",".join(names[:needed])},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=False,
        )
    if started.returncode != 0:
        raise SubmitError("the local job did not start", f"look into {run.logs / 'start.log'}")
    deadline = time.monotonic() + START_TIMEOUT_S
    while run.local_state() is None:
        if time.monotonic() > deadline:
            raise SubmitError(f"the local job did not start within {START_TIMEOUT_S:.0f} s", f"look into {run.logs}")
        time.sleep(0.05)


def query(run: Run) -> LocalState | None:
    """The run's state now; a supervisor that vanished without a word left the run FAILED."""
    state = run.local_state()
    if state is None or state.state != "RUNNING" or state.host != socket.gethostname() or is_alive(state):
        return state
    # It may have ended between the two looks.
    state = run.local_state() or state
    return msgspec.structs.replace(state, state="FAILED") if state.state == "RUNNING" else state


def is_alive(state: LocalState) -> bool:
    """Whether the supervisor runs on this machine now, and not another process that got its id."""
    if state.host != socket.gethostname() or state.boot_id != read_boot_id():
        return False
    return read_start_ticks(state.pid) == state.pid_started


def cancel(run: Run) -> None:
    """Asks the supervisor to end the run; one that ended already is left alone.

    Raises:
        HpcdistError: It runs on another machine, where no signal reaches it.
    """
    state = run.local_state()
    if state is None or state.state != "RUNNING":
        return
    if state.host != socket.gethostname():
        raise HpcdistError(f"{run.name} runs on {state.host}, this is {socket.gethostname()}", "cancel it there")
    if is_alive(state):
        os.kill(state.pid, signal.SIGTERM)
