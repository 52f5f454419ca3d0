"""Runs once per task inside a job: sets the rank's environment, starts the program, measures it.

`python -m hpcdist.rank -- COMMAND ARGS` gives COMMAND the variables that torch.distributed, Accelerate and most
scripts read (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR, MASTER_PORT), passes
signals on to it, writes what it used to `$HPCDIST_RUN_DIR/ranks/<rank>.json`, and ends with its status
(128 + the signal's number when a signal ended it; 1 when it was terminated from outside).

`--max-requeues N` is for a COMMAND that saves and stops when it is asked to, and goes on when started again. It is
asked by the file `$HPCDIST_STOP_FILE`, made when Slurm is about to end the job (USR2 before the time limit, TERM); it
keeps its checkpoints in `$HPCDIST_CHECKPOINT_DIR` and ends with status 75, and the job is requeued. The signals
themselves reach neither it nor the processes it starts, which would die of them.

`python -m hpcdist.rank --torchrun N -- COMMAND ARGS` becomes one torchrun that starts N such ranks on this node.
"""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from hpcdist.disk import write_atomically
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.gpu import GpuMeter
from hpcdist.kinds import RANK_INTERVAL_S
from hpcdist.record import LOST_PEER_STATUS, RESTART_LINE, STOPPED_STATUS, RankUsage, TrainingMetrics

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # prctl(2)
STARTUP_DIR = Path(__file__).with_name("startup")  # its sitecustomize.py says what for


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank this process is."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int

    def variables(self) -> dict[str, str]:
        """The identity as torch's environment variables."""
        return {name.upper(): str(getattr(self, name)) for name in self.__struct_fields__}


def read_identity(env: Mapping[str, str]) -> Identity:
    """The rank's identity: from the launcher that set it (torchrun, the local backend), else from Slurm, else 1 of 1.

    Raises:
        UsageError: The variables are there but make no sense together.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in env or env.get("HPCDIST_LAUNCHER") == "local":
            return Identity(
                rank=int(env["RANK"]),
                world_size=int(env["WORLD_SIZE"]),
                local_rank=int(env["LOCAL_RANK"]),
                local_world_size=int(env["LOCAL_WORLD_SIZE"]),
                node_rank=int(env.get("GROUP_RANK", env.get("NODE_RANK", "0"))),
            )
        if "SLURM_PROCID" in env:
            node_rank = int(env["SLURM_NODEID"])
            return Identity(
                rank=int(env["SLURM_PROCID"]),
                world_size=int(env["SLURM_NTASKS"]),
                local_rank=int(env["SLURM_LOCALID"]),
                local_world_size=parse_tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[node_rank],
                node_rank=node_rank,
            )
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"can't tell which rank this is: {error!r}", "start it with srun, torchrun or hpcdist"
        ) from None
    return Identity(rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0)


def parse_tasks_per_node(text: str) -> list[int]:
    """Tasks on each node from Slurm's short form: `2(x3),1` is `[2, 2, 2, 1]` (man srun, SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts


