"""What the files in a run's folder say of it: `job.json` and a local run's `local.json`. Pure."""

from typing import Literal

import msgspec

from hpcdist.config.job import Backend, JobSpec
from hpcdist.config.site import Site


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`job.json`: what a run is.

    Unknown fields are ignored when read, so that an older hpcdist reads a newer one's files.

    Attributes:
        run: The run's name.
        job: What was asked for.
        site: The site's settings at that time.
        backend: Where it was sent.
        cluster: Slurm's cluster name; None for a local run, or before it was submitted.
        job_id: Slurm job id or `local-N`; None until the job is known to exist.
        refused: Slurm's words when it refused the job.
        workdir: Folder the command starts in.
        python: Interpreter that starts in the job; None in records of hpcdist before 0.2.
        template: Template file that was given in place of the layout's own; None without one.
        rerun_of: Run that this one repeats; None of a first one.
        study: Study that it is of; None of any other run.
        created_at_s: Seconds since the epoch.
        git_commit: Commit of the working folder, with `+changes` when it had any; None outside a checkout.
        versions: Versions of Python, hpcdist, torch and the like.
        slurm_version: Slurm's release.
    """

    run: str
    job: JobSpec
    site: Site
    backend: Backend
    cluster: str | None = None
    job_id: str | None = None
    refused: str | None = None
    workdir: str
    python: str | None = None
    template: str | None = None
    rerun_of: str | None = None
    study: str | None = None
    created_at_s: float
    git_commit: str | None = None
    versions: dict[str, str] = {}
    slurm_version: str | None = None


def state_file(node_rank: int) -> str:
    """Name of the file with the state of a node of a local run: each machine on a shared folder has one."""
    return f"local.{node_rank}.json" if node_rank else "local.json"


class LocalState(msgspec.Struct, frozen=True, kw_only=True):
    """`local.json`: the process that supervises a local run.

    Attributes:
        host: Host name of the machine it runs on.
        boot_id: That machine's boot id, so that a process id of an earlier boot is never taken for it.
        pid: Its process id.
        pid_started: Its start time in clock ticks since boot (proc(5), field 22).
        state: Slurm's word for where it is.
        started_at_s: Start, seconds since the epoch.
        ended_at_s: End, seconds since the epoch.
        exit_code: The run's exit status.
        gpus: GPUs given to it.
    """

    host: str
    boot_id: str
    pid: int
    pid_started: int
    state: Literal["RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"]
    started_at_s: float
    ended_at_s: float | None = None
    exit_code: int | None = None
    gpus: int = 0
