"""The only file that runs Slurm's commands."""

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hpcdist.errors import HpcdistError, NotReadyError, SubmitError, UsageError
from hpcdist.record import ENDED_STATES, JobStatus
from hpcdist.units import parse_elapsed

SEPARATOR = "\x1f"
COMMAND_TIMEOUT_S = 60.0
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


def sbatch_command(run_dir: Path, env: Mapping[str, str], *, array: bool) -> list[str]:
    """Sbatch with the options that submission adds to the script: only where the batch log goes."""
    log = "%A_%a_batch.out" if array else "%j_batch.out"
    drop = [word for name in nested_variables(env) for word in ("-u", name)]
    # A percent sign of the path itself would be taken for a pattern.
    output = f"{str(run_dir / 'logs').replace('%', '%%')}/{log}"
    return [*(["env", *drop] if drop else []), "sbatch", f"--output={output}"]


def submit(run: str, run_dir: Path, workdir: str, script: str, *, tasks: int, array: bool) -> str:
    """Sends a run's script; returns the job id.

    A submission that got no answer may have succeeded: the job is then looked for by the run's name.

    Raises:
        SubmitError: sbatch refused, or it can't be known whether the job exists.
    """
    # Only here: importing submitit takes longer than everything else a command does.
    from hpcdist.backends.submission import submit_slurm

    try:
        return submit_slurm(run_dir / "logs", script, sbatch_command(run_dir, os.environ, array=array), tasks)
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
    """The id of the job whose comment carries the run's name; None when there is none.

    Args:
        run: The run's name.
        workdir: Folder it was submitted from: another project may have a run of the same name.
    """
    user = getpass.getuser()
    columns = SEPARATOR.join(("%F", "%Z", "%k"))
    found = _find_marked(run_command(["squeue", "-h", "-a", "-t", "all", "-u", user, "-o", columns]), run, workdir)
    if found:
        return found
    rows = ["-X", "-n", "-P", f"--delimiter={SEPARATOR}", "-S", "now-7days"]
    try:
        listed = run_command(["sacct", *rows, "-u", user, "--format=JobID,WorkDir,Comment"])
    except HpcdistError:
        return None  # accounting is off: squeue is all there is
    return _find_marked(listed, run, workdir)


def _find_marked(listed: str, run: str, workdir: str) -> str | None:
    for line in listed.splitlines():
        columns = line.split(SEPARATOR, 2)
        if len(columns) == 3 and columns[1] == workdir and f"hpcdist:{run}" in columns[2].split():
            return columns[0].strip().partition("_")[0]
    return None


def test_only(script: Path) -> str:
    """Slurm's estimate of when and where a script would start, in sbatch's words (it writes them on stderr).

    Raises:
        SubmitError: sbatch would refuse the script.
    """
    drop = [word for name in nested_variables(os.environ) for word in ("-u", name)]
    done = subprocess.run(
        ["env", *drop, "sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False
    )
    words = done.stderr.strip().removeprefix("sbatch: ")
    if done.returncode != 0:
        raise SubmitError(words or f"sbatch --test-only: exit status {done.returncode}")
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
    columns = SEPARATOR.join(("%i", "%T", "%r", "%M", "%N", "%j"))
    try:
        listed = run_command(["squeue", "-h", "-a", "-r", "-t", "all", "-j", ",".join(job_ids), "-o", columns])
    except HpcdistError as error:
        if "Invalid job id" in error.message:
            return []
        raise
    found = []
    for line in listed.splitlines():
        job_id, state, reason, elapsed, nodes, name = line.split(SEPARATOR, 5)
        found.append(
            JobStatus(
                job_id=job_id,
                state=state,
                reason=None if reason == "None" else reason,
                elapsed_s=parse_elapsed(elapsed) if re.fullmatch(r"[0-9:-]+", elapsed) else None,
                nodes=nodes or None,
                name=name,
            )
        )
    return found


def _query_accounting(job_ids: list[str]) -> list[JobStatus]:
    if not job_ids:
        return []
    fields = "JobID,State,ExitCode,ElapsedRaw,NodeList,Reason,JobName"
    try:
        listed = run_command(
            ["sacct", "-X", "-n", "-P", f"--delimiter={SEPARATOR}", "-j", ",".join(job_ids), f"--format={fields}"]
        )
    except HpcdistError:
        return []  # accounting is off
    found = []
    for line in listed.splitlines():
        columns = line.split(SEPARATOR, 6)
        if len(columns) < 7:
            continue  # the rest of a job name with a line break in it
        job_id, state, exit_code, elapsed, nodes, reason, name = columns
        found.append(
            JobStatus(
                job_id=job_id,
                state=state.partition(" ")[0],  # "CANCELLED by 1000"
                reason=None if reason in ("None", "") else reason,
                elapsed_s=float(elapsed) if elapsed.isdigit() else None,
                nodes=None if nodes == "None assigned" else nodes or None,
                name=name,
                exit_code=_exit_code(exit_code, state),
                signal=_exit_signal(exit_code, state),
            )
        )
    return found


def _query_controller(job_id: str) -> list[JobStatus]:
    try:
        listed = run_command(["scontrol", "show", "job", "-o", job_id])
    except HpcdistError:
        return []
    found = []
    for line in listed.splitlines():
        fields = dict(re.findall(r"(?:^| )(\w+)=(\S*)", line))
        task = fields.get("ArrayTaskId", "")
        state = fields.get("JobState", "UNKNOWN")
        reason = fields.get("Reason", "None")
        found.append(
            JobStatus(
                job_id=f"{fields['ArrayJobId']}_{task}" if task.isdigit() else fields.get("JobId", job_id),
                state=state,
                reason=None if reason == "None" else reason,
                elapsed_s=parse_elapsed(fields["RunTime"]) if "RunTime" in fields else None,
                nodes=fields.get("NodeList", "").replace("(null)", "") or None,
                name=fields.get("JobName"),
                exit_code=_exit_code(fields.get("ExitCode", "0:0"), state),
                signal=_exit_signal(fields.get("ExitCode", "0:0"), state),
            )
        )
    return found


def _exit_code(text: str, state: str) -> int | None:
    """The exit status in Slurm's `status:signal`; None while there is none."""
    status, _, number = text.partition(":")
    return int(status) if status.isdigit() and number == "0" and state.partition(" ")[0] in ENDED_STATES else None


def _exit_signal(text: str, state: str) -> int | None:
    """The signal in Slurm's `status:signal`; None when there was none."""
    number = text.partition(":")[2]
    return int(number) if number.isdigit() and number != "0" and state.partition(" ")[0] in ENDED_STATES else None


def cancel(job_id: str) -> None:
    """Ends a job.

    Raises:
        HpcdistError: Slurm refused; the message has its own words.
    """
    run_command(["scancel", job_id])


def read_accounting(arguments: list[str], env: Mapping[str, str]) -> str:
    """What `sacct` prints.

    Raises:
        NotReadyError: Accounting is off, or its database does not answer.
    """
    try:
        return run_command(["sacct", *arguments], env)
    except HpcdistError as error:
        if "accounting storage is disabled" in error.message.lower() or "slurmdbd" in error.message.lower():
            raise NotReadyError(error.message, "hpcdist status follows the job without accounting") from None
        raise


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