def torchrun_command(tasks: int, command: list[str], env: Mapping[str, str]) -> list[str]:
    """One torchrun for this node, whose workers are ranks of ours."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={tasks}"]
    run += [f"--nnodes={env.get('SLURM_NNODES', '1')}", f"--node-rank={env.get('SLURM_NODEID', '0')}"]
    run += [f"--master-addr={env.get('MASTER_ADDR', '127.0.0.1')}", f"--master-port={env.get('MASTER_PORT', '29400')}"]
    return [*run, "--no-python", sys.executable, "-m", "hpcdist.rank", "--", *command]


class Program:
    """The rank's program while it runs, and what it has used so far.

    Args:
        command: Its words.
        env: The watcher's environment.
        identity: Which rank it is.
        resumable: Whether it can be asked to stop.
    """

    def __init__(self, command: list[str], env: dict[str, str], identity: Identity, *, resumable: bool) -> None:
        self.started_at_s = time.time()
        self.identity = identity
        env = env | identity.variables() | {"HPCDIST_STARTED_AT": str(self.started_at_s)}
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", "29400")
        # Joined without an empty entry, which would be the working directory.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP_DIR), env.get("PYTHONPATH")]))
        run_dir = env.get("HPCDIST_RUN_DIR")
        self.path = Path(run_dir, "ranks", f"{identity.rank}.json") if run_dir else None
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            env["HPCDIST_METRICS"] = str(self.path.with_suffix(".metrics.json"))
            self.path.with_suffix(".metrics.json").unlink(missing_ok=True)
            env["HPCDIST_CHECKPOINT_DIR"] = str(self.path.parent.with_name("checkpoints"))
        self.stop_file = self.path.with_suffix(".stop") if self.path and resumable else None
        if self.stop_file:
            self.stop_file.unlink(missing_ok=True)
            env["HPCDIST_STOP_FILE"] = str(self.stop_file)
        self.env = env
        self.memory_peak_bytes = 0
        self.asked_by: int | None = None
        self.gpu = GpuMeter.open(env.get("CUDA_VISIBLE_DEVICES"), identity.local_rank)
        try:
            self.process = subprocess.Popen(command, env=env, preexec_fn=self._prepare)  # noqa: PLW1509
        except OSError as error:
            raise HpcdistError(
                f"can't start {command[0]!r} on {socket.gethostname()}: {error.strerror}",
                "check that the program exists on the nodes, and add what it needs with --setup",
            ) from None
        for number in FORWARDED_SIGNALS:
            signal.signal(number, self._forward)

    def _prepare(self) -> None:
        """Runs in the program's process, before it is the program."""
        # The watcher may be killed where the program is not (the local backend's supervisor): die with it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.stop_file:
            # Slurm signals every process of the step; what is ignored here is ignored in all that it starts, too.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number in STOP_SIGNALS:
            # Of two, the last: TERM after USR2 ends the job.
            self.asked_by = number
        if number in STOP_SIGNALS and self.stop_file:
            self.stop_file.touch()
        else:
            self.process.send_signal(number)

    def wait(self) -> int:
        """Samples the program until it ends; returns its exit status as a shell gives it."""
        self.write(None)
        interval_s = 0.1
        while True:
            try:
                status = self.process.wait(timeout=interval_s)
                break
            except subprocess.TimeoutExpired:
                self._sample()
                interval_s = min(2 * interval_s, RANK_INTERVAL_S)
        self.write(status)
        if self.stop_file:
            self.stop_file.unlink(missing_ok=True)
        return status if status >= 0 else 128 - status

    def _sample(self) -> None:
        try:
            parent = psutil.Process(self.process.pid)
            processes = [parent, *parent.children(recursive=True)]
            resident = 0
            for process in processes:
                try:
                    resident += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.memory_peak_bytes = max(self.memory_peak_bytes, resident)
        except psutil.NoSuchProcess:
            return
        if self.gpu:
            self.gpu.sample()

    def write(self, status: int | None) -> None:
        """Writes the rank's file; `status` is None while the program runs, negative for a signal."""
        if self.path is None:
            return
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = status is not None
        usage = RankUsage(
            rank=self.identity.rank,
            local_rank=self.identity.local_rank,
            node_rank=self.identity.node_rank,
            world_size=self.identity.world_size,
            host=socket.gethostname(),
            job_id=_job_id(self.env),
            cluster=self.env.get("SLURM_CLUSTER_NAME"),
            restart_count=int(self.env.get("SLURM_RESTART_COUNT", "0")),
            pid=self.process.pid,
            started_at_s=self.started_at_s,
            ended_at_s=time.time() if ended else None,
            exit_code=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            cpu_time_s=used.ru_utime + used.ru_stime if ended else None,
            # ru_maxrss is in KiB and the largest single process (getrusage(2)): a floor for what sampling missed.
            memory_peak_bytes=max(self.memory_peak_bytes, used.ru_maxrss * 1024) if ended else None,
            gpu_utilization=self.gpu.utilization() if self.gpu else None,
            gpu_memory_peak_bytes=self.gpu.memory_peak_bytes if self.gpu else None,
            training=self._take_metrics() if ended else None,
        )
        write_atomically(self.path, msgspec.json.format(msgspec.json.encode(usage)))

    def _take_metrics(self) -> TrainingMetrics | None:
        path = Path(self.env["HPCDIST_METRICS"])
        try:
            metrics = msgspec.json.decode(path.read_bytes(), type=TrainingMetrics)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            print(f"warning: {path} is not a metrics file: {error}", file=sys.stderr)
            return None
        path.unlink(missing_ok=True)
        return metrics


def _job_id(env: Mapping[str, str]) -> str | None:
    if "HPCDIST_JOB_ID" in env and env.get("HPCDIST_LAUNCHER") == "local":
        return env["HPCDIST_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    (option, number), command = _split(arguments)
    env = dict(os.environ)
    if option not in ("", "--torchrun", "--max-requeues") or not number.isdigit() or not command:
        print("usage: python -m hpcdist.rank [--torchrun N | --max-requeues N] -- COMMAND ARGS", file=sys.stderr)
        return 2
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    if restarts != "0":
        print(RESTART_LINE.format(restarts), flush=True)
    if option == "--torchrun":
        torchrun = torchrun_command(int(number), command, env)
        os.execv(torchrun[0], torchrun)
    try:
        program = Program(command, env, read_identity(env), resumable=option == "--max-requeues")
        status = program.wait()
    except HpcdistError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 127
    if option == "--max-requeues" and _goes_on(program, status, cap=int(number)):
        return status
    if program.asked_by == signal.SIGTERM and status in (128 + signal.SIGTERM, STOPPED_STATUS):
        # Ended with the whole job, most often because another rank failed. srun gives the job the highest status of
        # its tasks, and that must be the one of the rank that failed.
        return 1
    return status


def _split(arguments: list[str]) -> tuple[tuple[str, str], list[str]]:
    """The option with its number, "" and "0" for none, and the command."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    option = ("", "0") if at == 0 else (arguments[0], " ".join(arguments[1:at]))
    return option, arguments[at + 1 :]


def _goes_on(program: Program, status: int, *, cap: int) -> bool:
    """Brings the job back where that helps; False when the rank is to end."""
    job_id = program.env.get("SLURM_JOB_ID")
    if job_id is None or status not in (STOPPED_STATUS, LOST_PEER_STATUS):
        return False
    from hpcdist.requeue import Requeue  # loads what a rank that ends well never needs

    restarts = int(program.env.get("SLURM_RESTART_COUNT", "0"))
    return Requeue(job_id, program.identity.rank, restarts=restarts, cap=cap).settle(status, program.asked_by)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
