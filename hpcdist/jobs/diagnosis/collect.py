"""Why a job ended as it did: gathers the evidence of each attempt, of Slurm, the ranks and the logs, and has it judged.

What can't be had (accounting is off, a log is gone) is left out.
"""

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.config.secrets import known_secrets, mask
from hpcdist.errors import HpcdistError
from hpcdist.jobs import efficiency as job_efficiency
from hpcdist.jobs.advice import Observation
from hpcdist.jobs.diagnosis.evidence import Evidence, Log
from hpcdist.jobs.diagnosis.rules import judge
from hpcdist.jobs.status import read_record
from hpcdist.launcher import local
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Attempt, Diagnosis, Ending, JobStatus, split_task
from hpcdist.records.ranks import RESTART_LINE, RankUsage
from hpcdist.records.store import Run
from hpcdist.slurm import queue
from hpcdist.text import printable, printable_line

LOG_TAIL_BYTES = 65536
LONGEST_LINE = 500
MOST_LOGS = 4096  # ranks


def explain(
    status: JobStatus, run: Run | None = None, usage: Efficiency | None = None, endings: Sequence[Ending] | None = None
) -> Diagnosis:
    """Say why a job or array task is where it is.

    Its run is None where hpcdist did not submit it. Its usage and endings are asked for unless given;
    with the endings given, Slurm is asked nothing more.
    """
    attempts = collect(status, run, usage, endings)
    causes = [judge(evidence) for evidence in attempts]
    earlier = zip(attempts[:-1], causes[:-1], strict=True)
    return Diagnosis(
        job_id=status.job_id,
        run=run.name if run else None,
        state=status.state,
        cause=causes[-1],
        earlier=tuple(Attempt(state=evidence.ending.state, cause=cause) for evidence, cause in earlier),
    )


def collect(
    status: JobStatus, run: Run | None, usage: Efficiency | None = None, known: Sequence[Ending] | None = None
) -> list[Evidence]:
    """The evidence about each attempt of a job or array task, oldest first."""
    task = split_task(status.job_id)[1]
    record = read_record(run) if run else None
    job = record.job if record else None
    ranks, logs = (run.task(task).ranks(), read_logs(run, task)) if run else ([], [])
    endings = _endings(status, run, known)
    used = usage or (_usage(status, run, job, ranks) if known is None else None)
    # Accounting may have forgotten attempts, and is behind where it shows fewer than the ranks have seen.
    last = max([len(endings) - 1, *(rank.restart_count for rank in ranks)])
    found = []
    for number, ending in enumerate(endings, last - len(endings) + 1):
        mine = tuple(rank for rank in ranks if rank.restart_count == number)
        evidence = Evidence(
            ending=ending,
            job_id=status.job_id,
            run=run.name if run else None,
            job=job,
            ranks=mine,
            logs=tuple(_of_attempt(log, number, last) for log in logs),
            usage=_observation(used, last - number, job, mine),
        )
        found.append(evidence)
    return found


def _endings(status: JobStatus, run: Run | None, known: Sequence[Ending] | None) -> list[Ending]:
    """How each attempt ended; of the last what the status says, where accounting lags behind it."""
    now = Ending(
        state=status.state,
        exit_code=status.exit_code,
        signal=status.signal,
        reason=printable(status.reason) if status.reason else None,
        nodes=status.nodes,
    )
    if status.job_id is None or (run and run.is_local):
        state = local.query(run) if run and run.is_local else None
        return [msgspec.structs.replace(now, ended_at_s=state.ended_at_s if state else None)]
    told = queue.query_endings([status.job_id]).get(status.job_id, []) if known is None else known
    endings = [_named(ending) for ending in told]
    if not endings:
        return [now]
    last = endings[-1]
    if last.state != status.state:
        changes = {"state": now.state, "exit_code": now.exit_code, "signal": now.signal, "reason": now.reason}
        endings[-1] = msgspec.structs.replace(last, **changes)
    elif now.reason and not last.reason:
        endings[-1] = msgspec.structs.replace(last, reason=now.reason)
    return endings


