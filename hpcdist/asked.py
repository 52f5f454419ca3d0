"""What a job or a step asks for, as far as its options say it. Pure."""

import re

import msgspec

from hpcdist.errors import UsageError
from hpcdist.launches import Program
from hpcdist.units import parse_slurm_memory, parse_slurm_time

MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")


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


def step_request(job: Request, srun: Program) -> Request:
    """What a step runs on: the job's request as srun's own options change it."""
    request = _with_gpus(job, srun)
    nodes, tasks = count_of(srun.option("nodes")), count_of(srun.option("ntasks"))
    per_node = count_of(srun.option("ntasks-per-node"))
    if tasks is not None and nodes is None and per_node is None:
        nodes = min(request.node_count, max(tasks, 1))
        return msgspec.structs.replace(request, nodes=nodes, tasks=tasks, tasks_per_node=None)
    if nodes is None and per_node is None and tasks is None:
        return request
    return msgspec.structs.replace(
        request,
        nodes=nodes or request.nodes,
        tasks=tasks,
        tasks_per_node=per_node or request.tasks_per_node,
    )


def _with_gpus(request: Request, srun: Program) -> Request:
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
