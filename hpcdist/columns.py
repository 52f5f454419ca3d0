"""The columns that a table of jobs can have: what each shows, and when a figure is a bad sign. Pure."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple

from hpcdist.errors import UsageError
from hpcdist.records.efficiency import Efficiency
from hpcdist.text import nearest
from hpcdist.units import format_bytes, format_duration, format_local_moment

Value = str | int | float | None
Kind = Literal["text", "count", "duration", "share", "size", "moment"]
Verdict = Literal["good", "weak", "bad", "running", "waiting"]


class Column(NamedTuple):
    """A column.

    Attributes:
        key: What a person types for it.
        title: Its heading.
        field: Its heading where a program reads it, with the unit: `wall_time_s`.
        kind: How its values are printed.
        weight: The least is left out first where the terminal is narrow.
        value: The figure, None when it is unknown.
        least: To how many characters it may be shortened; 0 for never.
    """

    key: str
    title: str
    field: str
    kind: Kind
    weight: int
    value: Callable[[Efficiency], Value]
    least: int = 0


def time_efficiency(one: Efficiency) -> float | None:
    """The share of the time limit that was used; None without a limit."""
    if one.wall_time_s is None or not one.time_limit_s:
        return None
    return one.wall_time_s / one.time_limit_s


def waited_s(one: Efficiency) -> float | None:
    """Seconds from submission to start."""
    if one.started_at_s is None or one.submitted_at_s is None:
        return None
    return max(0.0, one.started_at_s - one.submitted_at_s)


COLUMNS = (
    Column("job", "JOB", "job_id", "text", 100, lambda one: one.array_job_id or one.het_job_id or one.job_id),
    Column("name", "NAME", "name", "text", 40, attrgetter("name"), 8),
    Column("user", "USER", "user", "text", 35, attrgetter("user"), 6),
    Column("group", "GROUP", "group", "text", 10, attrgetter("group"), 6),
    Column("partition", "PARTITION", "partition", "text", 20, attrgetter("partition"), 6),
    Column("cluster", "CLUSTER", "cluster", "text", 8, attrgetter("cluster"), 6),
    Column("state", "STATE", "state", "text", 90, attrgetter("state"), 5),
    Column("exit", "EXIT", "exit_code", "count", 30, attrgetter("exit_code")),
    Column("elapsed", "ELAPSED", "wall_time_s", "duration", 60, attrgetter("wall_time_s")),
    Column("limit", "LIMIT", "time_limit_s", "duration", 25, attrgetter("time_limit_s")),
    Column("time", "TIME%", "time_efficiency", "share", 50, time_efficiency),
    Column("cputime", "CPU TIME", "cpu_time_s", "duration", 24, attrgetter("cpu_time_s")),
    Column("cpu", "CPU%", "cpu_efficiency", "share", 80, attrgetter("cpu_efficiency")),
    Column("mem", "MEM%", "memory_efficiency", "share", 75, attrgetter("memory_efficiency")),
    # The mean over the job. What sacct has (gres/gpuutil) is a peak, and is in no column.
    Column("gpu", "GPU%", "gpu_efficiency", "share", 70, attrgetter("gpu_efficiency")),
    Column("memused", "MEM USED", "memory_used_bytes", "size", 45, attrgetter("memory_used_bytes")),
    Column("memreq", "MEM REQ", "memory_requested_bytes", "size", 44, attrgetter("memory_requested_bytes")),
    Column("gpumem", "GPU MEM", "gpu_memory_used_bytes", "size", 43, attrgetter("gpu_memory_used_bytes")),
    Column("nodes", "NODES", "nodes", "count", 28, attrgetter("nodes")),
    Column("cpus", "CPUS", "cores", "count", 27, attrgetter("cores")),
    Column("gpus", "GPUS", "gpus", "count", 26, attrgetter("gpus")),
    Column("nodelist", "NODELIST", "node_list", "text", 9, attrgetter("node_list"), 8),
    Column("waited", "WAITED", "waited_s", "duration", 22, waited_s),
    Column("submitted", "SUBMITTED", "submitted_at_s", "moment", 15, attrgetter("submitted_at_s")),
    Column("started", "STARTED", "started_at_s", "moment", 16, attrgetter("started_at_s")),
    Column("ended", "ENDED", "ended_at_s", "moment", 17, attrgetter("ended_at_s")),
    Column("source", "SOURCE", "source", "text", 7, attrgetter("source")),
)
DEFAULT = ("job", "name", "state", "elapsed", "time", "cpu", "mem", "gpu")
# What reportseff and sacct call them.
_ALIASES = {
    "jobid": "job",
    "jobname": "name",
    "exitcode": "exit",
    "timelimit": "limit",
    "timeeff": "time",
    "totalcpu": "cputime",
    "cpueff": "cpu",
    "memeff": "mem",
    "memory": "mem",
    "gpueff": "gpu",
    "maxrss": "memused",
    "reqmem": "memreq",
    "nnodes": "nodes",
    "alloccpus": "cpus",
    "cores": "cpus",
    "ncpus": "cpus",
    "submit": "submitted",
    "start": "started",
    "end": "ended",
}
_BY_KEY = {column.key: column for column in COLUMNS}


def find_column(word: str) -> Column:
    """The column of that key, field or name in reportseff; upper or lower case.

    Raises:
        UsageError: There is none; the hint has the nearest.
    """
    key = word.strip().lower().removesuffix("%")
    key = _ALIASES.get(key, key)
    if key in _BY_KEY:
        return _BY_KEY[key]
    for column in COLUMNS:
        if column.field == key:
            return column
    known = (*_BY_KEY, *_ALIASES)
    meant = nearest(key, known, cutoff=0) or ""
    raise UsageError(
        f"there is no column {word[:60]!a}",
        f"did you mean {_ALIASES.get(meant, meant)}? There are: {', '.join(_BY_KEY)}",
    )


def choose_columns(text: str | None, *, gpus: bool = True) -> list[Column]:
    """The columns of `job,state,cpu`; `+user,gpus` adds to those there are without it.

    Args:
        text: The columns; None for those there are without it.
        gpus: Whether a job had GPUs; without any, GPU% is there only where it is named.

    Raises:
        UsageError: There is no such column, or none is named.
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not words:
        raise UsageError("--format names no column", f"there are: {', '.join(_BY_KEY)}")
    added = [find_column(word.lstrip("+")) for word in words]
    default = [_BY_KEY[key] for key in DEFAULT if gpus or key != "gpu"]
    chosen = added if words and not words[0].startswith("+") else [*default, *added]
    return list(dict.fromkeys(chosen))


