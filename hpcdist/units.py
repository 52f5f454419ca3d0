"""Time, memory and other figures with units: parsed as Slurm writes them, and printed for people.

Sizes are 1024-based as in Slurm, whether a unit is spelt `K`, `KB` or `KiB`; only what crosses a network is decimal.
"""

import re
from datetime import UTC, datetime

from hpcdist.errors import ParseError, UsageError

# Digits are counted and written out: no text costs more than its length, and only ASCII digits pass.
_COUNT = "[0-9]{1,9}"
_DAYS_LIMIT = re.compile(rf"({_COUNT})-({_COUNT})(?::({_COUNT}))?(?::({_COUNT}))?")
_LIMIT = re.compile(rf"({_COUNT})(?::({_COUNT}))?(?::({_COUNT}))?")
_UNLIMITED = frozenset({"unlimited", "infinite"})
_MEMORY = re.compile(r"([0-9]{1,15})(?:([KMGT])B?)?", re.IGNORECASE | re.ASCII)
_ELAPSED = re.compile(rf"(?:(?:({_COUNT})-)?({_COUNT}):)?({_COUNT}):([0-9]{{1,9}}(?:\.[0-9]{{0,9}})?)")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) {0,4}(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_INTERVAL = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) {0,4}(s|min|h)", re.IGNORECASE | re.ASCII)
_UNITS = "KMGTPE"
_UNIT_BYTES: dict[str, int] = {letter: 1024**power for power, letter in enumerate(_UNITS, 1)}

_TIME_HINT = 'write minutes ("30"), "minutes:seconds", "hours:minutes:seconds", "days-hours", ... or "UNLIMITED"'
_MEMORY_HINT = 'write a whole number with K, M, G or T ("16G", "1536M"); without a letter it counts megabytes'


def parse_slurm_time(text: str) -> int | None:
    """Return seconds of a `--time` limit; None is no limit.

    Source: sbatch(1), `--time`, and `time_str2secs` in Slurm's `src/common/parse_time.c`. A limit of zero
    "requests that no time limit be imposed", so it is None too.

    Raises:
        UsageError: sbatch would refuse the text, or take it for something the man page does not name ("1-", "-5").
    """
    if text.lower() in _UNLIMITED:
        return None
    if match := _DAYS_LIMIT.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    elif match := _LIMIT.fullmatch(text):
        first, second, third = (int(part or 0) for part in match.groups())
        # Two parts are minutes and seconds, three begin with hours.
        days, hours, minutes, seconds = (0, first, second, third) if match[3] else (0, 0, first, second)
    else:
        raise UsageError(f"time limit {_quote(text)} is not in Slurm's form", _TIME_HINT)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or None


def parse_slurm_memory(text: str) -> int:
    """Return bytes of a `--mem` or `--mem-per-cpu` size; 0 asks for all of a node's memory.

    Source: sbatch(1), `--mem`: a whole number, in megabytes unless K, M, G or T follows. sbatch also takes `16GB`,
    and refuses fractions, `GiB` and P [run with 22.05.8].

    Raises:
        UsageError: sbatch would refuse the text.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise UsageError(f"memory {_quote(text)} is not in Slurm's form", _MEMORY_HINT)
    return int(match[1]) * _UNIT_BYTES[(match[2] or "M").upper()]


def parse_elapsed(text: str) -> float:
    """Return seconds of a duration as sacct, squeue and seff print it: `[[DD-]HH:]MM:SS[.mmm]`.

    Source: sacct(1), `Elapsed` and `TotalCPU`; `time2str` in seff.

    Raises:
        ParseError: The text is no such duration.
    """
    match = _ELAPSED.fullmatch(text)
    if match is None:
        raise ParseError(f"{_quote(text)} is not a duration such as 1-02:03:04")
    days, hours, minutes, seconds = match.groups()
    elapsed_s = int(minutes) * 60 + float(seconds)
    if hours:
        elapsed_s += (int(days or 0) * 24 + int(hours)) * 3600
    return elapsed_s


def parse_duration(text: str) -> float:
    """Return seconds of an interval in hpcdist's own options: `30s`, `5min`, `1.5h`.

    Raises:
        UsageError: The text is no such interval.
    """
    match = _INTERVAL.fullmatch(text)
    if match is None:
        raise UsageError(f"{_quote(text)} is not an interval", "write a number with s, min or h, such as 30s or 5min")
    return float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2].lower()]


def parse_size(text: str) -> int:
    """Return bytes of a size as sacct and seff print it: `62268K`, `3.03 GB`, `1.5GiB`; without a unit, bytes.

    Source: sacct(1), `--units`; `kbytes2str` in seff. Rounded to a whole byte.

    Raises:
        ParseError: The text is no such size.
    """
    # First what sacct prints, without a pattern: most of the time to read thousands of jobs went there.
    if text.isdigit() and len(text) <= 18 and text.isascii():
        return int(text)
    unit_bytes, digits = _UNIT_BYTES.get(text[-1:], 2**63), text[:-1]
    if unit_bytes < 2**40 and digits.isdigit() and len(digits) <= 9 and digits.isascii():
        return int(digits) * unit_bytes
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ParseError(f"{_quote(text)} is not a size such as 503.18 MB")
    unit_bytes = _UNIT_BYTES[match[2].upper()] if match[2] else 1
    # A fraction of a byte is an artefact of the printed decimals, but a whole number must not pass through a float.
    size = int(match[1]) * unit_bytes if "." not in match[1] else round(float(match[1]) * unit_bytes)
    if size >= 2**63:
        raise ParseError(f"{_quote(text)} is more memory than there is")
    return size


def format_duration(seconds: float) -> str:
    """Format as `00:00:13`, `1-02:03:04`: whole seconds as seff prints them, half a second rounded up.

    Source: `time2str` in seff.
    """
    minutes, whole_seconds = divmod(int(max(seconds, 0) + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{whole_seconds:02d}"


def format_bytes(size_bytes: float) -> str:
    """Format as `503.18 MB`: two decimals and 1024-based units under the names seff gives them; 0 is `0.00 MB`.

    Source: `kbytes2str` in seff.
    """
    if size_bytes <= 0:
        return "0.00 MB"
    value, unit = size_bytes / 1024, 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.2f} {_UNITS[unit]}B"


def format_seconds(seconds: float) -> str:
    """Format as `4.30 ms`, `12.3 s`, and from 100 s on `00:02:31`: a column's, with as many digits in each row."""
    if abs(seconds) < 1:
        return f"{_significant(1e3 * seconds, 3)} ms" if seconds else "0 s"
    return f"{seconds:.1f} s" if abs(seconds) < 99.95 else format_duration(seconds)


