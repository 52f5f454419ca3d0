"""A rank's process: its identity, its environment, the signals to it, and what it used."""

import contextlib
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

from hpcdist.errors import HpcdistError, UsageError
from hpcdist.files import write_atomically
from hpcdist.gpu import GpuMeter
from hpcdist.launcher.sampling import Sampler, read_node_memory
from hpcdist.records.efficiency import RANK_INTERVAL_S
from hpcdist.records.ranks import RankUsage, TrainingMetrics
from hpcdist.records.usage_curve import build_curve


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank this process is."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int

    def variables(self) -> dict[str, str]:
        """Return the identity as torch's environment variables."""
        return {name.upper(): str(getattr(self, name)) for name in self.__struct_fields__}


def read_identity(env: Mapping[str, str]) -> Identity:
    """Return the rank's identity: from the launcher that set it (torchrun, ours), else from Slurm, else 1 of 1.

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
    """Parse Slurm's short form of each node's tasks: `2(x3),1` is `[2, 2, 2, 1]` (man srun, SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts


FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
CURVE_INTERVAL_S = 30.0  # what a rank that is killed loses of its curve at most
PR_SET_PDEATHSIG = 1  # prctl(2)
# For the built-in training: each of its steps frees its activations and asks for as much again, and glibc would give
# them back in between, so that the system clears the pages anew (a quarter of the time of the built-in network on one
# core). See mallopt(3): the first one is ignored above 32 MiB, half of glibc's HEAP_MAX.
TRAINING_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
STARTUP_DIR = Path(__file__).with_name("startup")  # its sitecustomize.py says what for


class Program:
    """The rank's program while it runs, and what it has used so far.

    Args:
        env: The watcher's environment.
        resumable: Whether it can be asked to stop.
    """

    def __init__(self, command: list[str], env: dict[str, str], identity: Identity, *, resumable: bool) -> None:
        self.started_at_s = time.time()
        self.identity = identity
        defaults = TRAINING_MEMORY if command[1:3] == ["-m", "hpcdist.train"] else {}
        env = defaults | env | identity.variables() | {"HPCDIST_STARTED_AT": str(self.started_at_s)}
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", "29400")
        # Joined without an empty entry, which would be the working directory.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP_DIR), env.get("PYTHONPATH")]))
        run_dir = env.get("HPCDIST_RUN_DIR")
        self.path = Path(run_dir, "ranks", f"{identity.rank}.json") if run_dir else None
        if self.path:
            env["HPCDIST_METRICS"] = str(self.path.with_suffix(".metrics.json"))
            env["HPCDIST_CHECKPOINT_DIR"] = str(self.path.parent.with_name("checkpoints"))
        self.stop_file = self.path.with_suffix(".stop") if self.path and resumable else None
        if self.stop_file:
            env["HPCDIST_STOP_FILE"] = str(self.stop_file)
        self._clear_up()
        self.env = env
        self.asked_by: int | None = None
        self._is_unheard = False  # asked to stop, where the stop file could not be made
        self.training: TrainingMetrics | None = None
        self.gpu = GpuMeter.open(env.get("CUDA_VISIBLE_DEVICES"), identity.local_rank)
        try:
            self.process = subprocess.Popen(command, env=env, preexec_fn=self._prepare)  # noqa: PLW1509
        except OSError as error:
            raise HpcdistError(
                f"can't start {command[0]!r} on {socket.gethostname()}: {error.strerror}",
                "check that the program exists on the nodes, and add what it needs with --setup",
            ) from None
        self.sampler = Sampler(self.process.pid, self.gpu)
        for number in FORWARDED_SIGNALS:
            signal.signal(number, self._forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _clear_up(self) -> None:
        """Make the folder for the rank's file, and take away what an earlier attempt left for this one."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for suffix in (".metrics.json", ".stop"):
                self.path.with_suffix(suffix).unlink(missing_ok=True)
        except OSError as error:
            _warn(f"can't write in {self.path.parent}", error)

    def _prepare(self) -> None:
        """Run in the program's process, before it is the program."""
        # The watcher may be killed where the program is not (the local backend's supervisor): die with it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.stop_file:
            # Slurm signals every process of the step; what is ignored here is ignored in all that it starts, too.
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number in STOP_SIGNALS:
            # Of two, the last: TERM after USR2 ends the job.
            self.asked_by = number
        if number in STOP_SIGNALS and self.stop_file:
            self._ask_to_stop(self.stop_file)
        else:
            self.process.send_signal(number)

    def _ask_to_stop(self, stop_file: Path) -> None:
        try:
            stop_file.touch()
        except OSError as error:
            # On a full disk, say. The program can't know; a watcher that ended for it would end the job.
            if not self._is_unheard:
                _warn(f"can't ask the program to stop: {stop_file}", error)
            self._is_unheard = True
        else:
            self._is_unheard = False

    def wait(self) -> int:
        """Sample the program until it ends; return its exit status as a shell gives it."""
        self.write(None)
        interval_s = 0.1
        curve_at = time.monotonic()
        while True:
            try:
                status = self.process.wait(timeout=interval_s)
                break
            except subprocess.TimeoutExpired:
                self.sampler.sample()
                if self._is_unheard and self.stop_file:
                    self._ask_to_stop(self.stop_file)
                interval_s = min(2 * interval_s, RANK_INTERVAL_S)
                if time.monotonic() - curve_at >= CURVE_INTERVAL_S:
                    curve_at = time.monotonic()
                    self._write_curve()
        self.training = self._take_metrics()
        self._write_curve()
        self.write(status)
        if self.stop_file:
            with contextlib.suppress(OSError):
                self.stop_file.unlink(missing_ok=True)
        return status if status >= 0 else 128 - status

    def write(self, status: int | None) -> None:
        """Write the rank's file; `status` is None while the program runs, negative for a signal."""
        if self.path is None:
            return
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = status is not None
        identity = msgspec.structs.asdict(self.identity)
        del identity["local_world_size"]
        usage = RankUsage(
            **identity,
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
            children_cpu_time_s=self.sampler.children_cpu_s if ended else None,
            # ru_maxrss is in KiB and the largest single process (getrusage(2)): a floor for what sampling missed.
            memory_peak_bytes=max(self.sampler.memory_peak_bytes, used.ru_maxrss * 1024) if ended else None,
            gpu_utilization=self.gpu.utilization() if self.gpu else None,
            gpu_memory_peak_bytes=self.gpu.memory_peak_bytes if self.gpu else None,
            gpu_memory_total_bytes=self.gpu.memory_total_bytes if self.gpu else None,
            node_memory_bytes=read_node_memory() if ended else None,
            training=self.training,
        )
        self._put(self.path, usage, durable=True)

    def _write_curve(self) -> None:
        if self.path:
            rank, host = self.identity.rank, socket.gethostname()
            curve = build_curve(self.sampler.curve, rank=rank, host=host, started_at_s=self.started_at_s)
            # A folder of their own: whoever reads ranks/*.json finds the ranks there and nothing else.
            self._put(self.path.parent.with_name("curves") / self.path.name, curve, durable=False)

    def _put(self, path: Path, value: msgspec.Struct, *, durable: bool) -> None:
        text = msgspec.json.encode(value)
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, msgspec.json.format(text) if durable else text, durable=durable)
        except OSError as error:
            # A full disk or a deleted folder costs the figures, not the program's work.
            _warn(f"can't write {path}", error)

    def _take_metrics(self) -> TrainingMetrics | None:
        if self.path is None:
            return None
        path = self.path.with_suffix(".metrics.json")
        try:
            metrics = msgspec.json.decode(path.read_bytes(), type=TrainingMetrics)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            print(f"warning: {path} is not a metrics file: {error}", file=sys.stderr)
            return None
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return metrics


def _warn(what: str, error: OSError) -> None:
    print(f"warning: {what}: {error.strerror}", file=sys.stderr, flush=True)


def _job_id(env: Mapping[str, str]) -> str | None:
    if "HPCDIST_JOB_ID" in env and env.get("HPCDIST_LAUNCHER") == "local":
        return env["HPCDIST_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")
