"""A batch script as the linter sees it: what sbatch takes from it, its commands, and what it asks for. Pure."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property

import msgspec

from hpcdist.directives import Directive, Header, parse_header
from hpcdist.errors import UsageError
from hpcdist.launches import TORCH_LAUNCHERS, Launch, Program, is_python, read_launches
from hpcdist.shell import Assignment, Shell, parse_shell
from hpcdist.shell_words import Word
from hpcdist.units import parse_slurm_memory, parse_slurm_time

# Python programs that prepare or finish: nobody wants them on every node.
_HELPERS = re.compile(r"prepro|prepare|download|convert|plot|post|summar|collect|merge|report|tokeni|setup\.py|check")
_HELPER_MODULES = ("venv", "pip", "json.tool", "http.server", "compileall", "ensurepip", "hpcdist.probe")
_TRIVIAL = frozenset(
    "hostname nvidia-smi rocm-smi scontrol sinfo squeue echo printf date mkdir cp mv rm rsync tar unzip cat ls env printenv"
    " true false sleep uname lscpu free df du id whoami which module ulimit wget curl git pip pip3 conda touch chmod"
    " source . cd export set test [ sbcast ray export unset declare local typeset readonly unsetenv trap kill if exit"
    " wait eval return read huggingface-cli hf wandb ln head tail grep sed awk find pwd sync".split()
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a job or a component of one asks for, as far as its directives say it.

    Attributes:
        nodes: Nodes, at least; None where they follow from something else.
        tasks: Tasks in all.
        tasks_per_node: Tasks on each node.
        cpus_per_task: CPUs of each task.
        gpus_per_node: GPUs on each node.
        gpus: GPUs in all.
        gpus_per_task: GPUs bound to each task.
    """

    nodes: int | None = None
    tasks: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gpus: int | None = None
    gpus_per_task: int | None = None

    @property
    def node_count(self) -> int:
        """Nodes for certain."""
        if self.nodes is not None:
            return self.nodes
        if self.tasks and self.tasks_per_node:
            return -(-self.tasks // self.tasks_per_node)
        return -(-self.gpus // self.gpus_per_node) if self.gpus and self.gpus_per_node else 1

    @property
    def task_count(self) -> int:
        """Tasks for certain; one on each node where nothing says otherwise."""
        return self.tasks or self.node_count * (self.tasks_per_node or 1)

    @property
    def node_tasks(self) -> int | None:
        """Tasks of each node, if they are the same everywhere."""
        if self.tasks_per_node is not None and (self.tasks is None or self.node_count > 1 or self.nodes is None):
            return self.tasks_per_node
        if self.tasks is None:
            return 1
        return self.tasks // self.node_count if self.tasks % self.node_count == 0 else None

    @property
    def node_gpus(self) -> int | None:
        """GPUs of each node, if they are the same everywhere."""
        if self.gpus_per_node is not None:
            return self.gpus_per_node
        if self.gpus_per_task is not None and self.node_tasks:
            return self.gpus_per_task * self.node_tasks
        if self.gpus is not None and self.nodes is not None and self.gpus % self.nodes == 0:
            return self.gpus // self.nodes
        return None


class Script:
    """A batch script.

    Args:
        data: Its bytes.

    Attributes:
        original: Its bytes as they were given.
        data: Its bytes with Unix line ends, to which all places refer.
        header: What sbatch takes from it.
        shell: Its commands.
    """

    def __init__(self, data: bytes) -> None:
        self.original = data
        self.data = data.replace(b"\r\n", b"\n")
        self.header: Header = parse_header(self.data)
        self.shell: Shell = parse_shell(self.data)
        self._line_starts = [0, *(found.end() for found in re.finditer(b"\n", self.data))]

    def line_of(self, at: int) -> int:
        """Line of a byte, from 1."""
        return bisect_right(self._line_starts, at)

    def place_of(self, at: int) -> tuple[int, int]:
        """Line and column (in characters) of a byte, both from 1."""
        line = self.line_of(at)
        before = self.data[self._line_starts[line - 1] : at]
        return line, len(before.decode(errors="replace")) + 1

    def line_start(self, at: int) -> int:
        """The byte at which the line of a byte begins."""
        return self._line_starts[self.line_of(at) - 1]

    def line_end(self, at: int) -> int:
        """The byte after the line of a byte, its line break included."""
        line = self.line_of(at)
        return self._line_starts[line] if line < len(self._line_starts) else len(self.data)

    def given(self, *names: str, component: int | None = None) -> Iterator[Directive]:
        """The directives by these names."""
        for directive in self.header.directives:
            if directive.name in names and component in (None, directive.component):
                yield directive

    def last(self, *names: str, component: int | None = None) -> Directive | None:
        """The directive that counts: the last one by these names."""
        return next(reversed(list(self.given(*names, component=component))), None)

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """What each component asks for; one for an ordinary job."""
        return tuple(self._request(number) for number in range(len(self.header.separators) + 1))

    @cached_property
    def request(self) -> Request:
        """What the job asks for; the first component of a heterogeneous one."""
        return self.requests[0]

    @cached_property
    def is_multi_node(self) -> bool:
        """Whether the job has several nodes for certain."""
        return sum(request.node_count for request in self.requests) > 1

    @cached_property
    def values(self) -> dict[str, Word]:
        """Variables that get one value, in one place."""
        counts: dict[str, list[Assignment]] = {}
        for assignment in self.shell.assignments:
            counts.setdefault(assignment.name, []).append(assignment)
        return {
            name: given[0].value
            for name, given in counts.items()
            if len(given) == 1 and given[0].value is not None and given[0].depth == 0 and not given[0].prefix
        }

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """What the script starts."""
        return tuple(read_launches(self.shell.commands, self.values))

    @cached_property
    def steps(self) -> tuple[tuple[Launch, Program, Request], ...]:
        """The srun steps that do the job's work, each with srun and what the step runs on."""
        steps = []
        for launch in self.launches:
            srun = launch.find("srun")
            if srun is not None and not launch.inside and any(is_step_work(one) for one in self.launches_of(launch)):
                steps.append((launch, srun, self.step_request(srun)))
        return tuple(steps)

    def launches_of(self, launch: Launch) -> list[Launch]:
        """A launch and those inside of its `bash -c`."""
        return [one for one in self.launches if one.command is launch.command]

    def step_request(self, srun: Program) -> Request:
        """What a step runs on: the job's request as srun's own options change it."""
        group = srun.option("het-group") or ""
        request = self.requests[min(int(group), len(self.requests) - 1)] if group.isdecimal() else self.request
        nodes, tasks = _count(srun.option("nodes")), _count(srun.option("ntasks"))
        per_node = _count(srun.option("ntasks-per-node"))
        if tasks is not None and nodes is None and per_node is None:
            nodes = min(request.node_count, max(tasks, 1))
            return msgspec.structs.replace(request, nodes=nodes, tasks=tasks, tasks_per_node=None)
        if nodes is not None or per_node is not None or tasks is not None:
            request = msgspec.structs.replace(
                request,
                nodes=nodes or request.nodes,
                tasks=tasks if tasks is not None or (nodes is None and per_node is None) else None,
                tasks_per_node=per_node or request.tasks_per_node,
            )
        return request

    def exports(self, name: str) -> bool:
        """Whether the script gives tasks a variable."""
        return any(assignment.name == name for assignment in self.shell.assignments)

    def _request(self, component: int) -> Request:
        def count(*names: str) -> int | None:
            directive = self.last(*names, component=component)
            return _count(directive.value) if directive else None

        gres = self.last("gres", component=component)
        return Request(
            nodes=count("nodes"),
            tasks=count("ntasks"),
            tasks_per_node=count("ntasks-per-node"),
            cpus_per_task=count("cpus-per-task"),
            gpus_per_node=count("gpus-per-node") or (gres_gpus(gres.value or "") if gres else None),
            gpus=count("gpus"),
            gpus_per_task=count("gpus-per-task"),
        )


def _count(value: str | None) -> int | None:
    """The number of an option's value: `4`, the least of `2-4`, `a100:4`; None where it is not plain."""
    found = re.fullmatch(r"(?:[A-Za-z][\w.-]*:)?([0-9]{1,9})(?:-[0-9]{1,9})?", value or "")
    return int(found[1]) if found and int(found[1]) > 0 else None


def gres_gpus(value: str) -> int | None:
    """GPUs of a `--gres` value: `gpu`, `gpu:2`, `gpu:a100:4,nvme:1`; None without GPUs."""
    counts = []
    for part in value.split(","):
        found = re.fullmatch(r"(?:gres[:/])?gpu(?:[:=][A-Za-z_][\w.-]*)?(?:[:=]([0-9]{1,9}))?(?:\(.*\))?", part.strip())
        if found:
            counts.append(int(found[1] or 1))
    return sum(counts) or None


def is_work(launch: Launch) -> bool:
    """Whether a launch is the job's own work: Python or a launcher, no preparation."""
    last = launch.last
    if last.name in (*TORCH_LAUNCHERS, "hpcdist-torchrun"):
        return last.name != "accelerate" or any(word.text == "launch" for word in last.words)
    if last.name != "python":
        return False
    return bool(program_word(last))


def is_step_work(launch: Launch) -> bool:
    """Whether what srun starts is the job's work: anything but a look around, a copy or a preparation."""
    last = launch.last
    if last.name == "python":
        return is_work(launch)
    return not last.name.startswith(("srun", "$(")) and last.name not in _TRIVIAL


def program_word(python: Program) -> str:
    """The script or module that Python runs; empty for a helper, `-c`, `--version` and such."""
    words = [word.text for word in python.words]
    for at, text in enumerate(words):
        if text == "-m":
            name = words[at + 1] if at + 1 < len(words) else ""
            return "" if name.startswith(_HELPER_MODULES) or _HELPERS.search(name.lower()) else name
        if text in ("-c", "-V", "--version", "-"):
            return ""
        if not text.startswith("-"):
            return "" if _HELPERS.search(text.rpartition("/")[2].lower()) else text
    return ""


def is_python_launch(launch: Launch) -> bool:
    """Whether plain Python does the work, one rank in each process."""
    return is_python(launch.last.name) and is_work(launch)


def read_time_s(value: str | None) -> int | None:
    """Seconds of a time limit; None without one or where it is none."""
    try:
        return parse_slurm_time(value) if value else None
    except UsageError:
        return None


def read_memory_bytes(value: str | None) -> int | None:
    """Bytes of a memory size; None where it is none."""
    try:
        return parse_slurm_memory(value) if value else None
    except UsageError:
        return None
