"""Send a prepared job: its run complete on disk first, then the scheduler, then the job's id."""

import contextlib
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hpcdist.config.secrets import exported, require_secrets
from hpcdist.errors import HpcdistError, NotFoundError, SubmitError, UsageError
from hpcdist.launcher import local
from hpcdist.records.store import Run, RunRecord, Store
from hpcdist.slurm import cluster as slurm_cluster
from hpcdist.slurm import commands, sbatch
from hpcdist.slurm.refusal import find_hint
from hpcdist.submission.prepare import PreparedJob

PACKAGES = ("hpcdist", "torch", "torchvision", "pytorch-lightning", "submitit", "tensorboard", "numpy")
GIT_TIMEOUT_S = 10.0


def read_versions() -> dict[str, str]:
    """Versions of Python and of the packages a training depends on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def read_git_commit(folder: str) -> str | None:
    """The folder's commit, with `+changes` when tracked files differ from it; None outside a checkout."""
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def compare(record: RunRecord) -> dict[str, tuple[str | None, str | None]]:
    """What is not as it was when a run was submitted: then and now, by name."""
    then: dict[str, str | None] = {**record.versions, "git commit": record.git_commit}
    now: dict[str, str | None] = {**read_versions(), "git commit": read_git_commit(record.workdir)}
    return {name: (then.get(name), now.get(name)) for name in then | now if then.get(name) != now.get(name)}


def send(prepared: PreparedJob, after: Sequence[str] = ()) -> Run:
    """Send what `prepare` made; a run that was sent before is returned, never sent twice.

    `after` are Slurm jobs to wait for, however they end.

    Raises:
        SubmitError: The scheduler refused.
        UsageError: A run of that name exists with another script.
        HpcdistError: The run can't be written.
    """
    store = Store(Path(prepared.paths.root))
    config = commands.read_config() if prepared.backend == "slurm" else {}
    run = store.run(prepared.run)
    known = run.path.is_dir()
    if not (run.path / "job.json").is_file():
        require_secrets(prepared.spec.secret_env, prepared.secrets)
    store.claim(prepared.run)
    # Held from before the record is written: two that submit one run at once must not each find none, or the later
    # one would overwrite the other's job id and send the job again.
    with run.locked():
        if run.script.is_file() and run.script.read_text() != prepared.script:
            raise UsageError(f"run {run.name} exists with another script", "choose another --run, or leave it out")
        has_record = (run.path / "job.json").is_file()
        if not has_record:
            store.create(describe_run(prepared, config), prepared.script)
        record = run.record()
        if record.job_id is None:
            with exported(prepared.secrets):
                _send_held(prepared, run, record, store, config, again=known or has_record, after=after)
    return run


def find_sent(run: Run) -> str | None:
    """The id of a run's job, looked for in Slurm where nobody wrote it down; None of one that was never sent.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    try:
        record = run.record()
    except NotFoundError:
        return None
    if record.job_id is not None or record.backend == "local":
        return record.job_id
    with run.locked():
        job_id = sbatch.find_by_run(run.name, record.workdir)
        if job_id is not None:
            cluster = commands.read_config().get("ClusterName")
            _write(run, msgspec.structs.replace(record, job_id=job_id, cluster=cluster, refused=None))
    return job_id


def _send_held(
    prepared: PreparedJob,
    run: Run,
    record: RunRecord,
    store: Store,
    config: Mapping[str, str],
    *,
    again: bool,
    after: Sequence[str],
) -> None:
    if prepared.backend == "local":
        record = msgspec.structs.replace(record, job_id=store.next_local_id(), refused=None)
        _write(run, record)
        local.submit(run, prepared.spec)
        return
    # A retry after a crash: the job may exist although nobody wrote its id down.
    job_id = sbatch.find_by_run(run.name, record.workdir) if again else None
    try:
        job_id = job_id or _submit_new(prepared, run, record, config, after)
    except SubmitError as error:
        with contextlib.suppress(OSError):  # the refusal itself is what has to be told
            run.write_record(msgspec.structs.replace(record, refused=error.message))
        raise
    _write(run, msgspec.structs.replace(record, job_id=job_id, cluster=config.get("ClusterName"), refused=None))


def _submit_new(
    prepared: PreparedJob, run: Run, record: RunRecord, config: Mapping[str, str], after: Sequence[str]
) -> str:
    sbatch.check_srun(prepared.spec.srun)
    job_id = sbatch.submit(
        run.name,
        run.path,
        record.workdir,
        prepared.script,
        tasks=prepared.spec.layout.world_size,
        array=prepared.spec.array is not None,
        after=after,
    )
    # Where it is not NO, Slurm refuses such a job itself (slurm.conf(5)).
    reason = slurm_cluster.find_closed_door(job_id) if config.get("EnforcePartLimits") == "NO" else None
    if reason is None:
        return job_id
    with contextlib.suppress(HpcdistError):
        commands.cancel(job_id)
    raise SubmitError(f"Slurm would never start it: {reason}", find_hint(reason))


def _write(run: Run, record: RunRecord) -> None:
    """Writes the job's id down.

    Raises:
        HpcdistError: It can't be; the job is found again by the run's name.
    """
    try:
        run.write_record(record)
    except OSError as error:
        sent = f"job {record.job_id} was submitted" if record.backend == "slurm" else "nothing was started"
        raise HpcdistError(
            f"{sent}, and its id can't be written to {run.path / 'job.json'}: {error.strerror}",
            "free some space, then: hpcdist doctor --fix",
        ) from None


def describe_run(prepared: PreparedJob, config: Mapping[str, str]) -> RunRecord:
    """The record of a run that is about to begin."""
    return RunRecord(
        run=prepared.run,
        job=prepared.spec,
        site=prepared.site,
        backend=prepared.backend,
        workdir=prepared.paths.workdir,
        created_at_s=time.time(),
        python=prepared.paths.python,
        template=prepared.template,
        rerun_of=prepared.rerun_of,
        study=prepared.study,
        git_commit=read_git_commit(prepared.paths.workdir),
        versions=read_versions(),
        slurm_version=config.get("SLURM_VERSION"),
    )
