"""Rules about what starts the ranks: srun, torchrun, mpirun, or nothing."""

import re
from collections.abc import Iterator

from hpcdist.lint.launches import CONTAINERS, MPI, Launch, is_python_launch, is_work
from hpcdist.lint.rule import Edit, LintContext, Match, insert, rule
from hpcdist.lint.rules.gpus import find_option
from hpcdist.lint.script import Script

_LAUNCHERS = ("torchrun", "accelerate")
_OWN_CLUSTER = ("--hostfile", "-H", "--launcher", "--include")


@rule(
    "cpus-per-task",
    "warning",
    why="From Slurm 22.05 to 23.02 srun does not take over --cpus-per-task and gives each task one CPU.",
    fix='srun --cpus-per-task="$SLURM_CPUS_PER_TASK", or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK.',
    source="reframe#2655; Slurm 22.05 release notes",
)
def cpus_per_task(script: Script, _: LintContext) -> Iterator[Match]:
    """Steps that would get one CPU for each task."""
    directive = script.last("cpus-per-task")
    if directive is None or directive.value == "1" or script.exports("SRUN_CPUS_PER_TASK"):
        return
    for _launch, srun, _request in script.steps:
        if srun.option("cpus-per-task", "exclusive", "cpus-per-gpu") is None:
            word = srun.name_word
            # The components of a heterogeneous job have variables of their own.
            is_plain = script.is_written(word, "srun") and not script.header.separators
            edits = insert(word.end, ' --cpus-per-task="$SLURM_CPUS_PER_TASK"') if is_plain else ()
            yield Match(word.start, f"srun without the job's --cpus-per-task={directive.value}", edits)


@rule(
    "ntasks-per-node",
    "warning",
    why="SLURM_NTASKS_PER_NODE exists only where the option was given, and Lightning stops without it.",
    fix="Add #SBATCH --ntasks-per-node, even if it is 1.",
    source="PL#20056: 'You set --ntasks=2 in your SLURM bash script, but this variable is not supported'",
)
def ntasks_per_node(script: Script, _: LintContext) -> Iterator[Match]:
    """Python ranks of a job that does not say how many run on a node."""
    given = script.last("ntasks-per-node")
    if given or len(script.requests) > 1 or not script.header.directives:
        return
    used = re.search(rb"\$\{?SLURM_NTASKS_PER_NODE\b(?!:)", script.data)
    if used and not script.exports("SLURM_NTASKS_PER_NODE"):
        yield Match(used.start(), "$SLURM_NTASKS_PER_NODE is not set: the script has no --ntasks-per-node")
        return
    for launch, srun, request in script.steps:
        plain = any(is_python_launch(one) for one in script.launches_of(launch))
        if plain and request.task_count > 1 and srun.option("ntasks-per-node") is None:
            directive = script.last("ntasks", "nodes")
            at = directive.start if directive else srun.name_word.start
            per_node = request.node_tasks if request.nodes else None
            edits: tuple[Edit, ...] = ()
            if directive and per_node and script.data[script.line_end(at) - 1 :][:1] == b"\n":
                edits = insert(script.line_end(at), f"#SBATCH --ntasks-per-node={per_node}\n")
            yield Match(at, f"{request.task_count} Python tasks without --ntasks-per-node", edits)
            return


@rule(
    "python-without-srun",
    "error",
    why="The script itself runs on the first node alone: the others stand idle, or rank 0 waits for them.",
    fix="Start it with srun.",
    source="sbatch(1), DESCRIPTION; PL#10098",
)
def python_without_srun(script: Script, _: LintContext) -> Iterator[Match]:
    """Several tasks, and nothing that starts them."""
    tasks, nodes = script.task_count, script.node_count
    if tasks <= 1 or script.steps or _starts_elsewhere(script):
        return
    for launch in script.launches:
        if is_python_launch(launch) and launch.find("srun", *MPI, "ssh") is None:
            fix = "" if nodes > 1 else "Start it with srun; threads and workers are asked for with --cpus-per-task."
            message = f"{nodes} node(s) and {tasks} tasks, but this runs once, on the first node"
            yield Match(launch.start, message, fix=fix)
            return


def _starts_elsewhere(script: Script) -> bool:
    names = {program.name for launch in script.launches for program in launch.programs}
    return bool(names & {*MPI, "ssh", "pdsh", "parallel", "ray", "dask", "deepspeed", *_LAUNCHERS})


@rule(
    "torchrun",
    "error",
    why="Started outside srun it runs on the first node alone: it waits for the others, or accounting never sees them.",
    fix="srun --ntasks-per-node=1 torchrun …: one on each node.",
    source="pytorch#73656; torchrun's documentation, 'Multi-node'",
)
def torchrun(script: Script, _: LintContext) -> Iterator[Match]:
    """A launcher outside of srun in a job of several nodes."""
    if not script.is_multi_node:
        return
    for launch in script.launches:
        if launch.last.name not in ("torchrun", "accelerate", "deepspeed") or not is_work(launch):
            continue
        if launch.find("srun", *MPI) is None and not _finds_nodes(launch):
            how = "through ssh" if launch.find("ssh") else "outside srun"
            yield Match(launch.start, f"{launch.last.name} {how} in a job of {script.node_count} nodes")


