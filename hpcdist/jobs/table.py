"""Tables of jobs: which jobs are meant, the columns, and the layout for a person or a program."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from hpcdist.errors import UsageError
from hpcdist.records.efficiency import Efficiency
from hpcdist.text import clean, nearest
from hpcdist.units import format_bytes, format_duration, format_local_moment

_AGO = re.compile(r"([0-9]{1,6}) ?(s|min|h|d|w)", re.IGNORECASE)
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# sacct(1), "-S, --starttime". Anything else sacct would partly ignore, and then list other jobs than those meant.
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?: ?[AaPp][Mm])?"
_DATE = r"(?:[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{4}(?:[0-9]{2})?|[0-9]{1,2}[/.][0-9]{1,2}(?:[/.][0-9]{2})?)"
_SACCT_TIME = re.compile(
    r"(?:today|midnight|noon|fika|teatime|now(?:[+-][0-9]{1,9}(?:seconds?|minutes?|hours?|days?|weeks?)?)?"
    rf"|{_CLOCK}|{_DATE}(?:[-T]{_CLOCK})?)",
    re.IGNORECASE,
)

# squeue(1), "JOB STATE CODES"; sacct has the same.
STATE_CODES = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "TO": "TIMEOUT",
}
STATES = frozenset(STATE_CODES.values())


def parse_since(text: str) -> str:
    """A time in sacct's own words: `2d` is `now-2days`; what sacct understands stays as it is.

    Raises:
        UsageError: sacct would not understand it.
    """
    text = text.strip()
    if match := _AGO.fullmatch(text):
        return f"now-{match[1]}{_UNITS[match[2].lower()]}"
    if _SACCT_TIME.fullmatch(text):
        return text
    raise UsageError(
        f"{text[:60]!a} is not a time that sacct understands",
        "write 2d, 3h, 30min, 2026-01-31, 14:30, today or now-2days",
    )


def parse_states(text: str) -> frozenset[str]:
    """States by their words or codes: `failed,TO`.

    Raises:
        UsageError: Slurm has no such state.
    """
    found = set()
    for word in text.split(","):
        code = word.strip().upper()
        state = STATE_CODES.get(code, code)
        if state not in STATES:
            raise UsageError(f"{word[:60]!a} is not a job state", f"did you mean {nearest(state, STATES, cutoff=0)}?")
        found.add(state)
    return frozenset(found)


def parse_users(text: str) -> tuple[str, ...]:
    """User names, or ids, parted by commas.

    Raises:
        UsageError: One can't be a user's name.
    """
    users = tuple(text.split(","))
    for user in users:
        if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.@$\\+-]{0,255}", user):
            raise UsageError(f"{user[:60]!a} is not a user's name", "write --user NAME, or several: --user NAME,NAME")
    return users


Value = str | int | float | None
Kind = Literal["text", "count", "duration", "share", "size", "moment"]
Rating = Literal["good", "weak", "bad", "running", "waiting"]


class Column(NamedTuple):
    """A column.

    Attributes:
        key: What a person types for it.
        title: Its heading.
        field: Its heading where a program reads it, with the unit: `wall_time_s`.
        kind: How its values are printed.
        weight: The least is left out first where the terminal is narrow.
        least: To how many characters it may be shortened; 0 for never.
        names: What reportseff and sacct call it, parted by blanks.
        derive: Makes the figure, None when it is unknown; without it the figure is the job's own field.
    """

    key: str
    title: str
    field: str
    kind: Kind
    weight: int
    least: int = 0
    names: str = ""
    derive: Callable[[Efficiency], Value] | None = None

    def value(self, one: Efficiency) -> Value:
        """Return the figure of a job; None when it is unknown."""
        return self.derive(one) if self.derive else getattr(one, self.field)


def _shown_id(one: Efficiency) -> str | None:
    return one.array_job_id or one.het_job_id or one.job_id


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
    Column("job", "JOB", "job_id", "text", 100, names="jobid", derive=_shown_id),
    Column("name", "NAME", "name", "text", 40, 8, names="jobname"),
    Column("user", "USER", "user", "text", 35, 6),
    Column("group", "GROUP", "group", "text", 10, 6),
    Column("partition", "PARTITION", "partition", "text", 20, 6),
    Column("cluster", "CLUSTER", "cluster", "text", 8, 6),
    Column("state", "STATE", "state", "text", 90, 5),
    Column("exit", "EXIT", "exit_code", "count", 30, names="exitcode"),
    Column("elapsed", "ELAPSED", "wall_time_s", "duration", 60),
    Column("limit", "LIMIT", "time_limit_s", "duration", 25, names="timelimit"),
    Column("time", "TIME%", "time_efficiency", "share", 50, names="timeeff", derive=time_efficiency),
    Column("cputime", "CPU TIME", "cpu_time_s", "duration", 24, names="totalcpu"),
    Column("cpu", "CPU%", "cpu_efficiency", "share", 80, names="cpueff"),
    Column("mem", "MEM%", "memory_efficiency", "share", 75, names="memeff memory"),
    # The mean over the job. What sacct has (gres/gpuutil) is a peak, and is in no column.
    Column("gpu", "GPU%", "gpu_efficiency", "share", 70, names="gpueff"),
    Column("memused", "MEM USED", "memory_used_bytes", "size", 45, names="maxrss"),
    Column("memreq", "MEM REQ", "memory_requested_bytes", "size", 44, names="reqmem"),
    Column("gpumem", "GPU MEM", "gpu_memory_used_bytes", "size", 43),
    Column("nodes", "NODES", "nodes", "count", 28, names="nnodes"),
    Column("cpus", "CPUS", "cores", "count", 27, names="alloccpus cores ncpus"),
    Column("gpus", "GPUS", "gpus", "count", 26),
    Column("nodelist", "NODELIST", "node_list", "text", 9, 8),
    Column("waited", "WAITED", "waited_s", "duration", 22, derive=waited_s),
    Column("submitted", "SUBMITTED", "submitted_at_s", "moment", 15, names="submit"),
    Column("started", "STARTED", "started_at_s", "moment", 16, names="start"),
    Column("ended", "ENDED", "ended_at_s", "moment", 17, names="end"),
    Column("source", "SOURCE", "source", "text", 7),
)
DEFAULT = ("job", "name", "state", "elapsed", "time", "cpu", "mem", "gpu")
_BY_KEY = {column.key: column for column in COLUMNS}
_BY_NAME = {name: column for column in COLUMNS for name in (column.field, *column.names.split())}


def find_column(word: str) -> Column:
    """The column of that key, field or name in reportseff; upper or lower case.

    Raises:
        UsageError: There is none; the hint has the nearest.
    """
    key = word.strip().lower().removesuffix("%")
    if column := _BY_KEY.get(key) or _BY_NAME.get(key):
        return column
    aliases = {name: column.key for column in COLUMNS for name in column.names.split()}
    meant = nearest(key, (*_BY_KEY, *aliases), cutoff=0) or ""
    raise UsageError(
        f"there is no column {word[:60]!a}",
        f"did you mean {aliases.get(meant, meant)}? There are: {', '.join(_BY_KEY)}",
    )


def choose_columns(text: str | None, *, gpus: bool = True) -> list[Column]:
    """Return the columns of `job,state,cpu`; `+user,gpus` adds to those there are without it.

    Where no job has GPUs, GPU% is there only if it is named.

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


