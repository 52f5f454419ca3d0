"""The lines of seff's output: what was pasted around them taken off, each label and value read on its own. Pure.

Source of the genuine lines: `contribs/seff/seff` of Slurm 16.05 to 25.11. Source of the others: what centres' own
versions print: NeSI (`nn_seff`: `Job Wall-time`, `Mem Efficiency`), CSC (billing units, GPU tables), OSC
(`GPUs per Node`, `GPU Memory Utilized`, `GPU-walltime`) and sites that spell `Utilisation` or print GiB.
"""

import re
from collections.abc import Callable
from typing import Any

from hpcdist.errors import ParseError
from hpcdist.text import printable
from hpcdist.units import parse_elapsed, parse_size

Values = dict[str, Any]
"""Fields of an `Efficiency` by name, and of the draft it is made from (`memory_printed_eb`, `gpus_per_node`)."""

# Nothing seff prints is as long as this; the limit keeps every pattern below linear in the whole text.
LONGEST_LINE = 2000

# Comment signs, bullets (also as middle dot and dashes), quoting, table and heading rules, list numbers.
_DECORATION = re.compile(r"(?:[ #>*•·\u2013\u2014|+_%;!~=-]|//|[0-9]{1,3}[.)] )+")
_COMMENT = re.compile(r" (?:#|//|<|←|\*\().*")
_NOISE = (
    "perl:",
    "Use of uninitialized value",
    "are supported and installed on your system",
    "LANGUAGE =",
    "LANG =",
    "Slurm data:",  # seff -d
)
_LOCALE = re.compile(r"LC_[A-Z]+ = .*")
_JOB_ID = re.compile(r"[0-9]{1,20}(?:_[0-9]{1,20})?(?:\+[0-9]{1,9})?")
_ARRAY_ID = re.compile(r"[0-9]{1,20}_[0-9]{1,20}")
_STATE = re.compile(r"([A-Z][A-Z_]{1,39})\+?(?: by [0-9]{1,12})?(?: \(exit code ([0-9]{1,10})\))?")
_INTEGER = re.compile(r"[0-9]{1,15}")
_AMOUNT = r"[0-9][0-9.:-]{0,40}(?: ?[KMGTPE]?i?B)?"
_SHARE = re.compile(
    rf"([0-9.]{{1,40}} ?%|-)(?: (?:({_AMOUNT}) )?of ({_AMOUNT}))?"
    rf"(?: [A-Za-z][A-Za-z -]{{0,30}})?(?: \({_AMOUNT}/([a-z]+)\))?"
)
_UTILIZED = re.compile(rf"({_AMOUNT})( \(estimated maximum\))?")
_MISSING = frozenset({"", "-", "--", "---", "n/a", "na", "none", "unknown", "(null)"})
_WORDS = {
    "mem": "memory",
    "utilised": "utilized",
    "used": "utilized",
    "utilisation": "utilization",
    "util": "utilization",
    "usage": "utilization",
    "wallclock": "wall clock",
    "walltime": "wall time",
    "timelimit": "time limit",
    "jobid": "job id",
    "nodelist": "node list",
}


def clean_line(line: str) -> str:
    """The line without controls, escapes, indentation, comment signs, bullets, bold marks and fences."""
    text = printable(line)
    if text.startswith(("```", "~~~")):
        return ""
    text = text.replace("**", "").replace("`", "")
    if match := _DECORATION.match(text):
        text = text[match.end() :]
    return text.rstrip(" |*\\")


def is_noise(text: str) -> bool:
    """Whether a cleaned line is what perl, the locale, `seff -d` or a shell prints around the output."""
    if not text or text.startswith(_NOISE) or "setlocale:" in text or _LOCALE.fullmatch(text):
        return True
    words = text.split(" ")
    # A prompt with the command on it: "[user@login ~]$ seff -d 123".
    typed = [index for index, word in enumerate(words[:-1]) if word.endswith("seff")]
    return (
        bool(typed) and bool(_JOB_ID.fullmatch(words[-1])) and all(w.startswith("-") for w in words[typed[0] + 1 : -1])
    )


