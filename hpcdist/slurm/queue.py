"""Where jobs and array tasks are, and how they ended: squeue, `sacct -X` and scontrol.

Sources: squeue(1) `--format`, sacct(1) `--delimiter`, `scontrol show job --oneliner`, run with Slurm 22.05.8. All
print names and comments raw, with whatever their owner put into them: such a field comes last, nothing but a line feed
ends a line, and a line that is no row is left out.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from hpcdist.errors import HpcdistError, ParseError
from hpcdist.records.job import CONTINUED_STATES, ENDED_STATES, Ending, JobStatus, Step, split_task
from hpcdist.slurm import commands
from hpcdist.slurm.commands import SEPARATOR
from hpcdist.slurm.sacct_query import TIME_ENVIRONMENT, batch_job_ids, expand_job_id
from hpcdist.slurm.sacct_rows import ROW_ID
from hpcdist.units import parse_elapsed

QUEUE_FORMAT = SEPARATOR.join(("%i", "%T", "%r", "%M", "%N", "%j"))
ACCOUNTING_FIELDS = "JobID,State,ExitCode,ElapsedRaw,NodeList,Reason,JobName"
ENDING_FIELDS = "JobID,State,ExitCode,Submit,Start,End,NodeList,Reason"
MARK_FORMAT = SEPARATOR.join(("%F", "%Z", "%k"))
MARK_FIELDS = "JobID,WorkDir,Comment"

_STATE = re.compile(r"[A-Z_]{1,40}")


def parse_queue(listed: str) -> list[JobStatus]:
    """Parse statuses from squeue's rows in `QUEUE_FORMAT`."""
    return [
        _status(job_id, state, "" if state == "COMPLETED" else reason, _elapsed(elapsed), nodes, name=name)
        for job_id, state, reason, elapsed, nodes, name in _rows(listed, 6)
    ]


def parse_accounting(listed: str) -> list[JobStatus]:
    """Parse statuses from the rows of `sacct -X` with `ACCOUNTING_FIELDS`."""
    found = []
    for job_id, words, code, elapsed, nodes, reason, name in _rows(listed, 7):
        state = words.partition(" ")[0]  # "CANCELLED by 1000"
        # Of a job that started, accounting keeps why it had waited.
        why = "" if state in ("COMPLETED", "RUNNING") else reason
        elapsed_s = float(elapsed) if elapsed.isdigit() else None
        found.append(_status(job_id, state, why, elapsed_s, nodes, name=name, code=code))
    return found


def parse_controller(listed: str, job_id: str) -> list[JobStatus]:
    """Parse statuses from what scontrol says of the job that was asked for, one per task of an array."""
    found = []
    for record in re.split(r"\n(?=JobId=)", listed):
        fields = parse_job_fields(record)
        if not fields:
            continue
        task, array = fields.get("ArrayTaskId", ""), fields.get("ArrayJobId", "")
        found.append(
            _status(
                f"{array}_{task}" if array and task.isdigit() else fields.get("JobId", job_id),
                fields.get("JobState", "UNKNOWN"),
                fields.get("Reason", ""),
                _elapsed(fields.get("RunTime", "")),
                fields.get("NodeList", ""),
                name=fields.get("JobName"),
                code=fields.get("ExitCode", "0:0"),
            )
        )
    return found


def _status(
    job_id: str, state: str, reason: str, elapsed_s: float | None, nodes: str, *, name: str | None, code: str = ""
) -> JobStatus:
    exit_code, signal = _parse_exit(code, state)
    return JobStatus(
        job_id=job_id,
        state=state,
        reason=_known(reason),
        elapsed_s=elapsed_s,
        nodes=_known(nodes),
        name=name,
        exit_code=exit_code,
        signal=signal,
    )


def parse_endings(listed: str) -> dict[str, list[Ending]]:
    """Parse how each attempt of each job ended, oldest first, from `sacct --duplicates` with `ENDING_FIELDS`.

    Of unrelated jobs that had one id, the last is kept.
    """
    found: dict[str, list[Ending]] = {}
    for row_id, words, status, *times, node_list, reason in _rows(listed, 8):
        job_id, _, step = row_id.partition(".")
        state, _, by = words.partition(" by ")
        code, signal = _parse_exit(status, state)
        attempts = found.setdefault(job_id, [])
        if step and attempts:
            steps = (*attempts[-1].steps, Step(name=step, state=state, exit_code=code, signal=signal))
            attempts[-1] = msgspec.structs.replace(attempts[-1], steps=steps)
            continue
        if attempts and attempts[-1].state not in CONTINUED_STATES:
            attempts.clear()
        submitted, started, ended = (float(cell) if cell.isdigit() else None for cell in times)
        nodes = _known(node_list)
        attempts.append(
            Ending(
                state=state,
                exit_code=code,
                signal=signal,
                reason=_known(reason),
                cancelled_by=by or None,
                nodes=nodes,
                submitted_at_s=submitted,
                started_at_s=started if nodes else None,
                ended_at_s=ended,
            )
        )
    return found


