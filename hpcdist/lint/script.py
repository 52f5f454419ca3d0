"""A batch script as the linter sees it: what sbatch takes from it, its commands, and the resources it requests."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property

import msgspec

from hpcdist.errors import UsageError
from hpcdist.lint.bash import Assignment, Shell, Word, parse_shell
from hpcdist.lint.directives import Directive, Header, parse_header
from hpcdist.lint.launches import Launch, Program, is_step_work, read_launches
from hpcdist.units import parse_slurm_memory, parse_slurm_time

MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")


class ResourceRequest(msgspec.Struct, frozen=True, kw_only=True):
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


def step_request(job: ResourceRequest, srun: Program) -> ResourceRequest:
    """What a step runs on: the job's request as srun's own options change it."""
    request = _with_gpus(job, srun)
    nodes, tasks = count_of(srun.option("nodes")), count_of(srun.option("ntasks"))
    per_node = count_of(srun.option("ntasks-per-node"))
    if tasks is not None and nodes is None and per_node is None:
        nodes = min(request.node_count, max(tasks, 1))
        return msgspec.structs.replace(request, nodes=nodes, tasks=tasks, tasks_per_node=None)
    if nodes is None and per_node is None and tasks is None:
        return request
    per_node = per_node or request.tasks_per_node
    return msgspec.structs.replace(request, nodes=nodes or request.nodes, tasks=tasks, tasks_per_node=per_node)


def _with_gpus(request: ResourceRequest, srun: Program) -> ResourceRequest:
    """The request with the GPUs that a step asks for itself."""
    options = {name: srun.option(name) for name in ("gpus", "gpus-per-node", "gpus-per-task", "gres")}
    if all(value is None for value in options.values()):
        return request
    gres = options["gres"]
    return msgspec.structs.replace(
        request,
        gpus=count_of(options["gpus"]),
        gpus_per_node=count_of(options["gpus-per-node"]) or (gres_gpus(gres) if gres else None),
        gpus_per_task=count_of(options["gpus-per-task"]),
    )


def count_of(value: str | None) -> int | None:
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


class Script:
    """A batch script.

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

    def is_written(self, word: Word, text: str) -> bool:
        """Whether a word stands in the script just so, and not as the value of a variable."""
        return self.data[word.start : word.end] == text.encode()

    def given(self, *names: str, component: int | None = None) -> Iterator[Directive]:
        """The directives by these names."""
        among = self.header.directives if component is None else self._by_component.get(component, ())
        yield from (directive for directive in among if directive.name in names)

    def last(self, *names: str, component: int | None = None) -> Directive | None:
        """The directive that counts: the last one by these names."""
        return next(reversed(list(self.given(*names, component=component))), None)

    @cached_property
    def _by_component(self) -> dict[int, list[Directive]]:
        found: dict[int, list[Directive]] = {}
        for directive in self.header.directives:
            found.setdefault(directive.component, []).append(directive)
        return found

    @cached_property
    def requests(self) -> tuple[ResourceRequest, ...]:
        """What each component asks for; one for an ordinary job."""
        return tuple(self._request(number) for number in range(len(self.header.separators) + 1))

    @cached_property
    def request(self) -> ResourceRequest:
        """What the job asks for; the first component of a heterogeneous one."""
        return self.requests[0]

    @property
    def node_count(self) -> int:
        """Nodes of all components, for certain."""
        return sum(request.node_count for request in self.requests)

    @property
    def task_count(self) -> int:
        """Tasks of all components, for certain."""
        return sum(request.task_count for request in self.requests)

    @cached_property
    def is_multi_node(self) -> bool:
        """Whether the job has several nodes for certain."""
        return self.node_count > 1

    @cached_property
    def _assignments(self) -> dict[str, list[Assignment]]:
        found: dict[str, list[Assignment]] = {}
        for assignment in self.shell.assignments:
            found.setdefault(assignment.name, []).append(assignment)
        return found

    @cached_property
    def values(self) -> dict[str, Word]:
        """Variables that get one value, in one place."""
        return {
            name: given[0].value
            for name, given in self._assignments.items()
            if len(given) == 1 and given[0].value is not None and given[0].depth == 0 and not given[0].prefix
        }

    @cached_property
    def arrays(self) -> dict[str, tuple[Word, ...]]:
        """Arrays that are filled once, whatever happens, and perhaps added to."""
        return {
            name: tuple(word for one in several for word in one.words or ())
            for name, several in self._assignments.items()
            if all(one.words is not None and one.depth == 0 and not one.prefix for one in several)
            and [one.adds for one in several] == [False] + [True] * (len(several) - 1)
        }

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """What the script starts."""
        return tuple(read_launches(self.shell.commands, self.values, self.arrays))

    @cached_property
    def steps(self) -> tuple[tuple[Launch, Program, ResourceRequest], ...]:
        """The srun steps that do the job's work, each with srun and what the step runs on."""
        steps = []
        for launch in self.launches:
            srun = launch.find("srun")
            if srun is not None and not launch.inside and any(is_step_work(one) for one in self.launches_of(launch)):
                steps.append((launch, srun, self.step_request(srun)))
        return tuple(steps)

    def launches_of(self, launch: Launch) -> list[Launch]:
        """A launch and those inside of its `bash -c`."""
        return self._by_command[launch.command.start]

    @cached_property
    def _by_command(self) -> dict[int, list[Launch]]:
        found: dict[int, list[Launch]] = {}
        for launch in self.launches:
            found.setdefault(launch.command.start, []).append(launch)
        return found

    @cached_property
    def shell_options(self) -> list[tuple[int, str, str]]:
        """What `set` and the first line switch: place, `+` or `-`, letter (`o` and a name for long ones)."""
        found: list[tuple[int, str, str]] = []
        first = self.data.partition(b"\n")[0].decode(errors="replace")
        shebang = re.match(r"#!\s*\S*sh((?:\s+-[a-z]+)+)", first)
        if shebang:
            found += [(0, "-", letter) for letter in re.sub(r"[\s-]", "", shebang[1])]
        for command in self.shell.commands:
            texts = [word.text for word in command.words]
            if not texts or texts[0] != "set" or command.depth:
                continue
            for at, text in enumerate(texts[1:], 1):
                if text[:1] in ("-", "+") and len(text) > 1:
                    found += [(command.start, text[0], letter) for letter in text[1:] if letter != "o"]
                    if "o" in text[1:] and at + 1 < len(texts):
                        found.append((command.start, text[0], texts[at + 1]))
        return found

    def is_set(self, at: int, *names: str) -> bool:
        """Whether an option of the shell is on at a place."""
        state = False
        for start, sign, name in self.shell_options:
            if start <= at and name in names:
                state = sign == "-"
        return state

    def step_request(self, srun: Program) -> ResourceRequest:
        """What a step runs on: the request of its component as srun's own options change it."""
        group = srun.option("het-group") or ""
        component = min(int(group), len(self.requests) - 1) if group.isdecimal() else 0
        return step_request(self.requests[component], srun)

    def exports(self, name: str) -> bool:
        """Whether the script gives tasks a variable."""
        return name in self._assignments

    def _request(self, component: int) -> ResourceRequest:
        def count(*names: str) -> int | None:
            directive = self.last(*names, component=component)
            return count_of(directive.value) if directive else None

        gres = self.last("gres", component=component)
        return ResourceRequest(
            nodes=count("nodes"),
            tasks=count("ntasks"),
            tasks_per_node=count("ntasks-per-node"),
            cpus_per_task=count("cpus-per-task"),
            gpus_per_node=count("gpus-per-node") or (gres_gpus(gres.value or "") if gres else None),
            gpus=count("gpus"),
            gpus_per_task=count("gpus-per-task"),
        )
