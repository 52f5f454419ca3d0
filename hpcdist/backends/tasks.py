"""Many jobs and array tasks at once: a few of Slurm's commands, however many they are."""

import time
from collections.abc import Iterable, Sequence

import msgspec

from hpcdist.backends import slurm
from hpcdist.ending import Ending
from hpcdist.errors import HpcdistError
from hpcdist.job_status import JobStatus
from hpcdist.sacct_question import TIME_ENVIRONMENT, batch_job_ids, expand_job_id
from hpcdist.status_rows import (
    ACCOUNTING_FIELDS,
    ENDING_FIELDS,
    QUEUE_FORMAT,
    SEPARATOR,
    parse_accounting,
    parse_endings,
    parse_queue,
)

# The tasks of a row in full, where it would be cut at 64 characters (squeue(1), sacct(1)).
WHOLE_TASK_LISTS = {"SLURM_BITSTR_LEN": "0"}
# Slurm's database learns of an end later than its queue.
ACCOUNTING_LAG_S = 10.0
ACCOUNTING_POLL_S = 0.2
_ROWS = ["-n", "-P", f"--delimiter={SEPARATOR}"]


def query_tasks(wanted: Sequence[str], *, settled: bool = False) -> dict[str, JobStatus]:
    """Where jobs and array tasks are, by their own ids; those of which nobody tells are missing.

    Unlike `slurm.query`, which is about whole jobs, an array's tasks are found also when they left the queue before
    the others.

    Args:
        wanted: The ids.
        settled: Whether to wait until accounting knows of all that are over, so that there are figures of them. For up
            to a second after an array left the queue it has no row of some tasks [seen with 22.05.8]. Where it is off,
            or does not learn of them, nothing more is waited for.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    deadline = time.monotonic() + ACCOUNTING_LAG_S
    while True:
        found, accounted = _query_once(wanted)
        behind = accounted is not None and any(
            status.is_over and not (job_id in accounted and accounted[job_id].is_over)
            for job_id, status in found.items()
        )
        if not (settled and behind) or time.monotonic() > deadline:
            return found
        time.sleep(ACCOUNTING_POLL_S)


def _query_once(wanted: Sequence[str]) -> tuple[dict[str, JobStatus], dict[str, JobStatus] | None]:
    """Where jobs and tasks are, and what accounting has of them; None where it is off."""
    jobs = list(dict.fromkeys(job_id.partition("_")[0] for job_id in wanted))
    batches = list(batch_job_ids(jobs))
    queued = _by_task(row for batch in batches for row in _query_queue(batch))
    accounted: dict[str, JobStatus] | None
    try:
        accounted = _by_task(row for batch in batches for row in _query_accounting(batch))
    except HpcdistError:
        accounted = None
    found = {}
    for job_id in wanted:
        status = _settle(queued.get(job_id), (accounted or {}).get(job_id))
        if status is not None:
            found[job_id] = status
    # Not in the queue and not over: accounting is off, or behind (for a moment it shows an array as one job), or Slurm
    # has lost the job.
    doubtful = [one for one in wanted if one not in queued and not (one in found and found[one].is_over)]
    for job in dict.fromkeys(one.partition("_")[0] for one in doubtful):
        answer = slurm.query_controller(job)
        told = _by_task(answer or ())
        for one in doubtful:
            if one in told:
                found[one] = told[one]
            elif answer == [] and one.partition("_")[0] == job:
                found[one] = slurm.as_lost(found[one]) if one in found else slurm.forgotten(one)
    return found, accounted


def _settle(queued: JobStatus | None, accounted: JobStatus | None) -> JobStatus | None:
    """What to believe of one job: the queue while it lives, then accounting, which knows how it ended."""
    if queued is not None and not queued.is_over:
        return queued
    if accounted is not None and accounted.is_over:
        return accounted
    return queued or accounted


def _by_task(statuses: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """Statuses by the ids of their jobs or tasks; tasks that never ran are one row, `123_[4-9]`."""
    found = {}
    for status in statuses:
        try:
            names = expand_job_id(status.job_id or "")
        except HpcdistError:
            continue
        for name in names:
            found[name] = status if name == status.job_id else msgspec.structs.replace(status, job_id=name)
    return found


def _query_queue(jobs: Sequence[str]) -> list[JobStatus]:
    try:
        arguments = ["squeue", "-h", "-a", "-r", "-t", "all", "-j", ",".join(jobs), "-o", QUEUE_FORMAT]
        return parse_queue(slurm.run_command(arguments))
    except HpcdistError as error:
        if slurm.INVALID_JOB in error.message:
            return []
        raise


def _query_accounting(jobs: Sequence[str]) -> list[JobStatus]:
    arguments = ["sacct", "-X", *_ROWS, f"--format={ACCOUNTING_FIELDS}", "-j", ",".join(jobs)]
    return parse_accounting(slurm.run_command(arguments, WHOLE_TASK_LISTS))


def query_endings(job_ids: Sequence[str]) -> dict[str, list[Ending]]:
    """How each attempt of jobs and array tasks ended, by their ids; nothing where accounting is off."""
    found: dict[str, list[Ending]] = {}
    for batch in batch_job_ids(job_ids):
        arguments = ["sacct", "-D", *_ROWS, f"--format={ENDING_FIELDS}", "-j", ",".join(batch)]
        try:
            found |= parse_endings(slurm.run_command(arguments, TIME_ENVIRONMENT))
        except HpcdistError:
            return {}
    return found
