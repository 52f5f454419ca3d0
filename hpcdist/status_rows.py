"""What squeue, `sacct -X` and scontrol say of where jobs are, read into statuses. Pure.

Sources: squeue(1) `--format`, sacct(1) `--delimiter`, `scontrol show job --oneliner`, run with Slurm 22.05.8. All
print names and comments raw, with whatever their owner put into them: such a field comes last, nothing but a line feed
ends a line, and a line that is no row is left out.
"""

import re
from collections.abc import Iterator

import msgspec

from hpcdist.errors import ParseError
from hpcdist.records.job import CONTINUED_STATES, ENDED_STATES, Ending, JobStatus, Step, split_task
from hpcdist.sacct_rows import ROW_ID
from hpcdist.units import parse_elapsed

SEPARATOR = "\x1f"
QUEUE_FORMAT = SEPARATOR.join(("%i", "%T", "%r", "%M", "%N", "%j"))
ACCOUNTING_FIELDS = "JobID,State,ExitCode,ElapsedRaw,NodeList,Reason,JobName"
ENDING_FIELDS = "JobID,State,ExitCode,Submit,Start,End,NodeList,Reason"
MARK_FORMAT = SEPARATOR.join(("%F", "%Z", "%k"))
MARK_FIELDS = "JobID,WorkDir,Comment"

_STATE = re.compile(r"[A-Z_]{1,40}")


def parse_queue(listed: str) -> list[JobStatus]:
    """Statuses from squeue's rows in `QUEUE_FORMAT`."""
    return [
        JobStatus(
            job_id=job_id,
            state=state,
            reason=None if reason == "None" or state == "COMPLETED" else reason,
            elapsed_s=_elapsed(elapsed),
            nodes=nodes or None,
            name=name,
        )
        for job_id, state, reason, elapsed, nodes, name in _rows(listed, 6)
    ]


def parse_accounting(listed: str) -> list[JobStatus]:
    """Statuses from the rows of `sacct -X` with `ACCOUNTING_FIELDS`."""
    return [
        JobStatus(
            job_id=job_id,
            state=state.partition(" ")[0],  # "CANCELLED by 1000"
            # Of a job that started, accounting keeps why it had waited.
            reason=None if reason in ("None", "") or state in ("COMPLETED", "RUNNING") else reason,
            elapsed_s=float(elapsed) if elapsed.isdigit() else None,
            nodes=None if nodes == "None assigned" else nodes or None,
            name=name,
            exit_code=_exit_code(code, state),
            signal=_exit_signal(code, state),
        )
        for job_id, state, code, elapsed, nodes, reason, name in _rows(listed, 7)
    ]


def parse_endings(listed: str) -> dict[str, list[Ending]]:
    """How each attempt of each job ended, oldest first, from the rows of `sacct --duplicates` with `ENDING_FIELDS`.

    Of unrelated jobs that had one id, the last is kept.
    """
    found: dict[str, list[Ending]] = {}
    for cells in _rows(listed, 8):
        job_id, _, step = cells[0].partition(".")
        state, _, by = cells[1].partition(" by ")
        code, signal = _exit_code(cells[2], state), _exit_signal(cells[2], state)
        attempts = found.setdefault(job_id, [])
        if step and attempts:
            steps = (*attempts[-1].steps, Step(name=step, state=state, exit_code=code, signal=signal))
            attempts[-1] = msgspec.structs.replace(attempts[-1], steps=steps)
            continue
        if attempts and attempts[-1].state not in CONTINUED_STATES:
            attempts.clear()
        attempts.append(_ending(cells, state, code, signal, by))
    return found


def _ending(cells: list[str], state: str, code: int | None, signal: int | None, by: str) -> Ending:
    submitted, started, ended = (float(cell) if cell.isdigit() else None for cell in cells[3:6])
    nodes = None if cells[6] in ("", "None assigned") else cells[6]
    return Ending(
        state=state,
        exit_code=code,
        signal=signal,
        reason=None if cells[7] in ("None", "") else cells[7],
        cancelled_by=by or None,
        nodes=nodes,
        submitted_at_s=submitted,
        started_at_s=started if nodes else None,
        ended_at_s=ended,
    )


def parse_controller(listed: str, job_id: str) -> list[JobStatus]:
    """Statuses from what scontrol says of the job that was asked for, one per task of an array."""
    found = []
    for record in re.split(r"\n(?=JobId=)", listed):
        fields = parse_job_fields(record)
        if not fields:
            continue
        task, array = fields.get("ArrayTaskId", ""), fields.get("ArrayJobId", "")
        state, code = fields.get("JobState", "UNKNOWN"), fields.get("ExitCode", "0:0")
        reason = fields.get("Reason", "None")
        found.append(
            JobStatus(
                job_id=f"{array}_{task}" if array and task.isdigit() else fields.get("JobId", job_id),
                state=state,
                reason=None if reason == "None" else reason,
                elapsed_s=_elapsed(fields.get("RunTime", "")),
                nodes=fields.get("NodeList", "").replace("(null)", "") or None,
                name=fields.get("JobName"),
                exit_code=_exit_code(code, state),
                signal=_exit_signal(code, state),
            )
        )
    return found


def parse_job_fields(record: str) -> dict[str, str]:
    """The fields of one job as `scontrol show job --oneliner` prints them, each up to its first blank."""
    return dict(re.findall(r"(?:^| )(\w+)=(\S*)", record))


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A job that carries the name of a run in its comment.

    Attributes:
        job_id: Its id; of an array that of the whole.
        workdir: The folder it was submitted from.
        run: The run's name.
    """

    job_id: str
    workdir: str
    run: str


def parse_marks(listed: str) -> list[Mark]:
    """The jobs of runs among rows in `MARK_FORMAT` or `MARK_FIELDS`."""
    found = []
    for line in listed.split("\n"):
        columns = line.split(SEPARATOR, 2)
        if len(columns) == 3 and ROW_ID.fullmatch(columns[0].strip()):
            job_id = split_task(columns[0].strip())[0]
            runs = [word.removeprefix("hpcdist:") for word in columns[2].split() if word.startswith("hpcdist:")]
            found += [Mark(job_id=job_id, workdir=columns[1], run=run) for run in runs]
    return found


def find_marked(listed: str, run: str, workdir: str) -> str | None:
    """The id of the job in `MARK_FORMAT` or `MARK_FIELDS` whose comment names a run of this folder."""
    marks = parse_marks(listed)
    return next((mark.job_id for mark in marks if mark.workdir == workdir and mark.run == run), None)


def _rows(listed: str, width: int) -> Iterator[list[str]]:
    """The cells of each row; the last takes what is left of its line."""
    for line in listed.split("\n"):
        cells = line.split(SEPARATOR, width - 1)
        if len(cells) == width and ROW_ID.fullmatch(cells[0]) and _STATE.match(cells[1]):
            yield cells


def _elapsed(text: str) -> float | None:
    try:
        return parse_elapsed(text)
    except ParseError:
        return None  # "INVALID", or nothing


def _exit_code(text: str, state: str) -> int | None:
    """The exit status in Slurm's `status:signal`; None while there is none."""
    status, _, number = text.partition(":")
    return int(status) if status.isdigit() and number == "0" and state.partition(" ")[0] in ENDED_STATES else None


def _exit_signal(text: str, state: str) -> int | None:
    """The signal in Slurm's `status:signal`; None when there was none."""
    number = text.partition(":")[2]
    return int(number) if number.isdigit() and number != "0" and state.partition(" ")[0] in ENDED_STATES else None
