"""Rules that need to know the cluster: requests that no node of it can meet. Silent where nobody was asked."""

from collections.abc import Iterator

from hpcdist.lint.directives import Directive
from hpcdist.lint.rule import LintContext, Match, rule
from hpcdist.lint.script import ResourceRequest, Script, read_memory_bytes, read_time_s
from hpcdist.slurm.cluster import Node, Partition
from hpcdist.units import format_bytes, format_duration


def _chosen(script: Script, context: LintContext, component: int) -> tuple[Directive | None, list[Partition]]:
    """The partitions that a component may run in; the default one where it names none."""
    directive = script.last("partition", component=component)
    partitions = context.partitions or ()
    if directive is None:
        return None, [one for one in partitions if one.is_default]
    names = (directive.value or "").split(",")
    return directive, [one for one in partitions if one.name in names]


@rule(
    "partition",
    "error",
    why="sbatch refuses a partition that the cluster does not have: 'invalid partition specified'.",
    fix="sinfo lists them.",
    source="sbatch(1), --partition; sinfo(1)",
)
def partition(script: Script, context: LintContext) -> Iterator[Match]:
    """A partition that is not there."""
    if context.partitions is None:
        return
    known = {one.name for one in context.partitions}
    for directive in script.given("partition"):
        missing = [name for name in (directive.value or "").split(",") if name not in known]
        if missing:
            yield Match(directive.start, f"there is no partition {missing[0]}")


@rule(
    "time-limit",
    "error",
    why="A job that asks for more time than its partition gives is refused, or never starts: PartitionTimeLimit.",
    fix="Ask for less, or choose another partition.",
    source="sbatch(1), --time; squeue(1), JOB REASON CODES",
)
def time_limit(script: Script, context: LintContext) -> Iterator[Match]:
    """More time than there is."""
    for component in range(len(script.requests)):
        directive = script.last("time", component=component)
        _, partitions = _chosen(script, context, component)
        limits = [one.time_limit_s for one in partitions]
        asked = read_time_s(directive.value) if directive else None
        if directive and asked and limits and all(limit is not None and asked > limit for limit in limits):
            longest = max(limit or 0 for limit in limits)
            names = ",".join(one.name for one in partitions)
            yield Match(directive.start, f"--time={directive.value}, but {names} gives {format_duration(longest)}")


@rule(
    "no-such-node",
    "error",
    why="No node of the partition has what the job asks for, so it is refused or waits for ever.",
    fix="sinfo -o '%P %D %c %m %G' shows what the nodes have.",
    source="sbatch(1), --mem, --cpus-per-task, --gpus-per-node, --nodes; sinfo(1)",
)
def no_such_node(script: Script, context: LintContext) -> Iterator[Match]:
    """A request that no node can meet."""
    for component, request in enumerate(script.requests):
        _, partitions = _chosen(script, context, component)
        nodes = [node for one in partitions for node in one.nodes]
        if not nodes:
            continue
        for names, said in _too_much(script, request, component, nodes):
            directive = script.last(*names, component=component)
            if directive:
                yield Match(directive.start, f"{said} in {','.join(one.name for one in partitions)}")


def _too_much(
    script: Script, request: ResourceRequest, component: int, nodes: list[Node]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The options that ask for too much, and how much there is."""
    memory = script.last("mem", component=component)
    memory_bytes = read_memory_bytes(memory.value) if memory else None
    sizes = [node.memory_bytes for node in nodes]
    most = max(size or 0 for size in sizes)
    if memory and memory_bytes and memory_bytes > most and None not in sizes:
        yield ("mem",), f"--mem={memory.value}, but no node has more than {format_bytes(most)}"
    cpus, most_cpus = (request.cpus_per_task or 1) * (request.tasks_per_node or 1), max(node.cpus for node in nodes)
    if cpus > most_cpus:
        yield ("cpus-per-task", "ntasks-per-node"), f"{cpus} CPUs on a node, but none has more than {most_cpus}"
    gpus, most_gpus = request.node_gpus or 0, max(node.gpus for node in nodes)
    if gpus > most_gpus:
        names = ("gpus-per-node", "gres", "gpus", "gpus-per-task")
        yield names, f"{gpus} GPUs on a node, but none has more than {most_gpus}"
    count = sum(node.count for node in nodes)
    if request.nodes and request.nodes > count:
        yield ("nodes",), f"{request.nodes} nodes, but there are {count}"
