"""The only file that runs Slurm's commands, but for the sacct of many jobs, which `asking` starts early."""

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hpcdist.backends.lines import CommandLines
from hpcdist.ending import Ending
from hpcdist.errors import HpcdistError, NotReadyError, SubmitError, UsageError
from hpcdist.record import JobStatus
from hpcdist.refusal import find_hint
from hpcdist.sacct_question import TIME_ENVIRONMENT
from hpcdist.status_rows import (
    ACCOUNTING_FIELDS,
    ENDING_FIELDS,
    MARK_FIELDS,
    MARK_FORMAT,
    QUEUE_FORMAT,
    SEPARATOR,
    find_marked,
    parse_accounting,
    parse_controller,
    parse_endings,
    parse_queue,
)

COMMAND_TIMEOUT_S = 60.0
# sstat asks every node of a job, and a dead one answers nothing.
LIVE_TIMEOUT_S = 15.0
RETRY_DELAYS_S = (1.0, 2.0, 4.0)
# What sbatch says when the controller may have taken the job although no answer came back.
UNANSWERED = ("timed out", "Unable to contact", "Socket", "Zero Bytes", "Communication")
# Set by the user, not by Slurm, and needed by the inner submission [submitit#1814].
USERS_OWN = frozenset(["SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"])


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


def nested_variables(env: Mapping[str, str]) -> list[str]:
    """Variables to drop before submitting from inside a job: those that Slurm set for that job.

    They would shape the new job ("cpus-per-task set by two different environment variables"); what the user
    set stays.
    """
    if "SLURM_JOB_ID" not in env:
        return []
    gpu = {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"}
    by_slurm = gpu if "SLURM_JOB_GPUS" in env or "SLURM_STEP_GPUS" in env else set()
    prefixes = ("SLURM_", "SLURMD_", "PMI_", "PMIX_", "HPCDIST_RUN", "HPCDIST_TB_DIR", "HPCDIST_METRICS")
    return sorted(name for name in env if name not in USERS_OWN and (name in by_slurm or name.startswith(prefixes)))


def sbatch_command(run_dir: Path, env: Mapping[str, str], *, array: bool, after: Sequence[str] = ()) -> list[str]:
    """Sbatch with the options that submission adds to the script: where the batch log goes, what to wait for.

    The jobs to wait for are no part of the script, which stays the same when they are other ones.
    """
    log = "%A_%a_batch.out" if array else "%j_batch.out"
    drop = [word for name in nested_variables(env) for word in ("-u", name)]
    # A percent sign of the path itself would be taken for a pattern.
    output = f"{str(run_dir / 'logs').replace('%', '%%')}/{log}"
    wait = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    return [*(["env", *drop] if drop else []), "sbatch", f"--output={output}", *wait]


def submit(
    run: str, run_dir: Path, workdir: str, script: str, *, tasks: int, array: bool, after: Sequence[str] = ()
) -> str:
    """Sends a run's script; returns the job id.

    A submission that got no answer may have succeeded: the job is then looked for by the run's name.

    Raises:
        SubmitError: sbatch refused, or it can't be known whether the job exists.
    """
    # Only here: importing submitit takes longer than everything else a command does.
    from hpcdist.backends.submission import submit_slurm

    try:
        return submit_slurm(
            run_dir / "logs", script, sbatch_command(run_dir, os.environ, array=array, after=after), tasks
        )
    except SubmitError as error:
        if not any(sign in error.message for sign in UNANSWERED):
            raise
        for delay_s in RETRY_DELAYS_S:
            time.sleep(delay_s)
            try:
                found = find_by_run(run, workdir)
            except HpcdistError:
                continue
            if found:
                return found
        raise SubmitError(
            f"{error.message}; it is not known whether the job exists",
            f"when Slurm answers again: hpcdist submit with the same options and --run {run}",
        ) from None


def find_by_run(run: str, workdir: str) -> str | None:
    """The id of the job that was submitted from a folder and whose comment carries the run's name; None without one."""
    user = getpass.getuser()
    queued = run_command(["squeue", "-h", "-a", "-t", "all", "-u", user, "-o", MARK_FORMAT])
    found = find_marked(queued, run, workdir)
    if found:
        return found
    rows = ["-X", "-n", "-P", f"--delimiter={SEPARATOR}", "-S", "now-7days"]
    try:
        listed = run_command(["sacct", *rows, "-u", user, f"--format={MARK_FIELDS}"])
    except HpcdistError:
        return None  # accounting is off: squeue is all there is
    return find_marked(listed, run, workdir)


def test_only(script: Path) -> str:
    """Slurm's estimate of when and where a script would start, in sbatch's words (it writes them on stderr).

    Raises:
        SubmitError: sbatch would refuse the script.
        NotReadyError: It did not answer.
    """
    drop = [word for name in nested_variables(os.environ) for word in ("-u", name)]
    command = ["env", *drop, "sbatch", "--test-only", str(script)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotReadyError(f"sbatch did not answer within {COMMAND_TIMEOUT_S:.0f} s", "try again") from None
    words = done.stderr.strip().removeprefix("sbatch: ")
    if done.returncode != 0:
        raise SubmitError(words or f"sbatch --test-only: exit status {done.returncode}", find_hint(words))
    return words


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
            rows = {status.job_id: status for status in _query_controller(job_id)}
        return [rows.get(status.job_id, status) for status in queued]
    if accounted and not any(_lives(status) for status in accounted):
        return accounted
    # Not in the queue and not over: accounting lags behind, or knows nothing.
    return _query_controller(job_id) or accounted or [JobStatus(job_id=job_id, state="UNKNOWN")]


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
        if "Invalid job id" in error.message:
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


def _query_controller(job_id: str) -> list[JobStatus]:
    try:
        return parse_controller(show_job(job_id), job_id)
    except HpcdistError:
        return []


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