def is_prompt(text: str) -> bool:
    """Whether a cleaned line is an empty shell prompt such as `[user@login ~]$`."""
    if ": " in text or text.count(" ") > 2:  # "Cost: 12 $" is a site's line
        return False
    return text.endswith("$") or ("@" in text and text.endswith(("]#", "%")))


def normalize_label(label: str) -> str:
    """The label as `LABELS` has it: lower case, one spelling per word."""
    return " ".join(_WORDS.get(word, word) for word in label.lower().replace("-", " ").split())


def strip_comment(value: str) -> str:
    """The value without what someone wrote behind it ("<=== !!!", "# too much") and without leftover marks."""
    return _COMMENT.sub("", " " + value).strip(" *")


def read_value(label: str, value: str) -> Values | None:
    """The fields a line gives; {} when it says "unknown"; None when the value has not the shape the label promises."""
    # A user "n" of the group "a" prints as n/a.
    if value.lower() in _MISSING and not (label == "user/group" and value == "n/a"):
        return {}
    try:
        return LABELS[label](value)
    except ParseError:
        return None


def _read_job_id(value: str) -> Values | None:
    if not _JOB_ID.fullmatch(value):
        return None
    return {"job_id": value, "array_job_id": value} if "_" in value else {"job_id": value}


def _read_array_job_id(value: str) -> Values | None:
    return {"array_job_id": value} if _ARRAY_ID.fullmatch(value) else None


def _read_user_and_group(value: str) -> Values | None:
    # The first slash parts them: groups may hold spaces and, with a directory service, almost anything.
    user, slash, group = value.partition("/")
    found: Values = {"user": None if user in {"", "-"} else user}
    return found | {"group": None if group in {"", "-"} else group} if slash else found


def _read_state(value: str) -> Values | None:
    match = _STATE.fullmatch(value)
    if match is None:
        return None
    return {"state": match[1], "exit_code": int(match[2]) if match[2] else None}


def _text(field: str) -> Callable[[str], Values | None]:
    return lambda value: {field: value}


def _integer(field: str) -> Callable[[str], Values | None]:
    return lambda value: {field: int(value)} if _INTEGER.fullmatch(value) else None


def _duration(field: str) -> Callable[[str], Values | None]:
    return lambda value: {field: parse_elapsed(value)}


def _read_cpu(value: str) -> Values | None:
    """`00:07:43`, `7.27% of 01:46:08 core-walltime`, or NeSI's `5.5% 03:54:05 of 2-22:50:48 core-walltime`."""
    share = _SHARE.fullmatch(value)
    if share is None:
        return {"cpu_time_s": parse_elapsed(value)}
    found: Values = {"cpu_efficiency": _fraction(share[1])}
    if share[2]:
        found["cpu_time_s"] = parse_elapsed(share[2])
    if share[3]:
        found["core_walltime_s"] = parse_elapsed(share[3])
    return found


def _read_wall_time(value: str) -> Values | None:
    """`00:03:19`, or NeSI's `18.0% 00:53:59 of 05:00:00 time limit`."""
    share = _SHARE.fullmatch(value)
    if share is None:
        return {"wall_time_s": parse_elapsed(value)}
    if not share[2] or not share[3]:
        return None
    return {"wall_time_s": parse_elapsed(share[2]), "time_limit_s": parse_elapsed(share[3])}


def _read_memory(value: str) -> Values | None:
    """`3.03 GB (estimated maximum)`, `37.87% of 8.00 GB (8.00 GB/node)`, or NeSI's `22.7% 6.81 GB of 30.00 GB`."""
    utilized = _UTILIZED.fullmatch(value)
    if utilized is not None:
        return _memory_utilized(utilized[1]) | {"memory_is_estimate": utilized[2] is not None}
    share = _SHARE.fullmatch(value)
    if share is None or not share[3]:
        return None
    found: Values = {"memory_efficiency": _fraction(share[1]), "memory_requested_bytes": _memory_requested(share[3])}
    if share[2]:
        found |= _memory_utilized(share[2])
    if share[4] is not None:
        found["memory_per"] = {"node": "node", "core": "core", "cpu": "core"}.get(share[4])
    return found