def _finds_nodes(launch: Launch) -> bool:
    """Whether deepspeed was told of the other nodes, which it reaches by itself."""
    return launch.last.name == "deepspeed" and any(name in _OWN_CLUSTER for name, _ in launch.last.arguments())


@rule(
    "torchrun-tasks",
    "error",
    why="Each task starts a launcher, and each of those a rank for each GPU: they fight for the GPUs and the port.",
    fix="One launcher for each node: --ntasks-per-node=1.",
    source="torchrun's documentation, 'Multi-node': one process per node",
)
def torchrun_tasks(script: Script, _: LintContext) -> Iterator[Match]:
    """Several launchers on a node."""
    for launch, srun, request in script.steps:
        inner = next((one for one in script.launches_of(launch) if one.last.name in _LAUNCHERS and is_work(one)), None)
        if inner and request.node_tasks and request.node_tasks > 1 and _many(inner):
            yield Match(srun.name_word.start, f"{request.node_tasks} tasks on each node start {inner.last.name}")


def _many(launch: Launch) -> bool:
    option, count = find_option(launch.last, "--nproc_per_node", "--nproc-per-node")
    return launch.last.name != "torchrun" or not option or count != 1


@rule(
    "mpirun-mix",
    "warning",
    why="srun and mpirun both start every rank: together they start each one many times, or mpirun sees one slot.",
    fix="Use one of them; srun --mpi=pmix starts MPI programs too.",
    source="Slurm's mpi_guide.html; srun(1), --mpi",
)
def mpirun_mix(script: Script, _: LintContext) -> Iterator[Match]:
    """Both in one command, or both for the work, or another number of ranks than tasks."""
    for launch in script.launches:
        mpi = launch.find(*MPI)
        if mpi is None:
            continue
        outer = [program.name for program in launch.programs[: launch.programs.index(mpi)]]
        if "srun" in outer and not _is_single(script, launch):
            yield Match(mpi.name_word.start, f"srun starts {mpi.name} once for each task")
        elif launch.find(*CONTAINERS) and any(name in CONTAINERS for name in outer):
            yield Match(mpi.name_word.start, f"{mpi.name} inside the container knows nothing of Slurm's nodes")
        elif "srun" not in outer:
            count = find_option(mpi, "-n", "-np", "--np", "-c")[1]
            tasks = script.request.task_count
            known = script.request.tasks or script.request.tasks_per_node
            if count and known and count != tasks:
                yield Match(mpi.name_word.start, f"{mpi.name} starts {count} ranks, but the job has {tasks} tasks")


def _is_single(script: Script, launch: Launch) -> bool:
    srun = launch.find("srun")
    return srun is not None and script.step_request(srun).task_count == 1


@rule(
    "node-rank",
    "error",
    why="The batch shell replaces it before srun starts anything, and there it is 0: every node or task is number 0.",
    fix="Let the task replace it: srun bash -c '… \"$SLURM_NODEID\" …' in single quotes.",
    source="accelerate#2816; srun(1), OUTPUT ENVIRONMENT VARIABLES",
)
def node_rank(script: Script, _: LintContext) -> Iterator[Match]:
    """A task's number in a command of the batch shell."""
    if script.task_count <= 1 or _runs_itself(script):
        return
    # Where srun tasks read the value of a variable, it is the assignment that was too early.
    for assignment in script.shell.assignments:
        for part in assignment.value.expansions if assignment.value else ():
            if part.kind == "variable" and part.name in _TASK_VARIABLES and not assignment.prefix:
                yield Match(part.start, f"{assignment.name} gets ${part.name} of the batch shell, which is 0")
    for command in script.shell.commands:
        if not command.words or command.words[0].text not in ("srun", "torchrun", "accelerate", "deepspeed", "python"):
            continue
        for word in command.words[1:]:
            for part in word.expansions:
                if part.kind == "variable" and part.name in _TASK_VARIABLES:
                    yield Match(part.start, f"${part.name} is replaced by the batch shell, where it is 0")


_TASK_VARIABLES = ("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID")


def _runs_itself(script: Script) -> bool:
    return any(
        word.text in ("$0", "${BASH_SOURCE[0]}", "${BASH_SOURCE}")
        for launch, _srun, _request in script.steps
        for word in launch.command.words
    )


@rule(
    "het-group",
    "warning",
    why="srun without --het-group starts tasks in the first component of a heterogeneous job alone.",
    fix="srun --het-group=0 … : --het-group=1 …, or --het-group=0-1.",
    source="Slurm's heterogeneous_jobs.html, 'Launching Applications (Job Steps)'",
)
def het_group(script: Script, _: LintContext) -> Iterator[Match]:
    """A heterogeneous job of which one component is used."""
    grouped = any(srun.option("het-group", "pack-group") is not None for _launch, srun, _request in script.steps)
    if script.header.separators and script.steps and not grouped:
        start = script.steps[0][1].name_word.start
        yield Match(start, f"{len(script.requests)} components, but srun uses only the first")
