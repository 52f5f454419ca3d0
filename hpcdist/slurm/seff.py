"""What `seff` prints, of every Slurm release and many a site's own version, parsed and formatted.

Source of the genuine lines: `contribs/seff/seff` of Slurm 16.05 to 25.11. Source of the others: what centres' own
versions print: NeSI (`nn_seff`: `Job Wall-time`, `Mem Efficiency`), CSC (billing units, GPU tables), OSC
(`GPUs per Node`, `GPU Memory Utilized`, `GPU-walltime`) and sites that spell `Utilisation` or print GiB.

`parse_seff` reads; `format_seff` prints in the layout of Slurm 24.11. Where seff prints a figure for something nobody
measured, the record has None.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from hpcdist.errors import ParseError
from hpcdist.records.efficiency import IMBALANCE, Efficiency, name_kinds
from hpcdist.text import printable
from hpcdist.units import format_bytes, format_duration, parse_elapsed, parse_size

Values = dict[str, Any]
"""Fields of an `Efficiency` by name, and of the draft it is made from (`memory_printed_eb`, `gpus_per_node`)."""

# Nothing seff prints is as long as this; the limit keeps every pattern below linear in the whole text.
LONGEST_LINE = 2000

# Comment signs, bullets (also as middle dot and dashes), quoting, table and heading rules, list numbers.
_DECORATION = re.compile(r"(?:[ #>*•·\u2013\u2014|+_%;!~=-]|//|[0-9]{1,3}[.)] )+")
_COMMENT = re.compile(r" (?:#|//|<|←|\*\().*")
_NOISE = (
    *("perl:", "Use of uninitialized value", "are supported and installed on your system", "LANGUAGE =", "LANG ="),
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
    """Return the line without controls, escapes, indentation, comment signs, bullets, bold marks and fences."""
    text = printable(line)
    if text.startswith(("```", "~~~")):
        return ""
    text = text.replace("**", "").replace("`", "")
    if match := _DECORATION.match(text):
        text = text[match.end() :]
    return text.rstrip(" |*\\")


def is_noise(text: str) -> bool:
    """Return whether a cleaned line is what perl, the locale, `seff -d` or a shell prints around the output."""
    if not text or text.startswith(_NOISE) or "setlocale:" in text or _LOCALE.fullmatch(text):
        return True
    words = text.split(" ")
    # A prompt with the command on it: "[user@login ~]$ seff -d 123".
    typed = [index for index, word in enumerate(words[:-1]) if word.endswith("seff")]
    return (
        bool(typed) and bool(_JOB_ID.fullmatch(words[-1])) and all(w.startswith("-") for w in words[typed[0] + 1 : -1])
    )


def is_prompt(text: str) -> bool:
    """Return whether a cleaned line is an empty shell prompt such as `[user@login ~]$`."""
    if ": " in text or text.count(" ") > 2:  # "Cost: 12 $" is a site's line
        return False
    return text.endswith("$") or ("@" in text and text.endswith(("]#", "%")))


def normalize_label(label: str) -> str:
    """Return the label as `LABELS` has it: lower case, one spelling per word."""
    return " ".join(_WORDS.get(word, word) for word in label.lower().replace("-", " ").split())


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


def _read_time_limit(value: str) -> Values | None:
    return {"time_limit_s": parse_elapsed(value)}


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
        _read_time_limit,
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


HINT = "seff's output begins with a line 'Job ID: 123'; see docs/seff.md for what is understood"

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9 ()/%._-]{0,59}")
_CONSUMED = re.compile(r"(Job consumed) (.+)")
# Sentences long enough to be wrapped where they are pasted: the name `extra` keeps them under, and the rest of them.
_RUNNING = (
    "Efficiency statistics can only be obtained after the job has ended as seff tool is based on the "
    "accounting database data."
)
_SENTENCE_TEXTS = (
    ("WARNING", "Efficiency statistics may be misleading for RUNNING jobs."),
    ("WARNING", _RUNNING),
    ("Efficiency", "not available for jobs in the PENDING state."),
    (IMBALANCE, "differs by % from the average task max memory consumption"),
)
# A shorter start could be anything.
_SHORTEST_START = 8
_DIFFERS = re.compile(r"differsby([0-9.]*)%?")


def _squeeze(text: str) -> str:
    """Return the text without white space and without its percentage: what stays the same wherever it was wrapped."""
    return _DIFFERS.sub("differsby%", re.sub(r"\s", "", text))


_SENTENCES = tuple(
    (name, rest, _squeeze(f"{name}{':' if name == 'WARNING' else ''}{rest}")) for name, rest in _SENTENCE_TEXTS
)
# CSC's tables: a title, this header, a row per GPU. Mean, standard deviation and maximum follow the GPU's number.
_TABLE_TITLE = re.compile(r"(GPU (?:load|memory|energy(?: usage)?)):?", re.IGNORECASE)
_TABLE_HEADER = re.compile(r"Hostname GPU Id .*")
_TABLE_ROW = re.compile(r"(\S+ [0-9]{1,3}) ([0-9.]{1,20})(?: [0-9.]{1,20} ([0-9.]{1,20}))?")


class Draft:
    """One job's lines while they are read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.values: Values = {}
        self.extra: dict[str, str] = {}
        self.labels: set[str] = set()
        self.sentence = ""
        self.table = ""
        self.gpu_means: list[float] = []
        self.gpu_peaks: list[float] = []

    def is_another_job(self, text: str) -> bool:
        """Return whether another job begins here: the line repeats a label, or is a heading after the figures."""
        label, colon, _ = text.partition(":")
        name = normalize_label(label) if colon else ""
        return name in self.labels or (name in HEADER and not FIGURES.isdisjoint(self.labels))

    def read(self, text: str) -> bool:
        """Take a cleaned line in; False when it is nothing that seff prints."""
        if self._read_sentence(text) or is_noise(text):
            return True
        label, colon, rest = text.partition(":")
        label = label.strip()
        if colon and normalize_label(label) in LABELS:
            return self._read_field(label, rest)
        if not self.labels:
            return False  # only a line of seff's own may begin a job
        if self._read_table(text) or is_prompt(text):
            return True
        if colon and _LABEL.fullmatch(label):
            self._keep(label, rest.strip())
            return True
        if match := _CONSUMED.fullmatch(text):
            self._keep(match[1], match[2])
            return True
        return False

    def _read_field(self, label: str, value: str) -> bool:
        name = normalize_label(label)
        # Without what someone wrote behind it ("<=== !!!", "# too much") and without leftover marks.
        value = _COMMENT.sub("", " " + value).strip(" *")
        try:
            fields = LABELS[name](value)
        except ParseError:
            fields = None
        # A user "n" of the group "a" prints as n/a.
        if value.lower() in _MISSING and (name, value) != ("user/group", "n/a"):
            fields = {}
        if fields is None and name in GENUINE:
            return False
        self.labels.add(name)
        self.table = ""
        known = self.values.keys() & fields.keys() if fields else set()
        if fields is None or any(self.values[key] != fields[key] for key in known):
            # Two lines that disagree about one field: the first stands, the other is kept as it was printed.
            self._keep(label, value)
            fields = {key: item for key, item in (fields or {}).items() if key not in known}
        self.values |= fields
        return True

    def _read_sentence(self, text: str) -> bool:
        """Take a known sentence in, whole or the next piece of a wrapped one."""
        if not self.labels or not text:
            return False
        for sentence in (f"{self.sentence} {text}", text) if self.sentence else (text,):
            squeezed = _squeeze(sentence)
            for name, rest, known in _SENTENCES if len(squeezed) >= _SHORTEST_START else ():
                if known == squeezed:
                    # Told anew from what it says, for a break within a word cannot be seen any more.
                    percent = _DIFFERS.search(re.sub(r"\s", "", sentence))
                    self.extra[name] = rest.replace("%", f"{percent[1] if percent else ''}%")
                    self.sentence = ""
                    return True
                if known.startswith(squeezed):
                    self.sentence = sentence
                    return True
        self._end_sentence()
        return False

    def _end_sentence(self) -> None:
        """Keep the start of a sentence that was cut off."""
        if self.sentence:
            self._keep("...", self.sentence)
        self.sentence = ""

    def _read_table(self, text: str) -> bool:
        if title := _TABLE_TITLE.fullmatch(text):
            self.table = title[1]
            return True
        row = _TABLE_ROW.fullmatch(text)
        if not self.table or not (row or _TABLE_HEADER.fullmatch(text)):
            return False
        if row:
            self._keep(f"{self.table} {row[1]}", text.removeprefix(row[1]).strip())
            try:
                mean, peak = float(row[2]), float(row[3] or "nan")
            except ValueError:
                return False
            if self.table.lower() == "gpu load":
                self.gpu_means.append(mean)
            elif self.table.lower() == "gpu memory" and row[3]:
                self.gpu_peaks.append(peak)
        return True

    def _keep(self, name: str, value: str) -> None:
        self.extra[name] = f"{self.extra[name]}; {value}" if name in self.extra else value

    def finish(self) -> Efficiency:
        """Build the complete job.

        Raises:
            ParseError: Its id or its figures are missing, so that it would be half a record.
        """
        self._end_sentence()
        values = self.values
        if "job_id" not in values:
            if values.get("array_job_id") is None:
                raise ParseError(f"the job that begins at line {self.number} has no 'Job ID' line", HINT)
            values["job_id"] = values["array_job_id"]
        if not values.keys() & {"state", "wall_time_s", "cpu_time_s", "core_walltime_s"}:
            raise ParseError(f"the job that begins at line {self.number} has an id and nothing else", HINT)
        if self.gpu_means:
            values.setdefault("gpu_efficiency", round(sum(self.gpu_means) / len(self.gpu_means) / 100, 10))
            values.setdefault("gpus", len(self.gpu_means))
        if self.gpu_peaks:
            values.setdefault("gpu_memory_used_bytes", round(sum(self.gpu_peaks) * 1024**3))
        return _finish(values, self.extra)


