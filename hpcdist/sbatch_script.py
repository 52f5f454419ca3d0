"""A batch script as the linter sees it: what sbatch takes from it, its commands, and what it asks for. Pure."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property

from hpcdist.asked import Request, count_of, gres_gpus, step_request
from hpcdist.directives import Directive, Header, parse_header
from hpcdist.launches import Launch, Program, read_launches
from hpcdist.shell import parse_shell
from hpcdist.shell_words import Assignment, Shell, Word
from hpcdist.work import is_step_work


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

    def is_written(self, word: Word, text: str) -> bool:
        """Whether a word stands in the script just so, and not as the value of a variable."""
        return self.data[word.start : word.end] == text.encode()

    def given(self, *names: str, component: int | None = None) -> Iterator[Directive]:
        """The directives by these names."""
        among = self.header.directives if component is None else self._by_component.get(component, ())
        for directive in among:
            if directive.name in names:
                yield directive

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
    def requests(self) -> tuple[Request, ...]:
        """What each component asks for; one for an ordinary job."""
        return tuple(self._request(number) for number in range(len(self.header.separators) + 1))

    @cached_property
    def request(self) -> Request:
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

    def step_request(self, srun: Program) -> Request:
        """What a step runs on: the request of its component as srun's own options change it."""
        group = srun.option("het-group") or ""
        component = min(int(group), len(self.requests) - 1) if group.isdecimal() else 0
        return step_request(self.requests[component], srun)

    def exports(self, name: str) -> bool:
        """Whether the script gives tasks a variable."""
        return name in self._assignments

    def _request(self, component: int) -> Request:
        def count(*names: str) -> int | None:
            directive = self.last(*names, component=component)
            return count_of(directive.value) if directive else None

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
