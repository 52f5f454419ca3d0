"""sacct's rows, put back together from its lines. Pure.

Source: sacct(1), `--parsable2`, `--delimiter`; Slurm prints job names raw, with whatever the owner put into them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import NamedTuple

from hpcdist.errors import ParseError
from hpcdist.sacct_question import DELIMITER, FIELDS

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
    """The rows, each with the number of its first line. A first line with field names is understood.

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
    """The shape a line of field names announces.

    Raises:
        ParseError: Fields that no record can do without are missing.
    """
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
