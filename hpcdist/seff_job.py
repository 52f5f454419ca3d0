"""One job's lines while they are read, and what they are worth once all are. Pure."""

import re

import msgspec

from hpcdist.errors import ParseError
from hpcdist.records.efficiency import Efficiency, name_kinds
from hpcdist.seff_lines import (
    FIGURES,
    GENUINE,
    HEADER,
    LABELS,
    Values,
    is_noise,
    is_prompt,
    normalize_label,
    read_value,
    strip_comment,
)

HINT = "seff's output begins with a line 'Job ID: 123'; see docs/seff.md for what is understood"

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9 ()/%._-]{0,59}")
_CONSUMED = re.compile(r"(Job consumed) (.+)")
# Sentences long enough to be wrapped where they are pasted: the name `extra` keeps them under, and the rest of them.
_SENTENCE_TEXTS = (
    ("WARNING", "Efficiency statistics may be misleading for RUNNING jobs."),
    (
        "WARNING",
        "Efficiency statistics can only be obtained after the job has ended as seff tool is based on the "
        "accounting database data.",
    ),
    ("Efficiency", "not available for jobs in the PENDING state."),
    (
        "The task which had the largest memory consumption",
        "differs by % from the average task max memory consumption",
    ),
)
# A shorter start could be anything.
_SHORTEST_START = 8
_DIFFERS = re.compile(r"differsby([0-9.]*)%?")


def _squeeze(text: str) -> str:
    """The text without white space and without its percentage: what stays the same wherever it was wrapped."""
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
        """Whether another job begins with this line: it repeats a label, or it is a heading after the figures."""
        label, colon, _ = text.partition(":")
        name = normalize_label(label) if colon else ""
        return name in self.labels or (name in HEADER and not FIGURES.isdisjoint(self.labels))

    def read(self, text: str) -> bool:
        """Takes a cleaned line in; False when it is nothing that seff prints."""
        if self._read_sentence(text):
            return True
        if is_noise(text):
            return True
        label, colon, rest = text.partition(":")
        label = label.strip()
        if colon and normalize_label(label) in LABELS:
            return self._read_field(label, strip_comment(rest))
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
        fields = read_value(name, value)
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
        """Takes a known sentence in, whole or the next piece of a wrapped one."""
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
        """Keeps the start of a sentence that was cut off."""
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
        """The job, complete.

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
    """The record of one job's printed values, with what seff only seems to say taken out."""
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
