"""Runs once per task inside a job: sets the rank's environment, starts the program, measures it.

`python -m hpcdist.rank -- COMMAND ARGS` gives COMMAND the variables that torch.distributed, Accelerate and most
scripts read (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR, MASTER_PORT), passes
signals on to it, writes what it used to `$HPCDIST_RUN_DIR/ranks/<rank>.json`, and ends with its status
(128 + the signal's number when a signal ended it; 1 when it was terminated from outside).

`--max-requeues N` is for a COMMAND that saves and stops when it is asked to, and goes on when started again. It is
asked by the file `$HPCDIST_STOP_FILE`, made when Slurm is about to end the job (USR2 before the time limit, TERM); it
keeps its checkpoints in `$HPCDIST_CHECKPOINT_DIR` and ends with status 75, and the job is requeued. The signals
themselves reach neither it nor the processes it starts, which would die of them.

With `--replace-bad-node` beside it, a COMMAND that ends with status 71 and names a node in its metrics (the built-in
training's preflight does) has the job requeued without that node.

`python -m hpcdist.rank --torchrun N -- COMMAND ARGS` becomes one torchrun that starts N such ranks on this node.
"""

import argparse
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

from hpcdist.disk import write_atomically
from hpcdist.errors import HpcdistError
from hpcdist.gpu import GpuMeter
from hpcdist.identity import Identity, read_identity
from hpcdist.kinds import RANK_INTERVAL_S
from hpcdist.record import (
    BAD_NODE_STATUS,
    LOST_PEER_STATUS,
    RESTART_LINE,
    STOPPED_STATUS,
    RankUsage,
    TrainingMetrics,
)
from hpcdist.sampling import Sampler, read_node_memory
from hpcdist.usage_curve import build_curve

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
CURVE_INTERVAL_S = 30.0  # what a rank that is killed loses of its curve at most
PR_SET_PDEATHSIG = 1  # prctl(2)
STARTUP_DIR = Path(__file__).with_name("startup")  # its sitecustomize.py says what for


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
        self.asked_by: int | None = None
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
        curve_at = time.monotonic()
        while True:
            try:
                status = self.process.wait(timeout=interval_s)
                break
            except subprocess.TimeoutExpired:
                self.sampler.sample()
                interval_s = min(2 * interval_s, RANK_INTERVAL_S)
                if time.monotonic() - curve_at >= CURVE_INTERVAL_S:
                    curve_at = time.monotonic()
                    self._write_curve()
        self.training = self._take_metrics()
        self._write_curve()
        self.write(status)
        if self.stop_file:
            self.stop_file.unlink(missing_ok=True)
        return status if status >= 0 else 128 - status

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
            curve = build_curve(
                self.sampler.curve,
                rank=self.identity.rank,
                host=socket.gethostname(),
                started_at_s=self.started_at_s,
            )
            # A folder of their own: whoever reads ranks/*.json finds the ranks there and nothing else.
            self._put(self.path.parent.with_name("curves") / self.path.name, curve, durable=False)

    def _put(self, path: Path, value: msgspec.Struct, *, durable: bool) -> None:
        text = msgspec.json.encode(value)
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, msgspec.json.format(text) if durable else text, durable=durable)
        except OSError as error:
            # A full disk or a deleted folder costs the figures, not the program's work.
            print(f"warning: can't write {path}: {error.strerror}", file=sys.stderr, flush=True)

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
    options, command = _parse(arguments)
    env = dict(os.environ)
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    if restarts != "0":
        print(RESTART_LINE.format(restarts), flush=True)
    if options.torchrun:
        torchrun = torchrun_command(options.torchrun, command, env)
        os.execv(torchrun[0], torchrun)
    try:
        program = Program(command, env, read_identity(env), resumable=options.max_requeues is not None)
        status = program.wait()
    except HpcdistError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 127
    if options.max_requeues is not None and _goes_on(program, status, options):
        return status
    if program.asked_by == signal.SIGTERM and status in (128 + signal.SIGTERM, STOPPED_STATUS):
        # Ended with the whole job, most often because another rank failed. srun gives the job the highest status of
        # its tasks, and that must be the one of the rank that failed.
        return 1
    return status


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command.

    Raises:
        SystemExit: They can't be used; the status is 2.
    """
    usage = "%(prog)s [--torchrun N | --max-requeues N [--replace-bad-node]] -- COMMAND ARGS"
    parser = argparse.ArgumentParser(prog="python -m hpcdist.rank", usage=usage, allow_abbrev=False)
    parser.add_argument("--torchrun", type=int)
    parser.add_argument("--max-requeues", type=int)
    parser.add_argument("--replace-bad-node", action="store_true")
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser.parse_args(arguments[:at]), arguments[at + 1 :]
    if not command:
        parser.error("there is no COMMAND after --")
    return options, command


def _goes_on(program: Program, status: int, options: argparse.Namespace) -> bool:
    """Brings the job back where that helps; False when the rank is to end."""
    job_id = program.env.get("SLURM_JOB_ID")
    fault = program.training.fault if program.training else None
    bad_node = fault.host if fault and options.replace_bad_node else None
    helps = status in (STOPPED_STATUS, LOST_PEER_STATUS) or (status == BAD_NODE_STATUS and bad_node is not None)
    if job_id is None or not helps:
        return False
    from hpcdist.requeue import Requeue  # loads what a rank that ends well never needs

    restarts = int(program.env.get("SLURM_RESTART_COUNT", "0"))
    requeue = Requeue(job_id, program.identity.rank, restarts=restarts, cap=options.max_requeues, bad_node=bad_node)
    return requeue.settle(status, program.asked_by)


if __name__ == "__main__":
    result = main(sys.argv[1:])
    # While Python ends it puts the default back for what it handled: a TERM to a job whose other rank just failed would
    # make 143 of this rank's status, and so of the job's, which is the highest.
    for signal_number in FORWARDED_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(result)
