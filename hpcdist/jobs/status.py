"""Where runs are: asked of Slurm in one go, of the local supervisor, or read from what a run left."""

import functools
import time
from collections.abc import Callable, Sequence

import msgspec

from hpcdist.errors import HpcdistError
from hpcdist.launcher import local
from hpcdist.records.job import JobStatus, join_task, split_task
from hpcdist.records.store import Run, RunRecord
from hpcdist.slurm import commands, queue

LONGEST_PAUSE_S = 10.0


def pause_s(waited_s: float, least_s: float) -> float:
    """How long to leave Slurm alone before it is asked again: a sixtieth of what was waited so far, 10 s at most.

    Its controller answers one question after the other, and there are people who wait for days.
    """
    return max(least_s, min(LONGEST_PAUSE_S, waited_s / 60))


def furthest(statuses: Sequence[JobStatus]) -> JobStatus:
    """The status that speaks for several: one that is not over, else one that went wrong, else the first."""
    alive = [status for status in statuses if not status.is_over]
    wrong = [status for status in statuses if status.state != "COMPLETED"]
    return (alive or wrong or list(statuses))[0]


def query(runs: Sequence[tuple[Run, str | None]], *, settled: bool = False) -> list[list[JobStatus]]:
    """Return where runs, or the array task (`4` of `123_4`) named with each, are: a list each, a status per task.

    `settled` waits until accounting knows of all that are over.
    """
    ids = [join_task(run.job_id, task) for run, task in runs]
    wanted = [job_id for (run, _), job_id in zip(runs, ids, strict=True) if job_id and not run.is_local]
    try:
        answers, silence = queue.query(wanted, settled=settled), None
    except HpcdistError as error:
        # A list of runs is of use without Slurm too.
        answers, silence = {}, error.message.splitlines()[0]
    here = functools.cache(_name_cluster)
    found = []
    for (run, task), job_id in zip(runs, ids, strict=True):
        if run.is_local:
            statuses = [_local_status(run, job_id)]
        elif job_id is None:
            statuses = [_unsent_status(run)]
        else:
            statuses = answers.get(job_id, [JobStatus(job_id=job_id, state="UNKNOWN", reason=silence)])
            if task is None and len(statuses) == 1 and queue.is_forgotten(statuses[0]):
                begun = sorted(int(path.name) for path in run.path.glob("[0-9]*") if path.name.isdecimal())
                statuses = [
                    msgspec.structs.replace(statuses[0], job_id=join_task(job_id, str(one))) for one in begun
                ] or statuses
            statuses = [_settle_forgotten(status, run, here) for status in statuses]
        found.append([_named(status, run) for status in statuses])
    return found


def _settle_forgotten(status: JobStatus, run: Run, here: Callable[[], str | None]) -> JobStatus:
    """Say what can be said of a job that Slurm does not know any more: what its ranks wrote, or else that it is `LOST`.

    Slurm forgets a job some minutes after its end where it keeps no accounting, and one that is seconds old when its
    controller crashes. The status of any other job stays as it is.
    """
    if status.state != "LOST" and not queue.is_forgotten(status):
        return status
    replace = functools.partial(msgspec.structs.replace, status)
    record = read_record(run)
    cluster = record.cluster if record else None
    if cluster and here() not in (cluster, None):
        return replace(state="UNKNOWN", reason=f"it was sent to the cluster {cluster}, which is not this one")
    ranks = run.task(split_task(status.job_id)[1]).ranks()
    ranks = [rank for rank in ranks if rank.job_id in (None, status.job_id)]
    ends = [rank.ended_at_s for rank in ranks if rank.ended_at_s is not None]
    if not ranks or len(ends) < max(rank.world_size for rank in ranks):
        return replace(state="LOST")
    failed = next((rank for rank in ranks if rank.exit_code != 0), None)
    return replace(
        state="FAILED" if failed else "COMPLETED",
        reason=None,
        exit_code=failed.exit_code if failed else 0,
        signal=failed.signal if failed else None,
        elapsed_s=max(ends) - min(rank.started_at_s for rank in ranks),
    )


def read_record(run: Run) -> RunRecord | None:
    """Return what was submitted; None where nobody wrote that down or it can't be read."""
    try:
        return run.record()
    except HpcdistError:
        return None


def _name_cluster() -> str | None:
    """The name of the cluster that is asked; None where it does not answer."""
    try:
        return commands.read_config().get("ClusterName")
    except HpcdistError:
        return None


def _named(status: JobStatus, run: Run) -> JobStatus:
    named = msgspec.structs.replace(status, run=run.name)
    record = read_record(run)
    return msgspec.structs.replace(named, name=record.job.name, layout=record.job.layout.name) if record else named


def _unsent_status(run: Run) -> JobStatus:
    record = read_record(run)
    if record and record.refused:
        return JobStatus(job_id=None, state="REFUSED", reason=record.refused)
    return JobStatus(job_id=None, state="UNKNOWN", reason="was never submitted")


def _local_status(run: Run, job_id: str | None) -> JobStatus:
    state = local.query(run)
    if state is None:
        return JobStatus(job_id=job_id, state="UNKNOWN", reason="did not start")
    code = state.exit_code
    return JobStatus(
        job_id=job_id,
        state=state.state,
        reason="its supervisor was killed" if state.state == "FAILED" and code is None else None,
        elapsed_s=(state.ended_at_s or time.time()) - state.started_at_s,
        nodes=state.host,
        exit_code=code,
    )
