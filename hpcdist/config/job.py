"""What the user asks for: layout, training and job, checked when they are made; options of several sources merged."""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec

from hpcdist.config.site import Site
from hpcdist.config.training import Training, require
from hpcdist.errors import UsageError
from hpcdist.text import suggest, underscored
from hpcdist.units import parse_slurm_memory, parse_slurm_time

# Of each pair one may be given; a later source's choice replaces the other of an earlier source.
EXCLUSIVE = (("mem", "mem_per_cpu"), ("batch_size", "batch_size_per_rank"))


def merge_options(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of several sources, later ones winning: tables are merged by key, setup lines are added."""
    merged: dict[str, Any] = {}
    for source in sources:
        given = {key: value for key, value in source.items() if value is not None}
        for pair in EXCLUSIVE:
            for key, other in (pair, pair[::-1]):
                if key in given and other not in given:
                    merged.pop(other, None)
        for key, value in given.items():
            old = merged.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                merged[key] = {**old, **value}
            elif key == "setup" and old:
                merged[key] = [*old, *value]
            else:
                merged[key] = value
    return merged


Backend = Literal["slurm", "local"]


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a job.

    Attributes:
        nodes: Number of nodes.
        gpus: GPUs per node; one task (rank) runs per GPU. 0 is a CPU layout.
        tasks_per_node: Ranks per node of a CPU layout; with GPUs it is always `gpus`.
        cpus_per_task: CPUs of each rank.
        mem: Memory per node in Slurm's words ("16G"; "0" is all of it). None leaves the site's default.
        mem_per_cpu: Memory per CPU in Slurm's words; excludes `mem`.
        time: Time limit in Slurm's words ("30", "2:00:00", "1-12"). None leaves the partition's default.
    """

    nodes: int = 1
    gpus: int = 1
    tasks_per_node: int | None = None
    cpus_per_task: int = 2
    mem: str | None = None
    mem_per_cpu: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        require(self.nodes >= 1, "nodes", self.nodes, "1 or more")
        require(self.gpus >= 0, "gpus", self.gpus, "0 (a CPU layout) or more")
        require(self.cpus_per_task >= 1, "cpus_per_task", self.cpus_per_task, "1 or more")
        if self.tasks_per_node is not None:
            require(self.tasks_per_node >= 1, "tasks_per_node", self.tasks_per_node, "1 or more")
            if self.gpus and self.tasks_per_node != self.gpus:
                raise UsageError(
                    f"tasks_per_node is {self.tasks_per_node} but gpus is {self.gpus}: one task runs per GPU",
                    "leave out --tasks-per-node, or use --gpus 0 for a CPU layout",
                )
        if self.mem is not None and self.mem_per_cpu is not None:
            raise UsageError("mem and mem_per_cpu exclude each other", "keep one of --mem and --mem-per-cpu")
        for memory in (self.mem, self.mem_per_cpu):
            if memory is not None:
                parse_slurm_memory(memory)
        if self.time is not None:
            parse_slurm_time(self.time)

    @property
    def ranks_per_node(self) -> int:
        """Tasks on each node."""
        return self.gpus or self.tasks_per_node or 1

    @property
    def world_size(self) -> int:
        """Tasks in all."""
        return self.nodes * self.ranks_per_node

    @property
    def name(self) -> str:
        """`2x1` for two nodes with one GPU each, `2x3cpu` for two nodes with three CPU ranks each."""
        return f"{self.nodes}x{self.gpus}" if self.gpus else f"{self.nodes}x{self.ranks_per_node}cpu"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training, in one layout, as it is to be submitted.

    Attributes:
        name: Job name, as people see it in `squeue`.
        layout: Its shape.
        training: The built-in training's options; unused when there is a command.
        command: Program and arguments to run in each task; empty trains the built-in MNIST CNN.
        launcher: "srun" starts each rank; "torchrun" starts one torchrun per node, which starts the ranks.
        setup: Shell lines run before the tasks start (the user's own: not quoted).
        env: Environment variables of the job.
        secret_env: Further ones, by name; their values come from the environment that it is submitted in.
        sbatch: Further `#SBATCH` options by their long name; an empty value is a flag.
        srun: Further srun options by their long name.
        resumable: Whether the command saves and stops when asked to, and goes on when started again; the built-in
            training does.
        max_requeues: How often a run that can go on is requeued when it was stopped before its end.
        replace_bad_node: Whether a node that the preflight blames is left out and the job requeued.
        stage_data: Whether the data (`training.data_dir`) is copied to each node's own disk before the ranks start;
            they find it there by `HPCDIST_DATA_DIR`.
        tasks: Arguments that each task of the array adds to what is run, the task's number being the place here; empty
            where all tasks run the same. Where `array` is not given it is all of them.
        task_env: Environment variables of each task of the array, likewise.
        partition, account, qos, constraint, nodelist, exclude, exclusive, reservation, array, dependency, comment,
            mail_type, mail_user: As sbatch's options of those names (man sbatch).
    """

    name: str
    layout: Layout = Layout()
    training: Training = Training()
    command: tuple[str, ...] = ()
    launcher: Literal["srun", "torchrun"] = "srun"
    setup: tuple[str, ...] = ()
    env: dict[str, str] = {}
    secret_env: tuple[str, ...] = ()
    sbatch: dict[str, str] = {}
    srun: dict[str, str] = {}
    resumable: bool = False
    max_requeues: int = 10
    replace_bad_node: bool = False
    stage_data: bool = False
    tasks: tuple[tuple[str, ...], ...] = ()
    task_env: tuple[dict[str, str], ...] = ()
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    reservation: str | None = None
    array: str | None = None
    dependency: str | None = None
    comment: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for key in (*self.env, *self.secret_env, *(name for env in self.task_env for name in env)):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise UsageError(f"env: {key!r} is not a variable name", "write --env NAME=VALUE")
        for key in (*self.sbatch, *self.srun):
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise UsageError(f"{key!r} is not a long option of Slurm", "write --sbatch key=value without dashes")
        if self.array is not None and not re.fullmatch(r"[0-9,:-]+(%[0-9]+)?", self.array):
            raise UsageError(f"array: {self.array!r} is not a list of task ids", "write for example --array 0-9%3")
        if self.tasks or self.task_env:
            counts = [len(values) for values in (self.tasks, self.task_env) if values]
            if self.array is None:
                msgspec.structs.force_setattr(self, "array", f"0-{counts[0] - 1}")
            # "0-9:2%3": neither step nor limit is a task.
            listed = (self.array or "").partition("%")[0].partition(":")[0]
            numbers = [int(number) for number in re.findall(r"[0-9]+", listed)]
            if len(set(counts)) != 1 or not numbers or max(numbers) >= counts[0]:
                raise UsageError(
                    f"array: {self.array!r} names tasks beside the {counts[0]} in tasks or task_env",
                    f'write array = "0-{counts[0] - 1}"',
                )
        require(self.max_requeues >= 0, "max_requeues", self.max_requeues, "0 or more")
        if self.replace_bad_node and (self.command or not self.training.preflight):
            raise UsageError(
                "replace_bad_node: it is the built-in training's preflight that finds bad nodes",
                "leave out --replace-bad-node, COMMAND or --no-preflight",
            )
        if self.launcher == "torchrun" and self.resumable:
            raise UsageError(
                "resumable: torchrun ends its ranks at the signal that should let them save", "leave out --launcher"
            )
        if self.launcher == "torchrun" and not self.command:
            raise UsageError("torchrun starts a command, and none was given", "add -- python train.py")

    @property
    def goes_on(self) -> bool:
        """Whether it can be stopped and started again without losing more than a moment."""
        return self.resumable or not self.command

    @property
    def slug(self) -> str:
        """The name as a folder name: letters, digits, `.`, `_` and `-`, not starting with a dot."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip(".-")[:60] or "job"


# Lightning takes a job of such a name for an interactive one and ignores Slurm.
REFUSED_NAMES = frozenset({"bash", "interactive"})
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")

T = TypeVar("T", bound=msgspec.Struct)

LAYOUT_KEYS = frozenset(Layout.__struct_fields__)
TRAINING_KEYS = frozenset(Training.__struct_fields__)
SITE_KEYS = frozenset(Site.__struct_fields__)
JOB_KEYS = frozenset(JobSpec.__struct_fields__) - {"layout", "training"}
OPTION_KEYS = LAYOUT_KEYS | TRAINING_KEYS | JOB_KEYS
# Options that are tables of text.
TABLES = ("env", "sbatch", "srun")


def check_name(name: str) -> None:
    """Refuse job names that Slurm, Lightning or a terminal would misread.

    Raises:
        UsageError: The name is empty, over 200 characters, holds control characters, or makes Lightning
            believe it runs in an interactive job (`bash`, `interactive`).
    """
    if not name.strip() or len(name) > 200 or any(not c.isprintable() for c in name):
        raise UsageError(f"name: {name!r} is empty, too long or not printable", "choose a name such as mnist")
    if name in REFUSED_NAMES:
        raise UsageError(
            f"name: Lightning ignores Slurm in a job called {name!r}", "choose another name, for example --name mnist"
        )


def check_run_name(name: str) -> str:
    """Return a run's name, which is a folder's name too.

    Raises:
        UsageError: It can't be.
    """
    if not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no run name", "use letters, digits, '.', '_' and '-', not starting with '.' or '-'"
        )
    return name


def check_keys(
    found: Iterable[str], where: str, known: Collection[str] = OPTION_KEYS, path: tuple[str, ...] = ()
) -> None:
    """Refuse keys that nothing has.

    Args:
        where: The file or call they were found in, for the message.
        path: The table in the file.

    Raises:
        UsageError: Names the first unknown key and the nearest right one.
    """
    for key in found:
        if key not in known:
            hint = suggest(underscored(key), known, f"the keys are: {', '.join(sorted(known))}")
            raise UsageError(f"{where}: unknown key {'.'.join((*path, key))!r}", hint)


@cache
def option_types() -> dict[str, Any]:
    """Return the type of each option, by its name."""
    kinds = (Layout, Training, JobSpec)
    return {field.name: field.type for kind in kinds for field in msgspec.structs.fields(kind)}


def build_site(options: Mapping[str, Any], where: str = "hpcdist.toml") -> Site:
    """Return the site among `hpcdist.toml`'s keys."""
    return _convert(_only(options, SITE_KEYS), Site, where)


def build_job(options: Mapping[str, Any], where: str = "options") -> JobSpec:
    """Return a job from flat options, by the options' names; the name defaults to what is run.

    Raises:
        UsageError: A key or value can't be used; the message has its path.
    """
    own = _only(options, JOB_KEYS)
    own.setdefault("name", _default_name(own.get("command") or ()))
    own["layout"] = _convert(_only(options, LAYOUT_KEYS), Layout, where)
    own["training"] = _convert(_only(options, TRAINING_KEYS), Training, where)
    return _convert(own, JobSpec, where)


def _default_name(command: Iterable[str]) -> str:
    words = [word.rpartition("/")[2] for word in command]
    script = next((word for word in words if word.endswith((".py", ".sh"))), words[0] if words else "mnist")
    name = script.rpartition(".")[0] or script
    return f"{name}-job" if name in REFUSED_NAMES else name


def _only(options: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in keys and value is not None}


def _convert(values: dict[str, Any], kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(values, kind, from_attributes=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}", "see `hpcdist submit --help` for each option's form") from None