_FORMS: Mapping[Kind, Callable[[Any], str]] = {
    "share": "{:.1%}".format,
    "size": format_bytes,
    "duration": format_duration,
    "moment": format_local_moment,
}


def format_value(column: Column, one: Efficiency) -> str:
    """A figure for a person to read; a dash when it is unknown."""
    value = column.value(one)
    if value is None or value == "":
        return "-"
    form = _FORMS.get(column.kind)
    mark = "~" if column.key in ("mem", "memused") and one.memory_is_estimate else ""
    return mark + form(value) if form else str(value)


def judge(column: Column, one: Efficiency) -> Rating | None:
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


def _judge_state(state: str | None) -> Rating | None:
    if state in {"RUNNING", "PENDING"}:
        return "running" if state == "RUNNING" else "waiting"
    if state in {"COMPLETED", "CANCELLED"}:
        return "good" if state == "COMPLETED" else "weak"
    return "bad" if state in {"FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"} else None


GAP = "  "
SEPARATOR = "|"
ESTIMATE_NOTE = "~ an estimate: the largest task's memory times the number of tasks"

# "Select Graphic Rendition" of ECMA-48: the eight colours every terminal has.
_COLOURS: Mapping[Rating, str] = {"good": "32", "weak": "33", "bad": "31", "running": "36", "waiting": "34"}


