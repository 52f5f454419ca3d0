"""What `seff` prints, of every Slurm release and many a site's own version, read and printed. Pure.

`parse_seff` reads; `format_seff` prints in the layout of Slurm 24.11. Where seff prints a figure for something nobody
measured, the record has None.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from hpcdist.errors import ParseError
from hpcdist.records.efficiency import Efficiency
from hpcdist.seff_job import HINT, Draft
from hpcdist.seff_lines import LONGEST_LINE, clean_line, is_noise, is_prompt
from hpcdist.units import format_bytes, format_duration

_NEWLINE = re.compile(r"\r\n|\n|\r")
_IMBALANCE = "The task which had the largest memory consumption"
_RUNNING = (
    "WARNING: Efficiency statistics can only be obtained after the job has ended as seff tool is based on the "
    "accounting database data."
)


def parse_seff(text: str) -> list[Efficiency]:
    """Every job in a text of seff's output, in order.

    The text may have been pasted: comment signs, bullets, bold, indentation, escape sequences, shell prompts, locale
    warnings and wrapped warnings are seen through.

    Raises:
        ParseError: A line is nothing that seff prints, or there is no job at all.
    """
    return list(iter_seff(_NEWLINE.split(text)))


def iter_seff(lines: Iterable[str]) -> Iterator[Efficiency]:
    """As `parse_seff`, a job at a time, from lines with or without their ends.

    Raises:
        ParseError: As `parse_seff`, once the jobs before the offending line were given out.
    """
    draft: Draft | None = None
    found = False
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise _unreadable(number, line)
        text = clean_line(line)
        if draft is None or draft.is_another_job(text):
            if is_noise(text) or is_prompt(text):
                continue
            if draft is not None:
                found = True
                yield draft.finish()
            draft = Draft(number)
        if not draft.read(text):
            raise _unreadable(number, text)
    if draft is not None:
        found = True
        yield draft.finish()
    if not found:
        raise ParseError("there is no job in this text", HINT)


def _unreadable(number: int, text: str) -> ParseError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return ParseError(f"line {number} is nothing that seff prints: {shown!a}", HINT)


def format_seff(efficiency: Efficiency) -> str:
    """The job as seff of Slurm 24.11 and later prints it, each line with its end.

    Where seff prints a zero for something nobody measured, there is a dash; `parse_seff` reads it back as None.
    """
    one = efficiency
    lines = [f"Job ID: {one.job_id}"]
    if one.array_job_id:
        lines.append(f"Array Job ID: {one.array_job_id}")
    lines += [f"Cluster: {one.cluster or '-'}", f"User/Group: {one.user or '-'}/{one.group or '-'}"]
    lines.append(f"State: {one.state or '-'}" + (f" (exit code {one.exit_code})" if one.exit_code is not None else ""))
    if one.cores == 1:
        lines.append("Cores: 1")
    elif one.nodes and one.cores:
        lines += [f"Nodes: {one.nodes}", f"Cores per node: {one.cores // one.nodes}"]
    if one.state == "PENDING":
        return "\n".join([*lines, "Efficiency not available for jobs in the PENDING state.", ""])
    lines += [*_format_cpu(one), *_format_memory(one)]
    if one.extra.get(_IMBALANCE, "").startswith("differs by "):
        lines.append(f"{_IMBALANCE} {one.extra[_IMBALANCE]}")
    if one.state == "RUNNING":
        lines.append(_RUNNING)
    return "\n".join([*lines, ""])


def _format_cpu(one: Efficiency) -> list[str]:
    lines = [f"CPU Utilized: {_or_dash(one.cpu_time_s, format_duration)}"]
    if one.core_walltime_s is not None:
        share = _or_dash(one.cpu_efficiency, "{:.2%}".format)
        lines.append(f"CPU Efficiency: {share} of {format_duration(one.core_walltime_s)} core-walltime")
    if one.wall_time_s is not None:
        lines.append(f"Job Wall-clock time: {format_duration(one.wall_time_s)}")
    return lines


def _format_memory(one: Efficiency) -> list[str]:
    estimate = " (estimated maximum)" if one.memory_is_estimate else ""
    lines = [f"Memory Utilized: {_or_dash(one.memory_used_bytes, format_bytes)}{estimate}"]
    if one.memory_requested_bytes is not None:
        share = _or_dash(one.memory_efficiency, "{:.2%}".format)
        parts = {"node": one.nodes, "core": one.cores}.get(one.memory_per or "")
        per = f" ({format_bytes(one.memory_requested_bytes / parts)}/{one.memory_per})" if parts else ""
        lines.append(f"Memory Efficiency: {share} of {format_bytes(one.memory_requested_bytes)}{per}")
    return lines


def _or_dash(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)