def format_time(seconds: float) -> str:
    """Format as `9.1 ms`, `91 ms`, `15.2 s`, `12.4 min`, `3.1 h`: a sentence's, where no reader counts digits."""
    if seconds < 1:
        return f"{1e3 * seconds:.1f} ms" if seconds < 0.01 else f"{1e3 * seconds:.0f} ms"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_hours(hours: float, of: str) -> str:
    """Format as `2.5 GPU-hours`, `4.2 GPU-minutes`, `16 GPU-seconds`."""
    if hours >= 1:
        return f"{hours:.3g} {of}-hours"
    return f"{60 * hours:.3g} {of}-minutes" if 60 * hours >= 1 else f"{3600 * hours:.3g} {of}-seconds"


def format_moment(seconds: float) -> str:
    """Format as `2026-03-01 12:10 UTC`: the same text in every time zone."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def format_local_moment(seconds: float) -> str:
    """Format as `2026-03-01T13:10:42`, in this machine's time zone, as `squeue` prints it."""
    return datetime.fromtimestamp(seconds).isoformat(timespec="seconds")


def format_rate(bytes_per_s: float) -> str:
    """Format as `2.4 MB/s`, decimal units, as networks have them."""
    return f"{format_size(bytes_per_s)}/s"


def format_size(size_bytes: float) -> str:
    """Format as `228 kB`, decimal units, as networks have them."""
    for unit, text in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.3g} {text}"
    return f"{size_bytes:.0f} B"


def format_percent(fraction: float) -> str:
    """Format as `84 %`; below a hundredth with a decimal."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.01 else f"{100 * fraction:.1f} %"


def format_share(fraction: float) -> str:
    """Format as `74.1 %`: a column's percentage."""
    return f"{100 * fraction:.1f} %"


def format_accuracy(fraction: float) -> str:
    """Format as `98.96 %`: an accuracy, of which hundredths matter."""
    return f"{100 * fraction:.2f} %"


def format_number(value: float) -> str:
    """Format as `24,300`, `0.2860`, `4`: four digits, and all of a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else _significant(value, 4)


def format_figure(value: float) -> str:
    """Format as `1,034.5`: a figure with the digits it was printed with, thousands apart."""
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:,.0f}"


def format_money(amount: float) -> str:
    """Format as `12.50`, and under one unit `0.286`."""
    return f"{amount:,.2f}" if abs(amount) >= 1 or not amount else _significant(amount, 3)


def format_factor(factor: float) -> str:
    """Format as `2.96×`."""
    return f"{factor:.2f}×"


def _significant(value: float, digits: int) -> str:
    """Return that many significant digits, also where they are zeros: what stands in a column has as many."""
    return f"{value:#.{digits}g}".rstrip(".")


def _quote(text: str) -> str:
    """Return the text as an error shows it: short, and with control characters escaped."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