def format_jobs(
    jobs: Sequence[Efficiency], columns: Sequence[Column], *, width: int | None = None, colour: bool = False
) -> list[str]:
    """Return the table's lines: a heading, a line per job, and a note where one is due.

    Columns without a place in `width` characters are shortened or left out.
    """
    cells = [[clean(format_value(column, one)) for column in columns] for one in jobs]
    widths = [max([len(column.title), *[measure(row[at]) for row in cells]]) for at, column in enumerate(columns)]
    kept = fit(columns, widths, width)
    lines = [_line([(columns[at].title, widths[at], None) for at in kept], columns, kept)]
    for one, row in zip(jobs, cells, strict=True):
        verdicts = [judge(columns[at], one) if colour else None for at in kept]
        parts = [(row[at], widths[at], verdict) for at, verdict in zip(kept, verdicts, strict=True)]
        lines.append(_line(parts, columns, kept))
    if any(row[at].startswith("~") for row in cells for at in kept if columns[at].kind in {"share", "size"}):
        lines.append(_cut(ESTIMATE_NOTE, width) if width else ESTIMATE_NOTE)
    return lines


def fit(columns: Sequence[Column], widths: list[int], width: int | None) -> list[int]:
    """Makes the columns fit: shortens the ones that may be, then leaves out the least important; changes `widths`.

    Returns:
        The places of the columns that stay, at least the most important one.
    """
    kept = list(range(len(columns)))
    while width is not None and (excess := sum(widths[at] + len(GAP) for at in kept) - len(GAP) - width) > 0:
        at = max(kept, key=lambda place: widths[place] - columns[place].least if columns[place].least else 0)
        spare = widths[at] - max(columns[at].least, len(columns[at].title)) if columns[at].least else 0
        if spare > 0:
            widths[at] -= min(spare, excess)
        elif len(kept) > 1:
            kept.remove(min(kept, key=lambda place: columns[place].weight))
        else:
            widths[kept[0]] = max(1, width)
    return kept


def _line(parts: Sequence[tuple[str, int, Rating | None]], columns: Sequence[Column], kept: Sequence[int]) -> str:
    cells = []
    for (text, size, verdict), at in zip(parts, kept, strict=True):
        shown = _cut(text, size)
        blank = " " * (size - measure(shown))
        coloured = f"\x1b[{_COLOURS[verdict]}m{shown}\x1b[0m" if verdict else shown
        cells.append(coloured + blank if columns[at].kind == "text" else blank + coloured)
    return GAP.join(cells).rstrip()


def _cut(text: str, size: int) -> str:
    """The text in so many places of the terminal; an ellipsis where some of it is missing."""
    if measure(text) <= size:
        return text
    while text and measure(text) > size - 1:
        text = text[:-1]
    return text + "…" if size > 0 else ""


def measure(text: str) -> int:
    """Places the text takes in a terminal: two for a wide character, none for an accent of its own."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in {"W", "F"} for c in text if not unicodedata.combining(c))
    return wide + sum(not unicodedata.combining(c) for c in text)


def format_parsable_header(columns: Sequence[Column]) -> str:
    """The columns' names with their units: `job_id|state|wall_time_s|cpu_efficiency`."""
    return SEPARATOR.join(column.field for column in columns)


def parsable_formatter(columns: Sequence[Column]) -> Callable[[Efficiency], str]:
    """What makes a job's line: seconds, bytes and fractions, nothing where a figure is unknown.

    A separator in a job's name becomes an underscore and a control character a question mark: every line has as many
    fields as the header.
    """
    # Significant digits: six of a fraction, and of seconds and bytes all there are.
    digits_of = {"share": "%.6g"}
    readers = [(one.derive or attrgetter(one.field), digits_of.get(one.kind, "%.15g")) for one in columns]
    separators = len(columns) - 1

    def form(one: Efficiency) -> str:
        cells = []
        for reader, digits in readers:
            value = reader(one)
            if value is None:
                cells.append("")
            elif value.__class__ is float:
                cells.append(digits % value)
            else:
                cells.append(str(value))
        line = SEPARATOR.join(cells)
        if line.isprintable() and line.count(SEPARATOR) == separators:
            return line
        return SEPARATOR.join([clean(cell).replace(SEPARATOR, "_") for cell in cells])

    return form
