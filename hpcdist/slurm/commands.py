"""Slurm's commands: how they are run, and what is done to a job.

Every function that runs one raises HpcdistError with Slurm's own words where the command is missing, fails or does not
answer, unless it says what it returns then.
"""

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from hpcdist.errors import AccountingOffError, HpcdistError, NotReadyError, UsageError

SEPARATOR = "\x1f"
KEPT_BYTES = 4096


def missing_command(name: str) -> NotReadyError:
    """Return the error about a command of Slurm's that is not here."""
    return NotReadyError(f"{name} is not on PATH", "load Slurm's module (module load slurm)")


def start_command(arguments: Sequence[str], env: Mapping[str, str]) -> Iterator[str]:
    """Start a command; return the lines of its standard output, with their ends, which may be read as they come.

    Nothing is held back. There is no time limit: sacct may take minutes for a year. A command that is not read to its
    end is stopped. One that failed raises its error while it is read, after what it printed.
    """
    # A file: a command whose complaints nobody reads from a pipe would stop writing.
    complaints = tempfile.TemporaryFile()  # noqa: SIM115 closed when the lines were read
    try:
        process = subprocess.Popen(
            arguments, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
        )
    except FileNotFoundError:
        complaints.close()
        raise missing_command(arguments[0]) from None
    return _iter_lines(arguments[0], process, complaints)


def _iter_lines(name: str, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> Iterator[str]:
    finished = False
    with complaints:
        try:
            if process.stdout is not None:
                # A line feed alone ends a line: a job's name may hold a carriage return.
                yield from io.TextIOWrapper(process.stdout, "utf-8", errors="replace", newline="\n")
            finished = True
        finally:
            if not finished:
                process.kill()
            process.wait()
        if process.returncode != 0:
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - KEPT_BYTES))
            said = complaints.read().decode(errors="replace").strip()
            if "accounting storage is disabled" in said.lower() or "slurmdbd" in said.lower():
                raise AccountingOffError(f"{name}: {said}", "hpcdist status follows the job without accounting")
            raise HpcdistError(f"{name}: {said or f'exit status {process.returncode}'}", "see `hpcdist status`")


COMMAND_TIMEOUT_S = 60.0
# sstat asks every node of a job, and a dead one answers nothing.
LIVE_TIMEOUT_S = 15.0


def is_available(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether this machine submits to Slurm.

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


def run(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, *, timeout_s: float = COMMAND_TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run one of Slurm's commands to its end, whatever its exit status.

    Raises:
        NotReadyError: It is missing, or did not answer.
    """
    try:
        return subprocess.run(
            arguments,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise missing_command(arguments[0]) from None
    except subprocess.TimeoutExpired:
        raise NotReadyError(f"{arguments[0]} did not answer within {timeout_s:.0f} s", "try again") from None


def run_command(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run one of Slurm's commands; return its standard output."""
    done = run(arguments, env)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise HpcdistError(f"{arguments[0]}: {words}", "scontrol ping tells whether Slurm answers")
    return done.stdout.decode(errors="replace")


def list_queue(form: str, *options: str) -> str:
    """Return the rows of squeue in a format, jobs in hidden partitions included."""
    return run_command(["squeue", "-h", "-a", *options, "-o", form])


def list_accounting(fields: str, *options: str, env: Mapping[str, str] | None = None) -> str:
    """Return the rows of sacct with these fields, parted by `SEPARATOR`."""
    return run_command(["sacct", "-n", "-P", f"--delimiter={SEPARATOR}", *options, f"--format={fields}"], env)


def read_config() -> dict[str, str]:
    """Return the cluster's settings (`scontrol show config`), among them ClusterName and SLURM_VERSION."""
    lines = run_command(["scontrol", "show", "config"]).splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def show_job(job_id: str) -> str:
    """Return what the controller says of a job, on one line."""
    return run_command(["scontrol", "show", "job", "-o", job_id])


def requeue(job_id: str) -> None:
    """Put a running job back into the queue."""
    run_command(["scontrol", "requeue", job_id])


def release(job_id: str) -> None:
    """Let a held job start."""
    run_command(["scontrol", "release", job_id])


def exclude_nodes(job_id: str, nodes: str) -> None:
    """Keep a pending job from nodes, which replace those it was kept from before; Slurm refuses it of a running one."""
    run_command(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}"])


def cancel(job_id: str) -> None:
    """End a job."""
    run_command(["scancel", job_id])


def read_live(arguments: Sequence[str]) -> str:
    """Return what `sstat` prints; nothing where it may not, or cannot reach a node.

    It complains about one step (another user's, one that just ended) and still prints the others.
    """
    try:
        return run(["sstat", *arguments], timeout_s=LIVE_TIMEOUT_S).stdout.decode(errors="replace")
    except NotReadyError:
        return ""


def read_seff(job_id: str) -> str:
    """Return what the site's own `seff` prints about a job; it may end with a status and still have printed.

    Raises:
        UsageError: There is no seff on PATH.
    """
    program = shutil.which("seff")
    if program is None:
        raise UsageError("there is no seff on PATH", "use --source sacct")
    return run([program, job_id]).stdout.decode(errors="replace")