def _memory_utilized(size: str) -> Values:
    if size.endswith("EB"):
        # No job used exabytes: Slurm 18.08.5 to .7 print kilobytes, and "nothing gathered", under this unit.
        return {"memory_used_bytes": None, "memory_printed_eb": parse_size(size[:-2].rstrip() + " KB")}
    return {"memory_used_bytes": parse_size(size)}


def _memory_requested(size: str) -> int | None:
    # Without a memory figure in the accounting seff turns "infinite" into 16.00 EB or 16.00 B, by release.
    return None if size.endswith(("EB", " B")) else parse_size(size)


def _read_gpu_efficiency(value: str) -> Values | None:
    # OSC's "GPU Utilization: 20:00:00" is a time, and more than 100 % is a sum over GPUs: neither is a mean.
    share = _SHARE.fullmatch(value)
    fraction = _fraction(share[1]) if share else None
    return {"gpu_efficiency": fraction} if fraction is not None and fraction <= 1 else None


def _read_gpu_memory(value: str) -> Values | None:
    return {"gpu_memory_used_bytes": parse_size(value)} if value.endswith("B") else None


def _read_time_efficiency(value: str) -> Values | None:
    """`18.00% of 05:00:00`: only the limit is new, the share follows from it and the wall-clock."""
    share = _SHARE.fullmatch(value)
    return {"time_limit_s": parse_elapsed(share[3])} if share and share[3] else None


def _fraction(percent: str) -> float | None:
    try:
        return None if percent == "-" else round(float(percent.rstrip("% ")) / 100, 10)
    except ValueError:
        raise ParseError(f"{percent!a} is not a percentage") from None


GENUINE: dict[str, Callable[[str], Values | None]] = {
    "job id": _read_job_id,
    "array job id": _read_array_job_id,
    "cluster": _text("cluster"),
    "user/group": _read_user_and_group,
    "state": _read_state,
    "nodes": _integer("nodes"),
    "cores": _integer("cores"),
    "cores per node": _integer("cores_per_node"),
    "cpu utilized": _read_cpu,
    "cpu efficiency": _read_cpu,
    "job wall clock time": _read_wall_time,
    "memory utilized": _read_memory,
    "memory efficiency": _read_memory,
}
"""The genuine labels, in order. A value of theirs that cannot be read means that the text is something else."""

LABELS: dict[str, Callable[[str], Values | None]] = GENUINE | {
    "user": _text("user"),
    "group": _text("group"),
    "partition": _text("partition"),
    "job name": _text("name"),
    "node list": _text("node_list"),
    "cpu utilization": _read_cpu,
    "memory utilization": _read_memory,
    "cpus per node": _integer("cores_per_node"),
    **dict.fromkeys(("job wall time", "wall time", "wall clock time", "elapsed time", "elapsed"), _read_wall_time),
    **dict.fromkeys(
        ("time limit", "job time limit", "wall time limit", "requested wall time", "wall time requested"),
        _duration("time_limit_s"),
    ),
    **dict.fromkeys(("time efficiency", "time limit efficiency", "wall time efficiency"), _read_time_efficiency),
    **dict.fromkeys(("gpus", "total gpus", "number of gpus", "allocated gpus", "gpus allocated"), _integer("gpus")),
    "gpus per node": _integer("gpus_per_node"),
    **dict.fromkeys(
        ("gpu efficiency", "gpu utilization", "average gpu utilization", "mean gpu utilization"), _read_gpu_efficiency
    ),
    **dict.fromkeys(("gpu memory utilized", "gpu memory utilization"), _read_gpu_memory),
}
"""Every label that is turned into fields."""

HEADER = frozenset({"job id", "array job id", "cluster", "user/group"})
FIGURES = frozenset(
    label for label in LABELS if label.startswith(("cpu ", "memory ", "gpu ")) or label.endswith(("time", "efficiency"))
)
"""Labels that begin a job, and labels that none of these follows within one job."""
