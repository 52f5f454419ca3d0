"""Slurm's commands: what they say of jobs, and what is done to jobs.

Jobs are sent by `sbatch`; the sacct of many jobs is in `asking`, which starts it early.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from hpcdist.backends.lines import CommandLines
from hpcdist.ending import Ending
from hpcdist.errors import HpcdistError, NotReadyError, UsageError
from hpcdist.job_status import JobStatus
from hpcdist.sacct_question import TIME_ENVIRONMENT
from hpcdist.status_rows import (
    ACCOUNTING_FIELDS,
    ENDING_FIELDS,
    QUEUE_FORMAT,
    SEPARATOR,
    parse_accounting,
    parse_controller,
    parse_endings,
    parse_queue,
)

COMMAND_TIMEOUT_S = 60.0
FORGOTTEN = "Slurm does not know it any more"
# In the words of squeue and scontrol (slurm_errno.h, ESLURM_INVALID_JOB_ID).
INVALID_JOB = "Invalid job id"
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


def query(job_ids: Iterable[str]) -> dict[str, list[JobStatus]]:
    """Where jobs are, by the id asked for; an array gives a status per task.

    The queue knows best about what lives or ended a moment ago; accounting knows the rest, and how jobs ended.
    `scontrol` stands in where accounting is off or lags behind.
    """
    wanted = list(dict.fromkeys(job_ids))
    if not wanted:
        return {}
    queued = _collect(wanted, _query_queue(wanted))
    unsettled = [job_id for job_id in wanted if not any(_lives(status) for status in queued.get(job_id, []))]
    accounted = _collect(unsettled, _query_accounting(unsettled))
    return {job_id: _settle(job_id, queued.get(job_id, []), accounted.get(job_id, [])) for job_id in wanted}


def _lives(status: JobStatus) -> bool:
    return not status.is_over


def _settle(job_id: str, queued: list[JobStatus], accounted: list[JobStatus]) -> list[JobStatus]:
    """What to believe about one job: the queue's states, with accounting's or the controller's exit codes."""
    if any(_lives(status) for status in queued):
        return queued
    rows = {status.job_id: status for status in accounted}
    if queued:
        # Not accounting alone: for a moment it shows an array as one finished job.
        if not all(status.job_id in rows and rows[status.job_id].is_over for status in queued):
            rows = {status.job_id: status for status in query_controller(job_id) or ()}
        return [rows.get(status.job_id, status) for status in queued]
    if accounted and not any(_lives(status) for status in accounted):
        return accounted
    # Not in the queue and not over: accounting lags behind, or knows nothing, or Slurm has lost the job.
    told = query_controller(job_id)
    if told is None:
        return accounted or [JobStatus(job_id=job_id, state="UNKNOWN", reason="Slurm's controller does not answer")]
    return told or [as_lost(status) for status in accounted] or [forgotten(job_id)]


def forgotten(job_id: str) -> JobStatus:
    """The status of a job that neither the controller nor accounting knows."""
    return JobStatus(job_id=job_id, state="UNKNOWN", reason=FORGOTTEN)


def as_lost(status: JobStatus) -> JobStatus:
    """What accounting has of a job that the controller does not know: one that is not over there never will be."""
    if status.is_over:
        return status
    reason = f"the controller has forgotten it, and accounting has it as {status.state} for ever"
    return msgspec.structs.replace(status, state="LOST", reason=reason)


def _collect(wanted: Iterable[str], statuses: Iterable[JobStatus]) -> dict[str, list[JobStatus]]:
    found: dict[str, list[JobStatus]] = {}
    wanted = set(wanted)
    for status in statuses:
        job_id = status.job_id or ""
        for key in {job_id, job_id.partition("_")[0]} & wanted:
            found.setdefault(key, []).append(status)
    return found


def _query_queue(job_ids: list[str]) -> list[JobStatus]:
    try:
        listed = run_command(["squeue", "-h", "-a", "-r", "-t", "all", "-j", ",".join(job_ids), "-o", QUEUE_FORMAT])
    except HpcdistError as error:
        if INVALID_JOB in error.message:
            return []
        raise
    return parse_queue(listed)


def _query_accounting(job_ids: list[str]) -> list[JobStatus]:
    if not job_ids:
        return []
    options = ["-X", "-n", "-P", f"--delimiter={SEPARATOR}", f"--format={ACCOUNTING_FIELDS}"]
    try:
        return parse_accounting(run_command(["sacct", *options, "-j", ",".join(job_ids)]))
    except HpcdistError:
        return []  # accounting is off


def query_endings(job_id: str) -> list[Ending]:
    """How each attempt of one job or array task ended, as accounting has it; nothing where it is off."""
    options = ["-D", "-n", "-P", f"--delimiter={SEPARATOR}", f"--format={ENDING_FIELDS}", "-j", job_id]
    try:
        return parse_endings(run_command(["sacct", *options], TIME_ENVIRONMENT)).get(job_id, [])
    except HpcdistError:
        return []


def query_controller(job_id: str) -> list[JobStatus] | None:
    """A job, or the tasks of an array, as the controller has them: none of a job it does not know.

    Returns:
        The statuses; None where the controller does not answer.
    """
    try:
        return parse_controller(show_job(job_id), job_id)
    except HpcdistError as error:
        return [] if INVALID_JOB in error.message else None


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


def read_accounting(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """All that `sacct` prints, for where it has to be in one piece (`--json`).

    Raises:
        NotReadyError: Accounting is off, or its database does not answer.
    """
    return "\n".join(CommandLines(["sacct", *arguments], env))


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
