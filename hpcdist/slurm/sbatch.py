"""Sending scripts to Slurm, and finding the job of a submission that was cut off."""

import getpass
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcdist.errors import HpcdistError, NotReadyError, SubmitError
from hpcdist.slurm import commands
from hpcdist.slurm.queue import MARK_FIELDS, MARK_FORMAT, find_marked
from hpcdist.slurm.refusal import find_hint

RETRY_DELAYS_S = (1.0, 2.0, 4.0)
# What sbatch says when the controller may have taken the job although no answer came back.
UNANSWERED = ("timed out", "Unable to contact", "Socket", "Zero Bytes", "Communication")
# Set by the user, not by Slurm, and needed by the inner submission [submitit#1814].
USERS_OWN = frozenset(["SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"])


def nested_variables(env: Mapping[str, str]) -> list[str]:
    """Return the variables to drop before submitting from inside a job: those that Slurm set for that job.

    They would shape the new job ("cpus-per-task set by two different environment variables"); what the user
    set stays.
    """
    if "SLURM_JOB_ID" not in env:
        return []
    gpu = {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"}
    by_slurm = gpu if "SLURM_JOB_GPUS" in env or "SLURM_STEP_GPUS" in env else set()
    prefixes = ("SLURM_", "SLURMD_", "PMI_", "PMIX_", "HPCDIST_RUN", "HPCDIST_TB_DIR", "HPCDIST_METRICS")
    return sorted(name for name in env if name not in USERS_OWN and (name in by_slurm or name.startswith(prefixes)))


def outside_of_a_job(env: Mapping[str, str]) -> list[str]:
    """Return an `env -u ...` prefix that removes the enclosing job's Slurm variables; empty outside a job."""
    drop = [word for name in nested_variables(env) for word in ("-u", name)]
    return ["env", *drop] if drop else []


def sbatch_command(run_dir: Path, env: Mapping[str, str], *, array: bool, after: Sequence[str] = ()) -> list[str]:
    """Return sbatch with the options that submission adds to the script: where the batch log goes, what to wait for.

    The jobs to wait for are no part of the script, which stays the same when they are other ones.
    """
    log = "%A_%a_batch.out" if array else "%j_batch.out"
    # A percent sign of the path itself would be taken for a pattern.
    output = f"{str(run_dir / 'logs').replace('%', '%%')}/{log}"
    wait = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    return [*outside_of_a_job(env), "sbatch", f"--output={output}", *wait]


def submit(
    run: str, run_dir: Path, workdir: str, script: str, *, tasks: int, array: bool, after: Sequence[str] = ()
) -> str:
    """Send a run's script; return the job id.

    A submission that got no answer may have succeeded: the job is then looked for by the run's name.

    Raises:
        SubmitError: sbatch refused, or it can't be known whether the job exists.
    """
    # Only here: importing submitit takes longer than everything else a command does.
    from hpcdist.slurm.executor import submit_slurm

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
    """Return the id of the job that was sent from a folder with the run's name in its comment; None without one."""
    user = getpass.getuser()
    found = find_marked(commands.list_queue(MARK_FORMAT, "-t", "all", "-u", user), run, workdir)
    if found:
        return found
    try:
        listed = commands.list_accounting(MARK_FIELDS, "-X", "-S", "now-7days", "-u", user)
    except HpcdistError:
        return None  # accounting is off: squeue is all there is
    return find_marked(listed, run, workdir)


def check_srun(options: Mapping[str, str]) -> None:
    """Have srun read options that a script hands it; the job would wait in the queue and fail at them only then.

    srun takes its options in turn, and ends at `--version`, which comes last. Where that alone fails, or there is no
    srun here, nothing is known.

    Args:
        options: Their values by their names; "" of a flag.

    Raises:
        SubmitError: srun does not know one, or not its value.
    """
    if not options:
        return
    complaint = _ask_srun([f"--{key}={value}" if value else f"--{key}" for key, value in options.items()])
    if complaint and not _ask_srun([]):
        words = complaint.removeprefix("srun: ").removeprefix("error: ")
        raise SubmitError(f"srun would refuse its options: {words}", "srun --help lists them; --srun KEY=VALUE")


def _ask_srun(options: Sequence[str]) -> str:
    """Return the first line of its complaint; empty without one."""
    try:
        done = commands.run([*outside_of_a_job(os.environ), "srun", *options, "--version"])
    except (NotReadyError, OSError):
        return "no answer"
    said = done.stderr.decode(errors="replace").splitlines()
    return next(iter(said), f"exit status {done.returncode}") if done.returncode else ""


def test_only(script: str) -> str:
    """Return Slurm's estimate of when and where a script would start, in sbatch's words (it writes them on stderr).

    Raises:
        SubmitError: sbatch would refuse the script.
        NotReadyError: It did not answer.
        OSError: The script can't be written to a temporary file.
    """
    import tempfile  # most commands try nothing

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.sbatch")
        path.write_text(script)
        done = commands.run([*outside_of_a_job(os.environ), "sbatch", "--test-only", str(path)])
    words = done.stderr.decode(errors="replace").strip().removeprefix("sbatch: ")
    if done.returncode != 0:
        raise SubmitError(words or f"sbatch --test-only: exit status {done.returncode}", find_hint(words))
    return words
