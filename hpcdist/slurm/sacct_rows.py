"""The rows and cells of sacct's output.

Sources: sacct(1), `--parsable2` and `--delimiter`, and `src/sacct/print.c` of Slurm 20.11 to 26.05, run with 22.05.8.
Slurm prints job names raw, with whatever the owner put into them. What parses a cell raises ParseError where it is not
what sacct prints there.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Literal, NamedTuple

from hpcdist.errors import ParseError
from hpcdist.slurm.sacct_query import DELIMITER, FIELDS
from hpcdist.units import parse_elapsed, parse_size

# Before Slurm 21.08 ReqMem is per node or per CPU, and says so with a letter: "4Gn", "2000Mc".
_REQUESTED = re.compile(r"([0-9.]{1,24}[KMGTPE]?)([nc]?)")
# NO_VAL64 and INFINITE64, 2^64 - 2 and 2^64 - 1, or that in floating point: a number that was not set. A job that was
# just submitted has ReqMem=18446744073709551616.00M [run with 22.05.8].
UNSET = "184467440737095516"
_NOT_YET = frozenset({"", "Unknown", "None"})


class Allocation(NamedTuple):
    """What a job got, or asked for where it never got anything; memory is the whole job's."""

    nodes: int | None
    cores: int | None
    gpus: int | None
    memory_bytes: int | None
    memory_per: Literal["node", "core"] | None


# A cluster's jobs ask for the same few things over and over; a memory of them is bounded, and changes no answer.
@lru_cache(maxsize=256)
def parse_request(tres: str, requested_memory: str, node_count: str, core_count: str) -> Allocation:
    """Return what TRES strings, `ReqMem`, `NNodes` and `AllocCPUS` say together; the latter two may be empty."""
    nodes = parse_count(node_count or parse_amount(tres, "node") or "") or None
    cores = parse_count(core_count or parse_amount(tres, "cpu") or "") or None
    return Allocation(nodes, cores, _parse_gpus(tres), *_parse_memory(requested_memory, tres, nodes, cores))


def _parse_memory(
    requested_memory: str, tres: str, nodes: int | None, cores: int | None
) -> tuple[int | None, Literal["node", "core"] | None]:
    """Return memory of the whole job in bytes, and per what it was asked for, which sacct says only before Slurm 21.08.

    What was allocated counts, as in seff since 23.02: `--mem=0` asks for 0 and gets all of a node's.
    """
    letter = requested_memory[-1:]
    per: Literal["node", "core"] | None = "node" if letter == "n" else "core" if letter == "c" else None
    allocated = parse_amount(tres, "mem")
    if allocated is not None:
        return _parse_size(allocated), per
    match = _REQUESTED.fullmatch(requested_memory)
    if match is None:
        return None, per
    parts = {"n": nodes, "c": cores}.get(match[2], 1)
    size = _parse_size(match[1])
    return (size * parts if size is not None and parts is not None else None), per


def _parse_size(text: str) -> int | None:
    """Return bytes; None for 0, and for what was not set."""
    return None if text.startswith(UNSET) else parse_size(text) or None


def parse_amount(tres: str, name: str) -> str | None:
    """Return how much of a resource there is in `cpu=4,gres/gpu=2,mem=1600M`; None when it is not named."""
    _, found, rest = f",{tres}".partition(f",{name}=")
    return rest.partition(",")[0] if found else None


def _parse_gpus(tres: str) -> int | None:
    """Return GPUs of all types; None without any, since a cluster need not track them."""
    if "gres/gpu" not in tres:
        return None
    total = parse_amount(tres, "gres/gpu")
    if total is not None:
        return parse_count(total)
    parts = [part.partition("=") for part in tres.split(",")]
    typed = [parse_count(amount) or 0 for name, _, amount in parts if name.startswith("gres/gpu:")]
    return sum(typed) if typed else None


def parse_seconds(text: str) -> int | None:
    """Return seconds of `ElapsedRaw` or `Elapsed`."""
    return int(parse_elapsed(text)) if ":" in text else parse_count(text)


def parse_time_limit(text: str) -> float | None:
    """Return seconds of `TimelimitRaw`, which are minutes, or of `Timelimit`; None without a limit."""
    if ":" in text:
        return parse_elapsed(text)
    minutes = parse_count(text)
    return minutes * 60 if minutes is not None else None


def parse_count(text: str) -> int | None:
    """Return a number of at most 15 digits; None for anything else."""
    return int(text) if len(text) <= 15 and text.isascii() and text.isdigit() else None


def parse_time(text: str) -> float | None:
    """Return seconds since the epoch; a time without `TIME_ENVIRONMENT` is taken in this machine's time zone."""
    if len(text) <= 15 and text.isascii() and text.isdigit():
        return float(text)
    if text in _NOT_YET:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ParseError(f"{text[:60]!a} is not a time") from None


