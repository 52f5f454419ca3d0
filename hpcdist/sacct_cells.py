"""What the cells of sacct's rows say. Pure.

Source: sacct(1) and `src/sacct/print.c` of Slurm 20.11 to 26.05, run with 22.05.8.
"""

import re
from datetime import datetime
from functools import lru_cache
from typing import Literal, NamedTuple

from hpcdist.errors import ParseError
from hpcdist.units import parse_elapsed, parse_size

# Before Slurm 21.08 ReqMem is per node or per CPU, and says so with a letter: "4Gn", "2000Mc".
_REQUESTED = re.compile(r"([0-9.]{1,24}[KMGTPE]?)([nc]?)")
# NO_VAL64 and INFINITE64, 2^64 - 2 and 2^64 - 1, or that in floating point: a number that was not set. A job that was
# just submitted has ReqMem=18446744073709551616.00M [run with 22.05.8].
UNSET = "184467440737095516"
_NOT_YET = frozenset({"", "Unknown", "None"})


class Request(NamedTuple):
    """What a job got, or asked for where it never got anything; memory is the whole job's."""

    nodes: int | None
    cores: int | None
    gpus: int | None
    memory_bytes: int | None
    memory_per: Literal["node", "core"] | None


# A cluster's jobs ask for the same few things over and over; a memory of them is bounded, and changes no answer.
@lru_cache(maxsize=256)
def parse_request(tres: str, requested_memory: str, node_count: str, core_count: str) -> Request:
    """What TRES strings, `ReqMem`, `NNodes` and `AllocCPUS` say together; the latter two may be empty.

    Raises:
        ParseError: A memory is no size.
    """
    nodes = parse_count(node_count or parse_amount(tres, "node") or "") or None
    cores = parse_count(core_count or parse_amount(tres, "cpu") or "") or None
    return Request(nodes, cores, _parse_gpus(tres), *_parse_memory(requested_memory, tres, nodes, cores))


def _parse_memory(
    requested_memory: str, tres: str, nodes: int | None, cores: int | None
) -> tuple[int | None, Literal["node", "core"] | None]:
    """Memory of the whole job in bytes, and per what it was asked for, which sacct says only before Slurm 21.08.

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
    """Bytes; None for 0, and for what was not set.

    Raises:
        ParseError: The text is no size.
    """
    return None if text.startswith(UNSET) else parse_size(text) or None


def parse_amount(tres: str, name: str) -> str | None:
    """How much of a resource there is in `cpu=4,gres/gpu=2,mem=1600M`; None when it is not named."""
    _, found, rest = f",{tres}".partition(f",{name}=")
    return rest.partition(",")[0] if found else None


def _parse_gpus(tres: str) -> int | None:
    """GPUs of all types; None without any, since a cluster need not track them."""
    if "gres/gpu" not in tres:
        return None
    total = parse_amount(tres, "gres/gpu")
    if total is not None:
        return parse_count(total)
    parts = [part.partition("=") for part in tres.split(",")]
    typed = [parse_count(amount) or 0 for name, _, amount in parts if name.startswith("gres/gpu:")]
    return sum(typed) if typed else None


def parse_seconds(text: str) -> int | None:
    """Seconds of `ElapsedRaw` or `Elapsed`.

    Raises:
        ParseError: The text is no duration.
    """
    return int(parse_elapsed(text)) if ":" in text else parse_count(text)


def parse_time_limit(text: str) -> float | None:
    """Seconds of `TimelimitRaw`, which are minutes, or of `Timelimit`; None without a limit.

    Raises:
        ParseError: The text is no duration.
    """
    if ":" in text:
        return parse_elapsed(text)
    minutes = parse_count(text)
    return minutes * 60 if minutes is not None else None


def parse_count(text: str) -> int | None:
    """A number of at most 15 digits; None for anything else."""
    return int(text) if len(text) <= 15 and text.isascii() and text.isdigit() else None


def parse_time(text: str) -> float | None:
    """Seconds since the epoch; a time without `TIME_ENVIRONMENT` is taken in this machine's time zone.

    Raises:
        ParseError: The text is no time.
    """
    if len(text) <= 15 and text.isascii() and text.isdigit():
        return float(text)
    if text in _NOT_YET:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ParseError(f"{text[:60]!a} is not a time") from None