def parse_job_fields(record: str) -> dict[str, str]:
    """Return the fields of one job as `scontrol show job --oneliner` prints them, each up to its first blank."""
    return dict(re.findall(r"(?:^| )(\w+)=(\S*)", record))


class RunMarker(msgspec.Struct, frozen=True, kw_only=True):
    """A job that carries the name of a run in its comment.

    Attributes:
        job_id: Its id; of an array that of the whole.
        workdir: The folder it was submitted from.
        run: The run's name.
    """

    job_id: str
    workdir: str
    run: str


def parse_marks(listed: str) -> list[RunMarker]:
    """Return the jobs of runs among rows in `MARK_FORMAT` or `MARK_FIELDS`."""
    found = []
    for line in listed.split("\n"):
        columns = line.split(SEPARATOR, 2)
        if len(columns) == 3 and ROW_ID.fullmatch(columns[0].strip()):
            job_id = split_task(columns[0].strip())[0]
            runs = [word.removeprefix("hpcdist:") for word in columns[2].split() if word.startswith("hpcdist:")]
            found += [RunMarker(job_id=job_id, workdir=columns[1], run=run) for run in runs]
    return found


def find_marked(listed: str, run: str, workdir: str) -> str | None:
    """Return the id of the job in `MARK_FORMAT` or `MARK_FIELDS` whose comment names a run of this folder."""
    marks = parse_marks(listed)
    return next((mark.job_id for mark in marks if mark.workdir == workdir and mark.run == run), None)


def _rows(listed: str, width: int) -> Iterator[list[str]]:
    """Yield the cells of each row; the last takes what is left of its line."""
    for line in listed.split("\n"):
        cells = line.split(SEPARATOR, width - 1)
        if len(cells) == width and ROW_ID.fullmatch(cells[0]) and _STATE.match(cells[1]):
            yield cells


def _elapsed(text: str) -> float | None:
    try:
        return parse_elapsed(text)
    except ParseError:
        return None  # "INVALID", or nothing


def _known(text: str) -> str | None:
    """Return a cell, or None for the words that squeue, sacct and scontrol have for nothing."""
    return None if text in ("", "None", "None assigned", "(null)") else text


def _parse_exit(text: str, state: str) -> tuple[int | None, int | None]:
    """Parse Slurm's `status:signal`: one of exit status and signal is None, and both are before a job's end."""
    status, _, signal = text.partition(":")
    if state.partition(" ")[0] not in ENDED_STATES:
        return None, None
    if signal.isdigit() and signal != "0":
        return None, int(signal)
    return int(status) if status.isdigit() and signal == "0" else None, None


FORGOTTEN = "Slurm does not know it any more"
# In the words of squeue and scontrol (slurm_errno.h, ESLURM_INVALID_JOB_ID).
INVALID_JOB = "Invalid job id"
# The tasks of a row in full, where it would be cut at 64 characters (squeue(1), sacct(1)).
WHOLE_TASK_LISTS = {"SLURM_BITSTR_LEN": "0"}
# Slurm's database learns of an end later than its queue.
ACCOUNTING_LAG_S = 10.0
ACCOUNTING_POLL_S = 0.2


