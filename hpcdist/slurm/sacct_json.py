"""`sacct --json` told as the rows that `sacct -P` prints, so that one folding reads both.

Sources: Slurm 22.05's `src/plugins/openapi/dbv0.0.38/parse.c` (run with 22.05.8), and the parsers for JOB, STEP and
PROCESS_EXIT_CODE in `src/plugins/data_parser` of 23.02 (v0.0.39) to 26.05 (v0.0.45). What is not as it seems there:

- A step's `tres.requested` is what it used (`tres_usage_in_*`), and its `tres.allocated` memory is in MB.
- Numbers that may be unset are objects since 23.02; states and statuses are lists since 23.11.
- Up to 23.02 a job that exited with a status other than 0 says `SUCCESS` and 0.
- A job's own CPU time is 0 until sacct has added its steps up, which it does for text alone [run with 22.05.8].
"""

from collections.abc import Iterator, Mapping

import msgspec

from hpcdist.errors import ParseError
from hpcdist.slurm.sacct_rows import Row


class _Setting(msgspec.Struct, frozen=True):
    set: bool = False
    number: int | float = 0


_Number = int | _Setting | None


class _Tres(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    count: _Number = 0


class _StepTres(msgspec.Struct, frozen=True):
    requested: dict[str, list[_Tres]] = {}  # by "max", "average" and "total"


class _JobTres(msgspec.Struct, frozen=True):
    allocated: list[_Tres] = []
    requested: list[_Tres] = []


class _Time(msgspec.Struct, frozen=True):
    elapsed: _Number = None
    submission: _Number = None
    start: _Number = None
    end: _Number = None
    limit: _Number = None
    total: dict[str, _Number] = {}  # "seconds" and "microseconds"


class _Step(msgspec.Struct, frozen=True):
    tres: _StepTres = _StepTres()
    time: _Time = _Time()
    tasks: dict[str, _Number] = {}


class _Signal(msgspec.Struct, frozen=True):
    id: _Number = None
    signal_id: _Number = None


class _ExitCode(msgspec.Struct, frozen=True):
    return_code: _Number = None
    signal: _Signal = _Signal()


class _State(msgspec.Struct, frozen=True):
    current: str | list[str] = ""


class _Array(msgspec.Struct, frozen=True):
    job_id: _Number = None
    task_id: _Number = None
    task: str | None = None


class _Job(msgspec.Struct, frozen=True):
    job_id: int
    state: _State
    time: _Time
    steps: list[_Step] = []
    tres: _JobTres = _JobTres()
    exit_code: _ExitCode = _ExitCode()
    array: _Array = _Array()
    het: dict[str, _Number] = {}
    required: dict[str, _Number] = {}
    allocation_nodes: _Number = None
    cluster: str | None = None
    user: str | None = None
    group: str | None = None
    name: str | None = None
    partition: str | None = None
    nodes: str | None = None


class _Slurm(msgspec.Struct, frozen=True):
    release: str | None = None


class _Meta(msgspec.Struct, frozen=True, rename={"older": "Slurm"}):
    slurm: _Slurm | None = None
    older: _Slurm | None = None


class _Answer(msgspec.Struct, frozen=True):
    jobs: list[_Job]
    meta: _Meta = _Meta()


# Flags of a state, in the order in which `job_state_string` (src/common/slurm_protocol_defs.c) prefers them to the
# state itself.
_STATE_FLAGS = (
    *("COMPLETING", "STAGE_OUT", "CONFIGURING", "EXPEDITING", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
    *("SPECIAL_EXIT", "STOPPED", "REVOKED", "RESV_DEL_HOLD", "SIGNALING"),
)


def read_json_rows(text: str) -> tuple[str | None, Iterator[tuple[int, Row]]]:
    """Return Slurm's release, and the rows in the order of the text, each with its number.

    Raises:
        ParseError: The text is not what `sacct --json` prints.
    """
    try:
        # A lone surrogate stands for a byte that is not UTF-8, and cannot be encoded.
        answer = msgspec.json.decode(text.encode(errors="replace"), type=_Answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ParseError(f"this is not what sacct --json prints: {error}") from None
    meta = answer.meta.slurm or answer.meta.older
    return meta.release if meta else None, enumerate(_rows(answer.jobs), 1)


def _rows(jobs: list[_Job]) -> Iterator[Row]:
    for job in jobs:
        row = _job_row(job)
        yield row
        for number, step in enumerate(job.steps):
            yield _step_row(row, f"{row.job_id}.{number}", step)


def _job_row(job: _Job) -> Row:
    counts = {tres.type: tres.count for tres in job.tres.allocated or job.tres.requested}
    state = _state(job.state.current)
    return Row(
        job_id=_job_id(job),
        raw_id=str(job.job_id),
        cluster=job.cluster or "",
        user=job.user or "",
        group=job.group or "",
        partition=job.partition or "",
        state=state,
        exit_code=_exit_code(job.exit_code, state),
        submit=_moment(job.time.submission),
        start=_moment(job.time.start),
        end=_moment(job.time.end),
        elapsed=_cell(job.time.elapsed),
        time_limit=_cell(job.time.limit),
        total_cpu=_cpu_time([step.time.total for step in job.steps] or [job.time.total]),
        cpus=_cell(counts.get("cpu", job.required.get("CPUs"))),
        nodes=_cell(job.allocation_nodes or counts.get("node")),
        tasks="",
        requested_memory=_requested_memory(job.required),
        requested_tres=_tres(job.tres.requested),
        allocated_tres=_tres(job.tres.allocated),
        max_rss="",
        average_rss="",
        usage="",
        node_list=job.nodes or "",
        name=job.name or "",
    )


def _step_row(job: Row, step_id: str, step: _Step) -> Row:
    used = step.tres.requested
    return job._replace(
        job_id=step_id,
        raw_id=step_id,
        tasks=_cell(step.tasks.get("count")),
        max_rss=_memory(used.get("max", [])),
        average_rss=_memory(used.get("average", [])),
        usage=_tres(used.get("total", []), is_usage=True),
    )


def _value(number: _Number) -> int | None:
    """Return a number that is set."""
    if isinstance(number, _Setting):
        return int(number.number) if number.set else None
    return number


def _cell(number: _Number) -> str:
    value = _value(number)
    return "" if value is None else str(value)


def _moment(number: _Number) -> str:
    """Return a time; the JSON writes 0 where the text says that there is none."""
    return _cell(number) if _value(number) else "Unknown"


def _state(current: str | list[str]) -> str:
    if isinstance(current, str):
        return current
    flags = [flag for flag in _STATE_FLAGS if flag in current]
    return (flags or current or [""])[0]


def _job_id(job: _Job) -> str:
    array, task, het = _value(job.array.job_id), _value(job.array.task_id), _value(job.het.get("job_id"))
    if array and task is not None:
        return f"{array}_{task}"
    if array and job.array.task:
        return f"{array}_[{job.array.task.strip('[]')}]"
    offset = _value(job.het.get("job_offset"))
    return f"{het}+{offset}" if het and offset is not None else str(job.job_id)


def _exit_code(code: _ExitCode, state: str) -> str:
    """Return `status:signal`, empty where it cannot be known."""
    signal = _value(code.signal.id) or _value(code.signal.signal_id) or 0
    if signal:
        return f"0:{signal}"
    status = _value(code.return_code)
    is_lost = isinstance(code.return_code, int) and status == 0 and state != "COMPLETED"
    return "" if status is None or is_lost else f"{status}:0"


def _cpu_time(parts: list[dict[str, _Number]]) -> str:
    seconds = sum(_value(part.get("seconds")) or 0 for part in parts)
    microseconds = seconds * 1_000_000 + sum(_value(part.get("microseconds")) or 0 for part in parts)
    minutes, rest = divmod(microseconds, 60_000_000)
    return f"{minutes:02d}:{rest // 1_000_000:02d}.{rest % 1_000_000:06d}"


def _requested_memory(required: Mapping[str, _Number]) -> str:
    """Format requested memory as before Slurm 21.08, whose text said per what it was asked for; in MB."""
    per_cpu, per_node = _value(required.get("memory_per_cpu")), _value(required.get("memory_per_node"))
    if per_cpu is not None:
        return f"{per_cpu}Mc"
    return "" if per_node is None else f"{per_node}Mn"


def _tres(amounts: list[_Tres], *, is_usage: bool = False) -> str:
    """Return `cpu=4,gres/gpu=2,mem=1600M`; used memory is in bytes, allocated memory in MB."""
    unit = "" if is_usage else "M"
    # INFINITE64 and NO_VAL64, a number that was not set, are dumped as -1 and -2 (INT64).
    known = [tres for tres in amounts if _value(tres.count) not in {None, -1, -2}]
    named = [(tres.type + (f"/{tres.name}" if tres.name else ""), _cell(tres.count)) for tres in known]
    return ",".join(f"{name}={count}{unit if name == 'mem' else ''}" for name, count in named)


def _memory(amounts: list[_Tres]) -> str:
    return next((_cell(tres.count) for tres in amounts if tres.type == "mem"), "")
