"""Slurm's commands: how they are run, and what is done to a job.

Jobs are sent by `sbatch`; where they are is asked in `tasks`, what they used in `asking`.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcdist.errors import HpcdistError, NotReadyError, UsageError

COMMAND_TIMEOUT_S = 60.0
# sstat asks every node of a job, and a dead one answers nothing.
LIVE_TIMEOUT_S = 15.0


def is_available(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this machine submits to Slurm.

    Raises:
        NotReadyError: Something hints at Slurm, but its commands are missing.
    """
    if shutil.which("sbatch", path=env.get("PATH")):
        return True
    signs = [name for name in ("SLURM_CONF", "SLURM_CLUSTERS") if env.get(name)]
    signs += [folder for folder in ("/etc/slurm", "/etc/slurm-llnl") if Path(folder, "slurm.conf").exists()]
    if signs:
        raise NotReadyError(
            f"this looks like a Slurm machine ({', '.join(signs)}), but sbatch is not on PATH",
            "load Slurm's module (module load slurm), or run here with --backend local",
        )
    return False


def run_command(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Runs one of Slurm's commands; returns its standard output.

    Raises:
        HpcdistError: It is missing, failed or did not answer; the message has its own words.
    """
    try:
        done = subprocess.run(
            arguments,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise NotReadyError(f"{arguments[0]} is not on PATH", "load Slurm's module (module load slurm)") from None
    except subprocess.TimeoutExpired:
        raise NotReadyError(f"{arguments[0]} did not answer within {COMMAND_TIMEOUT_S:.0f} s", "try again") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise HpcdistError(f"{arguments[0]}: {words}", "scontrol ping tells whether Slurm answers")
    return done.stdout.decode(errors="replace")


def read_config() -> dict[str, str]:
    """The cluster's settings (`scontrol show config`), among them ClusterName and SLURM_VERSION."""
    lines = run_command(["scontrol", "show", "config"]).splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def show_job(job_id: str) -> str:
    """What the controller says of a job, on one line.

    Raises:
        HpcdistError: It does not know the job, or does not answer.
    """
    return run_command(["scontrol", "show", "job", "-o", job_id])


def requeue(job_id: str) -> None:
    """Puts a running job back into the queue.

    Raises:
        HpcdistError: Slurm refused; the message has its own words.
    """
    run_command(["scontrol", "requeue", job_id])


def release(job_id: str) -> None:
    """Lets a held job start.

    Raises:
        HpcdistError: Slurm refused; the message has its own words.
    """
    run_command(["scontrol", "release", job_id])


def exclude_nodes(job_id: str, nodes: str) -> None:
    """Keeps a pending job from nodes, which replace those it was kept from before; Slurm refuses it of a running one.

    Raises:
        HpcdistError: Slurm refused; the message has its own words.
    """
    run_command(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}"])


def cancel(job_id: str) -> None:
    """Ends a job.

    Raises:
        HpcdistError: Slurm refused; the message has its own words.
    """
    run_command(["scancel", job_id])


def read_live(arguments: Sequence[str]) -> str:
    """What `sstat` prints; nothing where it may not, or cannot reach a node.

    It complains about one step (another user's, one that just ended) and still prints the others.
    """
    try:
        done = subprocess.run(
            ["sstat", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIVE_TIMEOUT_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def read_seff(job_id: str) -> str:
    """What the site's own `seff` prints about a job; it may end with a status and still have printed.

    Raises:
        UsageError: There is no seff on PATH.
    """
    program = shutil.which("seff")
    if program is None:
        raise UsageError("there is no seff on PATH", "use --source sacct")
    done = subprocess.run([program, job_id], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
    return done.stdout.decode(errors="replace")
