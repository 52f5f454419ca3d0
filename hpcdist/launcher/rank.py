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
import os
import signal
import sys
from collections.abc import Mapping

from hpcdist.errors import HpcdistError
from hpcdist.launcher.process import Program, read_identity
from hpcdist.records.ranks import BAD_NODE_STATUS, LOST_PEER_STATUS, RESTART_LINE, STOPPED_STATUS


def torchrun_command(tasks: int, command: list[str], env: Mapping[str, str]) -> list[str]:
    """Return one torchrun for this node, whose workers are ranks of ours."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={tasks}"]
    run += [f"--nnodes={env.get('SLURM_NNODES', '1')}", f"--node-rank={env.get('SLURM_NODEID', '0')}"]
    run += [f"--master-addr={env.get('MASTER_ADDR', '127.0.0.1')}", f"--master-port={env.get('MASTER_PORT', '29400')}"]
    return [*run, "--no-python", sys.executable, "-m", "hpcdist.rank", "--", *command]


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
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
    """Return the options, and the command.

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
    """Bring the job back where that helps; False when the rank is to end."""
    job_id = program.env.get("SLURM_JOB_ID")
    fault = program.training.fault if program.training else None
    bad_node = fault.host if fault and options.replace_bad_node else None
    helps = status in (STOPPED_STATUS, LOST_PEER_STATUS) or (status == BAD_NODE_STATUS and bad_node is not None)
    if job_id is None or not helps:
        return False
    from hpcdist.launcher.requeue import Requeue  # loads what a rank that ends well never needs
    from hpcdist.records.store import Run

    restarts = int(program.env.get("SLURM_RESTART_COUNT", "0"))
    run = Run(program.path.parents[1]) if program.path else None
    cap, rank = options.max_requeues, program.identity.rank
    requeue = Requeue(job_id, rank, restarts=restarts, cap=cap, bad_node=bad_node, run=run)
    return requeue.settle(status, lambda: program.asked_by)
