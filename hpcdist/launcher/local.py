"""Jobs on this machine without a scheduler: nodes x tasks processes, with the nodes emulated.

`python -m hpcdist.launcher.local RUN_DIR` starts every rank of the run, ends the others as soon as one fails, keeps
`local.json` up to date, and ends the run at its time limit or on SIGTERM.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.errors import HpcdistError, SubmitError
from hpcdist.files import write_atomically
from hpcdist.records.store import LocalState, Run, RunRecord, state_file
from hpcdist.units import parse_slurm_time

POLL_INTERVAL_S = 0.05
KILL_DELAY_S = 5.0
START_TIMEOUT_S = 30.0
FIRST_PORT, LAST_PORT = 10000, 30000  # below the ephemeral range


class NodeShare(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's share of a run that was started by hand on several.

    Attributes:
        node_rank: Which of the run's nodes this machine is.
        address: Where the ranks meet: an address of node 0.
        port: The port there.
    """

    node_rank: int
    address: str
    port: int


class Supervisor:
    """The ranks of one local run.

    Args:
        share: The part of it that this machine is; None plays all nodes here.
    """

    def __init__(self, run: Run, share: NodeShare | None = None) -> None:
        self.run = run
        self.share = share
        self.record: RunRecord = run.record()
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.cancelled = False
        self.state = LocalState(
            host=socket.gethostname(),
            boot_id=read_boot_id(),
            pid=os.getpid(),
            pid_started=read_start_ticks(os.getpid()) or 0,
            state="RUNNING",
            started_at_s=time.time(),
            gpus=len(_local_gpus()),
        )
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGINT, self._cancel)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it outlives the shell

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self.cancelled = True

    def supervise(self) -> int:
        """Run the ranks to their end; return the run's exit status."""
        self._write_state()
        layout = self.record.job.layout
        share = self.share or NodeShare(node_rank=0, address="127.0.0.1", port=free_port())
        first = share.node_rank * layout.ranks_per_node
        count = layout.ranks_per_node if self.share else layout.world_size
        for rank in range(first, first + count):
            self.ranks.append(self._start(rank, share))
        code, word = self._wait()
        self._stop()
        self.state = msgspec.structs.replace(self.state, state=word, exit_code=code, ended_at_s=time.time())
        self._write_state()
        return code

    def _start(self, rank: int, share: NodeShare) -> subprocess.Popen[bytes]:
        with (self.run.logs / f"{self.record.job_id}_{rank}_log.out").open("ab") as log:
            return subprocess.Popen(
                ["bash", str(self.run.script)],
                env=rank_environment(self.record, self.run.path, rank, share, first_node=self._first_node),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )

    def _wait(self) -> tuple[int, str]:
        limit_s = parse_slurm_time(self.record.job.layout.time) if self.record.job.layout.time else None
        while True:
            codes = [process.poll() for process in self.ranks]
            if self.cancelled:
                return 130, "CANCELLED"
            if failed := next(filter(None, codes), None):
                return (failed if failed > 0 else 128 - failed), "FAILED"
            if all(code == 0 for code in codes):
                return 0, "COMPLETED"
            if limit_s is not None and time.time() - self.state.started_at_s > limit_s:
                return 124, "TIMEOUT"
            time.sleep(POLL_INTERVAL_S)

    def _stop(self) -> None:
        """End what still runs: TERM to every rank's process group, KILL to those that stay."""
        deadline = time.monotonic() + KILL_DELAY_S
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.ranks:
                # The group as well as its leader: the program may have left children behind.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            while time.monotonic() < deadline and any(process.poll() is None for process in self.ranks):
                time.sleep(POLL_INTERVAL_S)
        for process in self.ranks:
            process.wait()

    def _write_state(self) -> None:
        write_atomically(self.run.path / state_file(self._first_node), msgspec.json.encode(self.state))

    @property
    def _first_node(self) -> int:
        """The first of the run's nodes that is here."""
        return self.share.node_rank if self.share else 0


def rank_environment(
    record: RunRecord, run_dir: Path, rank: int, share: NodeShare, *, first_node: int = 0
) -> dict[str, str]:
    """Return the environment of one rank; what Slurm may have set around us is left out.

    Args:
        share: Where the ranks meet.
        first_node: The first of the run's nodes that this machine is.
    """
    layout = record.job.layout
    node, local = divmod(rank, layout.ranks_per_node)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SUBMITIT_"))}
    gpus = _local_gpus()[(node - first_node) * layout.gpus :][: layout.gpus]
    if record.site.network_interface:
        env |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), record.site.network_interface)
    return env | {
        "HPCDIST_LAUNCHER": "local",
        "HPCDIST_JOB_ID": record.job_id or "",
        "HPCDIST_RUN": record.run,
        "HPCDIST_RUN_DIR": str(run_dir),
        "HPCDIST_TB_DIR": str(board_folder(record, run_dir)),
        "OMP_NUM_THREADS": str(layout.cpus_per_task),
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "MASTER_ADDR": share.address,
        "MASTER_PORT": str(share.port),
        "RANK": str(rank),
        "WORLD_SIZE": str(layout.world_size),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(layout.ranks_per_node),
        "NODE_RANK": str(node),
    }


def board_folder(record: RunRecord, run_dir: Path) -> Path:
    """Return the folder of the run's TensorBoard events."""
    return run_dir.parents[2] / "tb_logs" / record.job.slug / f"{record.job.layout.name}-{record.run}"


def free_port() -> int:
    """Return a port nobody listens on, chosen by this process's id so that two runs seldom try the same.

    Raises:
        OSError: Every port of the range is taken.
    """
    span = LAST_PORT - FIRST_PORT
    for step in range(span):
        port = FIRST_PORT + (os.getpid() * 7 + step) % span
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port below the ephemeral range")


def read_boot_id() -> str:
    """Return this boot's id (random(4), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_start_ticks(pid: int) -> int | None:
    """Return a process's start in clock ticks since boot (proc(5), field 22 of stat); None when there is none.

    One that ended and whose parent did not ask for its status yet (a zombie) is none: it does nothing any more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command's name in parentheses and may hold spaces; count after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _local_gpus() -> list[str]:
    return [name for name in os.environ.get("HPCDIST_LOCAL_GPUS", "").split(",") if name]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


def submit(run: Run, job: JobSpec) -> None:
    """Start a run's supervisor, in a session of its own so that it outlives the shell.

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
        time.sleep(POLL_INTERVAL_S)


def query(run: Run) -> LocalState | None:
    """Return the run's state now; a supervisor that vanished without a word left the run FAILED."""
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
    """Ask the supervisor to end the run; one that ended already is left alone.

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


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
    if len(arguments) != 1:
        print("usage: python -m hpcdist.launcher.local RUN_DIR", file=sys.stderr)
        return 2
    return Supervisor(Run(Path(arguments[0]).resolve())).supervise()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