def sort_jobs(jobs: Sequence[Efficiency], text: str) -> list[Efficiency]:
    """The jobs by a column, `-column` for the highest first; those without the figure come last either way.

    Raises:
        UsageError: There is no such column.
    """
    column = find_column(text.removeprefix("-"))
    known = [one for one in jobs if column.value(one) is not None]
    unknown = [one for one in jobs if column.value(one) is None]
    return [*sorted(known, key=lambda one: _order(column.value(one)), reverse=text.startswith("-")), *unknown]


def _order(value: Value) -> tuple[float, list[tuple[float, str]]]:
    """Numbers by size; words with their numbers by size, so that job 9 comes before 10."""
    if isinstance(value, str):
        parts = "".join(c if c.isdecimal() and c.isascii() else f" {c} " for c in value.lower()).split()
        return 0.0, [(float(part), "") if part.isascii() and part.isdecimal() else (-1.0, part) for part in parts]
    return float(value or 0), []


def format_value(column: Column, one: Efficiency) -> str:
    """A figure for a person to read; a dash when it is unknown."""
    value = column.value(one)
    if value is None or value == "":
        return "-"
    if isinstance(value, str):
        return value
    if column.kind == "share":
        mark = "~" if column.key == "mem" and one.memory_is_estimate else ""
        return f"{mark}{value:.1%}"
    if column.kind == "size":
        mark = "~" if column.key == "memused" and one.memory_is_estimate else ""
        return mark + format_bytes(value)
    if column.kind == "duration":
        return format_duration(value)
    if column.kind == "moment":
        return format_local_moment(value)
    return str(value)


def judge(column: Column, one: Efficiency) -> Verdict | None:
    """Whether a figure is a good or a bad sign; None where it says nothing.

    Thresholds in use at computing centres: CPU below 80 % (a GPU job's CPUs may well wait), GPU below 50 %, memory
    below 35 % or without 20 % of headroom, less than 20 % of the time limit.
    """
    if column.key == "state":
        return _judge_state(one.state)
    value = column.value(one)
    if one.live or not isinstance(value, float):
        return None
    if column.key == "cpu":
        return None if one.gpus else "bad" if value < 0.8 else "good"
    if column.key == "gpu":
        return "bad" if value < 0.5 else "good"
    if column.key == "mem":
        return "bad" if value < 0.35 or value > 1 else "weak" if value > 0.8 else "good"
    if column.key == "time":
        return "bad" if value < 0.2 else "good"
    return None


def _judge_state(state: str | None) -> Verdict | None:
    if state in {"RUNNING", "PENDING"}:
        return "running" if state == "RUNNING" else "waiting"
    if state in {"COMPLETED", "CANCELLED"}:
        return "good" if state == "COMPLETED" else "weak"
    return "bad" if state in {"FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"} else None