_NEEDED = ("JobID", "State")
# What says the same, or the same in other words, where a file was made without hpcdist's own fields.
_INSTEAD = {
    "JobID": "JobIDRaw",
    "Group": "GID",
    "ElapsedRaw": "Elapsed",
    "TimelimitRaw": "Timelimit",
    "AllocCPUS": "NCPUS",
    "NNodes": "AllocNodes",
}
_HEADER = re.compile(r"JobID(?:Raw)?(?P<delimiter>[^A-Za-z0-9 ]{1,40})[A-Za-z]")
_HINT = (
    "the first line must name the fields, JobID or JobIDRaw first, and State is needed; for all figures: "
    f"sacct -P --format={','.join(FIELDS)}"
)
ROW_ID = re.compile(
    r"[0-9]{1,20}(?:_(?:[0-9]{1,20}|\[[0-9,:%.-]{1,1000}\]?))?(?:\+[0-9]{1,9})?(?:\.[A-Za-z0-9_+-]{1,40})?"
)


class Row(NamedTuple):
    """A row's cells as sacct printed them, under the names and in the order of `FIELDS`."""

    job_id: str
    raw_id: str
    cluster: str
    user: str
    group: str
    partition: str
    state: str
    exit_code: str
    submit: str
    start: str
    end: str
    elapsed: str
    time_limit: str
    total_cpu: str
    cpus: str
    nodes: str
    tasks: str
    requested_memory: str
    requested_tres: str
    allocated_tres: str
    max_rss: str
    average_rss: str
    usage: str
    node_list: str
    name: str


class _Shape(NamedTuple):
    """How a row is laid out: what parts the cells, how many there are, where the name is, how to put them in order."""

    delimiter: str
    width: int
    name_at: int
    arrange: Callable[[list[str]], Iterable[str]] | None


def iter_rows(lines: Iterable[str], delimiter: str = DELIMITER) -> Iterator[tuple[int, Row]]:
    """Yield the rows, each with the number of its first line. A first line with field names is understood.

    Raises:
        ParseError: A line is no row, or a row is cut short.
    """
    shape = _Shape(delimiter, len(FIELDS), len(FIELDS) - 1, None)
    _, width, name_at, arrange = shape
    is_id, new = ROW_ID.fullmatch, tuple.__new__
    pending: list[str] = []
    continued: list[str] = []
    found, first = width, 0
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r\n")
        if number == 1 and (header := _HEADER.match(line)):
            shape = _read_header(line, header["delimiter"])
            delimiter, width, name_at, arrange = shape
            found = width
            continue
        cells = line.split(delimiter)
        count = len(cells)
        if found >= width and count > name_at and is_id(cells[0]):
            if pending:
                is_plain = found == width and not continued and arrange is None
                # The length is known, which _make would check again.
                yield first, new(Row, pending) if is_plain else _row(pending, continued, shape)
            pending, found, first = cells, count, number
            if continued:
                continued = []
        elif pending:
            # A line end within a job's name.
            continued.append(line)
            found += count - 1
        elif line:
            raise ParseError(f"line {number} is no row of sacct's: {line[:60]!a}", _HINT)
    if pending and found < width:
        raise ParseError(f"line {first} of sacct's output is cut short: {pending[0][:60]!a}")
    if pending:
        yield first, _row(pending, continued, shape)


def _row(cells: list[str], continued: list[str], shape: _Shape) -> Row:
    if continued:
        cells = "\n".join([shape.delimiter.join(cells), *continued]).split(shape.delimiter)
    surplus = len(cells) - shape.width
    if surplus > 0:
        # The name held delimiters.
        at = shape.name_at
        cells[at : at + surplus + 1] = [shape.delimiter.join(cells[at : at + surplus + 1])]
    return Row._make(shape.arrange(cells) if shape.arrange else cells)


def _read_header(line: str, delimiter: str) -> _Shape:
    """Return the shape that a line of field names announces."""
    names = line.split(delimiter)
    known = {name: at for at, name in enumerate(names)}
    known |= {field: known[other] for field, other in _INSTEAD.items() if field not in known and other in known}
    missing = [field for field in _NEEDED if field not in known]
    if missing:
        raise ParseError(f"sacct's output lacks {', '.join(missing)}", _HINT)
    # A field that was not asked for is read from an empty cell put behind the last one.
    places = itemgetter(*(known.get(field, len(names)) for field in FIELDS))
    name_at = names.index("JobName") if "JobName" in names else len(names) - 1
    return _Shape(delimiter, len(names), name_at, lambda cells: places([*cells, ""]))
