"""Rules about what a job asks for: options that exclude or contradict each other, and names that mislead."""

import re
from collections.abc import Iterator

from hpcdist.lint.directives import Directive
from hpcdist.lint.rule import LintContext, Match, rule
from hpcdist.lint.script import MEMORY_OPTIONS, Script, read_memory_bytes, read_time_s


@rule(
    "mem-flags",
    "error",
    why="--mem, --mem-per-cpu and --mem-per-gpu exclude each other, and sbatch refuses two of them.",
    fix="Keep one; --mem=0 asks for all of a node's memory.",
    source="sbatch(1), --mem; submitit#14",
)
def mem_flags(script: Script, _: LintContext) -> Iterator[Match]:
    """Two ways to ask for memory."""
    for component in range(len(script.requests)):
        given = list(script.given(*MEMORY_OPTIONS, component=component))
        for later in given[1:]:
            if later.name != given[0].name:
                yield Match(later.start, f"--{later.name} with --{given[0].name}")
                break


@rule(
    "exclusive-memory",
    "info",
    why="--exclusive gives all CPUs and GPUs of a node, but only the default memory (often a few GB per CPU).",
    fix="Add #SBATCH --mem=0.",
    source="sbatch(1), --exclusive",
)
def exclusive_memory(script: Script, _: LintContext) -> Iterator[Match]:
    """Whole nodes without their memory."""
    for component in range(len(script.requests)):
        directive = script.last("exclusive", component=component)
        if directive and directive.value is None and not script.last(*MEMORY_OPTIONS, component=component):
            yield Match(directive.start, "--exclusive without --mem")


@rule(
    "conflicting-directives",
    "error",
    why="Two options say different things; sbatch refuses them, or quietly follows one.",
    fix="Keep the one that you mean.",
    source="sbatch(1), --ntasks-per-node, --gpus-per-node, --time-min, --oversubscribe, --requeue",
)
def conflicting_directives(script: Script, _: LintContext) -> Iterator[Match]:
    """Numbers that do not fit, flags that are opposites."""
    for component, request in enumerate(script.requests):

        def last(*names: str, component: int = component) -> Directive | None:
            return script.last(*names, component=component)

        tasks, gpus, least = last("ntasks"), last("gpus"), last("time-min")
        if tasks and request.tasks and request.nodes and request.tasks_per_node:
            product = request.nodes * request.tasks_per_node
            if request.tasks != product and "-" not in (getattr(last("nodes"), "value", "") or ""):
                yield Match(
                    tasks.start,
                    f"--ntasks={request.tasks}, but {request.nodes} node(s) of {request.tasks_per_node} "
                    f"task(s) are {product}",
                )
        elif tasks and request.tasks and request.nodes and request.tasks < request.nodes:
            yield Match(tasks.start, f"--ntasks={request.tasks} on {request.nodes} nodes: some have no task")
        if gpus and request.gpus and request.nodes and request.gpus_per_node:
            product = request.nodes * request.gpus_per_node
            if request.gpus != product:
                yield Match(
                    gpus.start,
                    f"--gpus={request.gpus} counts the whole job's, but {request.nodes} node(s) with "
                    f"{request.gpus_per_node} have {product}",
                )
        limit = last("time")
        shortest, longest = (read_time_s(one.value) if one else None for one in (least, limit))
        if least and shortest and longest and shortest > longest:
            yield Match(least.start, "--time-min is longer than --time")
        for one, other in (("exclusive", "oversubscribe"), ("requeue", "no-requeue")):
            first, second = last(one), last(other)
            if first and second:
                yield Match(max(first.start, second.start), f"--{one} with --{other}")


@rule(
    "memory-unit",
    "warning",
    why="A memory size without a letter counts megabytes.",
    fix="Write the unit: --mem=64G.",
    source="sbatch(1), --mem: 'Default units are megabytes'",
)
def memory_unit(script: Script, _: LintContext) -> Iterator[Match]:
    """`--mem=64`."""
    for directive in script.given(*MEMORY_OPTIONS):
        size = read_memory_bytes(directive.value)
        if size and (directive.value or "").isdecimal() and size < 1024**3:
            yield Match(directive.start, f"--{directive.name}={directive.value} is {directive.value} MB")


@rule(
    "job-name",
    "warning",
    why="Lightning takes a job named bash or interactive for an interactive one and ignores Slurm.",
    fix="Choose another name.",
    source="Lightning, SLURMEnvironment.detect and job_name",
)
def job_name(script: Script, _: LintContext) -> Iterator[Match]:
    """`bash` and `interactive`."""
    for directive in script.given("job-name"):
        if directive.value in ("bash", "interactive"):
            yield Match(directive.start, f"the job is named {directive.value}")


@rule(
    "wckey",
    "warning",
    why="Sites without this workload key refuse the job: 'Invalid wckey specification'.",
    fix="Take it out.",
    source="submitit#1758",
)
def wckey(script: Script, _: LintContext) -> Iterator[Match]:
    """What submitit writes into each script."""
    for directive in script.given("wckey"):
        if directive.value in ("submitit", "", None):
            yield Match(directive.start, "submitit's --wckey")


@rule(
    "export",
    "warning",
    why="--export without ALL drops the environment for the tasks too: modules, conda and PATH are gone under srun.",
    fix="Write --export=ALL,NAME=VALUE, or srun --export=ALL.",
    source="sbatch(1), --export; srun(1), SLURM_EXPORT_ENV",
)
def export(script: Script, _: LintContext) -> Iterator[Match]:
    """An environment that srun's tasks do not get."""
    directive = script.last("export")
    if directive is None or re.search(r"(?:^|,)(?:ALL|NIL)(?:,|$)", directive.value or "ALL"):
        return
    unset = any(
        command.words[0].text == "unset" and any(word.text == "SLURM_EXPORT_ENV" for word in command.words)
        for command in script.shell.commands
        if command.words
    )
    if unset or script.exports("SLURM_EXPORT_ENV") or not script.steps:
        return
    if any(srun.option("export") is None for _, srun, _ in script.steps):
        yield Match(directive.start, f"--export={directive.value} and srun without --export=ALL")