def _finish(values: Values, extra: dict[str, str]) -> Efficiency:
    """Return the record of one job's printed values, with what seff only seems to say taken out."""
    _finish_cores(values)
    _finish_memory(values)
    if not values.get("core_walltime_s"):
        values["cpu_efficiency"] = None  # seff prints 0.00% where it would have divided by zero
    per_node = values.pop("gpus_per_node", None)
    if per_node is not None and values.get("nodes") is not None:
        values.setdefault("gpus", per_node * values["nodes"])
    kinds = name_kinds(
        "seff",
        cpu=values.get("cpu_time_s"),
        memory=values["memory_used_bytes"],
        memory_is_estimate=values["memory_is_estimate"],
        gpu=values.get("gpu_efficiency"),
        gpu_memory=values.get("gpu_memory_used_bytes"),
    )
    values |= {"live": values.get("state") == "RUNNING", "kinds": kinds, "extra": extra}
    return msgspec.convert(values, Efficiency)


def _finish_cores(values: Values) -> None:
    """Total cores: `Cores per node` is truncated (100 CPUs on 13 nodes print 7), core-walltime / wall-clock is not."""
    nodes, cores, per_node = values.get("nodes"), values.get("cores"), values.get("cores_per_node")
    if cores == 1 and nodes is None:
        nodes = 1  # genuine seff prints `Cores: 1` in place of both node lines
    wall_s, core_walltime_s = values.get("wall_time_s"), values.get("core_walltime_s")
    if cores is None and wall_s and core_walltime_s and core_walltime_s % wall_s == 0:
        derived = int(core_walltime_s // wall_s)
        if per_node is None or derived // (nodes or derived // (per_node or 1) or 1) == per_node:
            cores = derived
    if cores is None and nodes is not None and per_node is not None:
        cores = nodes * per_node
    if nodes is None and cores is not None and cores == per_node:
        nodes = 1
    if per_node is None and nodes == 1:
        per_node = cores
    values |= {"nodes": nodes, "cores": cores, "cores_per_node": per_node}


def _finish_memory(values: Values) -> None:
    """No data prints as 0.00 MB, or as 16.00 EB; a denominator of zero as 0.00 %. None of them was measured."""
    printed_kb = values.pop("memory_printed_eb", None)
    requested, efficiency = values.get("memory_requested_bytes") or None, values.get("memory_efficiency")
    used = values.get("memory_used_bytes") or None
    if printed_kb is not None and requested is not None and efficiency is not None:
        percent = printed_kb / requested * 100
        # Two printed decimals on either side: half a hundredth of the percentage, and at most 0.5 % of the request.
        if abs(percent - efficiency * 100) <= 0.0051 + 0.005 * percent:
            used = printed_kb
    values["memory_used_bytes"], values["memory_requested_bytes"] = used, requested
    values["memory_efficiency"] = efficiency if used is not None and requested is not None else None
    values["memory_is_estimate"] = bool(values.get("memory_is_estimate")) and used is not None


_NEWLINE = re.compile(r"\r\n|\n|\r")


def parse_seff(text: str) -> list[Efficiency]:
    """Return every job in a text of seff's output, in order.

    The text may have been pasted: comment signs, bullets, bold, indentation, escape sequences, shell prompts, locale
    warnings and wrapped warnings are seen through.

    Raises:
        ParseError: A line is nothing that seff prints, or there is no job at all.
    """
    return list(iter_seff(_NEWLINE.split(text)))


def iter_seff(lines: Iterable[str]) -> Iterator[Efficiency]:
    """Yield what `parse_seff` returns, a job at a time, from lines with or without their ends.

    Raises:
        ParseError: As `parse_seff`, once the jobs before the offending line were given out.
    """
    draft: Draft | None = None
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise _unreadable(number, line)
        text = clean_line(line)
        if draft is None or draft.is_another_job(text):
            if is_noise(text) or is_prompt(text):
                continue
            if draft is not None:
                yield draft.finish()
            draft = Draft(number)
        if not draft.read(text):
            raise _unreadable(number, text)
    if draft is None:
        raise ParseError("there is no job in this text", HINT)
    yield draft.finish()


def _unreadable(number: int, text: str) -> ParseError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return ParseError(f"line {number} is nothing that seff prints: {shown!a}", HINT)


def format_seff(efficiency: Efficiency) -> str:
    """Return the job as seff of Slurm 24.11 and later prints it, each line with its end.

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
    if one.extra.get(IMBALANCE, "").startswith("differs by "):
        lines.append(f"{IMBALANCE} {one.extra[IMBALANCE]}")
    if one.state == "RUNNING":
        lines.append(f"WARNING: {_RUNNING}")
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