def _named(ending: Ending) -> Ending:
    """The ending with the name of who cancelled it in place of a number."""
    if not ending.cancelled_by:
        return ending
    try:
        name = pwd.getpwuid(int(ending.cancelled_by)).pw_name
    except (ValueError, KeyError, OverflowError):
        name = ending.cancelled_by
    return msgspec.structs.replace(ending, cancelled_by=printable(name))


def _usage(status: JobStatus, run: Run | None, job: JobSpec | None, ranks: Sequence[RankUsage]) -> Efficiency | None:
    """What the job used: by accounting, else by what its ranks measured."""
    if status.job_id is None or status.state == "PENDING":
        return None
    if run is None or not run.is_local:
        try:
            found = list(job_efficiency.iter_known([status.job_id], "sacct"))
            return found[0]
        except (HpcdistError, IndexError):
            pass
    if job is None or not ranks:
        return None
    state = local.query(run) if run and run.is_local else None
    return job_efficiency.from_ranks(status.job_id, job.layout, ranks, state)


def _observation(
    used: Efficiency | None, back: int, job: JobSpec | None, ranks: tuple[RankUsage, ...]
) -> Observation | None:
    """What the attempt so many before the last used."""
    if used is None or back > len(used.earlier_runs):
        return None
    return Observation(efficiency=(*used.earlier_runs, used)[-1 - back], job=job, ranks=ranks)


def read_logs(run: Run, task: str | None) -> list[Log]:
    """The ends of a job's logs: the batch script's and each task's."""
    found = sorted(path for path in run.task(task).logs.glob("*_log.out") if _task_of(path) is not None)
    secrets = find_secrets(run)
    logs = [_read_log(path, _task_of(path), secrets) for path in found[:MOST_LOGS]]
    batch = sorted(run.logs.glob(f"*_{task}_batch.out" if task else "*_batch.out"))
    batch = batch or list(run.logs.glob("start.log"))
    return [_read_log(path, None, secrets) for path in batch[-1:]] + logs


def _task_of(path: Path) -> int | None:
    word = path.name.removesuffix("_log.out").rpartition("_")[2]
    return int(word) if word.isdigit() and word.isascii() and len(word) < 10 else None


def find_secrets(run: Run) -> list[str]:
    """The values of secrets that may stand in a run's logs, as far as this process knows them."""
    record = read_record(run)
    if record is None:
        return known_secrets(os.environ)
    return known_secrets(os.environ, {*record.site.secrets, *record.job.secret_env})


def _read_log(path: Path, task: int | None, secrets: Sequence[str]) -> Log:
    """The last lines of a file, without secrets; nothing of one that is a link, no file, or can't be read."""
    lines: list[str] = []
    try:
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - LOG_TAIL_BYTES))
                data = file.read(LOG_TAIL_BYTES)
            lines = mask(data.decode(errors="replace"), secrets).split("\n")
            lines = lines[1:] if size > LOG_TAIL_BYTES else lines
    except OSError:
        pass
    return Log(path=str(path), task=task, lines=tuple(_clean(lines)))


def _clean(lines: Sequence[str]) -> list[str]:
    """Lines safe to print; of one that a progress bar wrote over and over, the last state; no empty ones at the end."""
    shown = [printable_line(line.rstrip("\r").rpartition("\r")[2][:LONGEST_LINE]).rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def _of_attempt(log: Log, number: int, last: int) -> Log:
    """What a log has of one attempt: a requeued job goes on in the same file."""
    if last == 0:
        return log
    if log.task is None:
        starts = [at for at, line in enumerate(log.lines) if line.startswith("run ") and ", logs in " in line]
        bounds = [*starts[-(last + 1) :], len(log.lines)]
        begin, end = (bounds[number], bounds[number + 1]) if len(bounds) == last + 2 else (0, len(log.lines))
    else:
        begin, end = _find(log.lines, number, 0), _find(log.lines, number + 1, len(log.lines))
    return msgspec.structs.replace(log, lines=log.lines[begin:end])


def _find(lines: Sequence[str], restart: int, default: int) -> int:
    line = RESTART_LINE.format(restart)
    return lines.index(line) if line in lines else default