def query(job_ids: Iterable[str], *, settled: bool = False) -> dict[str, list[JobStatus]]:
    """Ask where jobs and array tasks are, by the id asked for; of an array one status per task, in their order.

    The queue knows best about what lives; accounting knows the rest, also the tasks of an array that left the queue
    before the others (MinJobAge after their end), and how jobs ended. Where it is off or lags behind, the controller
    is asked.

    Args:
        job_ids: Jobs `123` and array tasks `123_4` or `123_[2-5]`.
        settled: Whether to wait until accounting knows of all that are over, so that there are figures of them. For up
            to a second after an array left the queue it has no row of some tasks [seen with 22.05.8]. Where it is off,
            or does not learn of them, nothing more is waited for.

    Returns:
        At least one status per id; `UNKNOWN` is one of which nobody tells, with `FORGOTTEN` for its reason where the
        controller answered.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    asked = list(dict.fromkeys(job_ids))
    deadline = time.monotonic() + ACCOUNTING_LAG_S
    while asked:
        answers = _Answers(asked)
        if not (settled and any(map(answers.is_behind, asked))) or time.monotonic() > deadline:
            return {one: [answers.settle(name) for name in answers.names(one)] for one in asked}
        time.sleep(ACCOUNTING_POLL_S)
    return {}


class _Answers:
    """What Slurm says of some jobs: statuses by the ids of jobs and array tasks.

    Attributes:
        queued: What the queue has.
        accounted: What accounting has of arrays, and of what does not live in the queue; None where it is off.
        told: What the controller says of the jobs in doubt.
        silent: The jobs in doubt of which it says nothing.
    """

    def __init__(self, asked: Sequence[str]) -> None:
        jobs = list(dict.fromkeys(map(_job_of, asked)))
        self.queued = _by_name(row for batch in batch_job_ids(jobs) for row in _query_queue(batch))
        arrays = {_job_of(name) for name in self.queued if "_" in name}
        unsure = [job for job in jobs if job in arrays or not self._lives(job)]
        listed = _list_accounting(unsure, ACCOUNTING_FIELDS, "-X", WHOLE_TASK_LISTS)
        self.accounted = None if listed is None else _by_name(parse_accounting(listed))
        self.told: dict[str, JobStatus] = {}
        self.silent: set[str] = set()
        self._tasks = self._sort_tasks()
        # Accounting is off, or behind (for a moment it shows an array as one job), or Slurm has lost the job.
        doubtful = [
            name for one in asked for name in self.names(one) if not self._lives(name) and not self._ended(name)
        ]
        for job in dict.fromkeys(map(_job_of, doubtful)):
            answer = _query_controller(job)
            if answer is None:
                self.silent.add(job)
            else:
                self.told |= _by_name(answer)
        self._tasks = self._sort_tasks()

    def names(self, one: str) -> list[str]:
        """Return the ids that one stands for: itself, or the tasks that are known of an array."""
        return expand_job_id(one) if "_" in one else self._tasks.get(one, [one])

    def settle(self, name: str) -> JobStatus:
        """Return what to believe of a job or task: the queue while it lives, then accounting, which knows its end."""
        if self._lives(name):
            return self.queued[name]
        accounted = (self.accounted or {}).get(name)
        status = accounted if self._ended(name) else self.told.get(name) or self.queued.get(name)
        if status is not None:
            return status
        if _job_of(name) in self.silent:
            return accounted or JobStatus(job_id=name, state="UNKNOWN", reason="Slurm's controller does not answer")
        return _as_lost(accounted) if accounted else JobStatus(job_id=name, state="UNKNOWN", reason=FORGOTTEN)

    def is_behind(self, one: str) -> bool:
        """Return whether accounting will yet learn that a job, or a task of it, is over."""
        names = self.names(one)
        return self.accounted is not None and any(self.settle(it).is_over and not self._ended(it) for it in names)

    def _lives(self, name: str) -> bool:
        return name in self.queued and not self.queued[name].is_over

    def _ended(self, name: str) -> bool:
        return self.accounted is not None and name in self.accounted and self.accounted[name].is_over

    def _sort_tasks(self) -> dict[str, list[str]]:
        tasks: dict[str, set[int]] = {}
        for name in (*self.queued, *(self.accounted or ()), *self.told):
            job, task = split_task(name)
            if task:
                tasks.setdefault(job, set()).add(int(task))
        return {job: [f"{job}_{number}" for number in sorted(numbers)] for job, numbers in tasks.items()}


def _job_of(name: str) -> str:
    return split_task(name)[0]


def is_forgotten(status: JobStatus) -> bool:
    """Return whether neither the controller nor accounting knows the job."""
    return (status.state, status.reason) == ("UNKNOWN", FORGOTTEN)


def _as_lost(status: JobStatus) -> JobStatus:
    """Return what accounting has of a job that the controller does not know, as lost: its end will never be known."""
    reason = f"the controller has forgotten it, and accounting has it as {status.state} for ever"
    return msgspec.structs.replace(status, state="LOST", reason=reason)


def _by_name(statuses: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """Return statuses by the ids of their jobs or tasks; tasks that never ran are one row, `123_[4-9]`."""
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
        return parse_queue(commands.list_queue(QUEUE_FORMAT, "-r", "-t", "all", "-j", ",".join(jobs)))
    except HpcdistError as error:
        if INVALID_JOB in error.message:
            return []
        raise


def _list_accounting(job_ids: Sequence[str], fields: str, option: str, env: Mapping[str, str]) -> str | None:
    """Return accounting's rows of jobs; None where it is off."""
    listed = []
    for batch in batch_job_ids(job_ids):
        try:
            listed.append(commands.list_accounting(fields, option, "-j", ",".join(batch), env=env))
        except HpcdistError:
            return None
    return "\n".join(listed)


def _query_controller(job_id: str) -> list[JobStatus] | None:
    """Return a job, or an array's tasks, as the controller has them: none of an unknown job, None without an answer."""
    try:
        return parse_controller(commands.show_job(job_id), job_id)
    except HpcdistError as error:
        return [] if INVALID_JOB in error.message else None


def query_endings(job_ids: Sequence[str]) -> dict[str, list[Ending]]:
    """Return how each attempt of jobs and array tasks ended, by their ids; nothing where accounting is off."""
    return parse_endings(_list_accounting(job_ids, ENDING_FIELDS, "-D", TIME_ENVIRONMENT) or "")
