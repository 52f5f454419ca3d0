"""Rules about GPUs: how they are asked for, bound, and matched by tasks and programs."""

import re
from collections.abc import Iterator

from hpcdist.lint.launches import Program, is_python_launch, is_work
from hpcdist.lint.rule import LintContext, Match, rule
from hpcdist.lint.script import ResourceRequest, Script, gres_gpus

_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@rule(
    "gpus-per-task",
    "warning",
    why="Each rank sees one GPU, always as number 0: 'invalid device ordinal', and no peer-to-peer copies.",
    fix="Ask with --gpus-per-node (or --gres=gpu:N) and let each rank choose by its local rank.",
    source="PL#16828, nccl#1066, nccl#1948; sbatch(1), --gpus-per-task",
)
def gpus_per_task(script: Script, _: LintContext) -> Iterator[Match]:
    """GPUs bound to tasks, where there are several."""
    for component, request in enumerate(script.requests):
        directive = script.last("gpus-per-task", component=component)
        if directive and request.task_count > 1:
            yield Match(directive.start, f"--gpus-per-task with {request.task_count} tasks")
    for launch, srun, request in script.steps:
        if srun.option("gpus-per-task") is not None and request.task_count > 1 and not launch.inside:
            yield Match(srun.name_word.start, f"srun --gpus-per-task with {request.task_count} tasks")


@rule(
    "gpu-bind",
    "warning",
    why="Each task sees only the GPUs bound to it: ranks build several small worlds, or can't reach each other's GPU.",
    fix="Take it out, or write --gpu-bind=none.",
    source="PL#13605; srun(1), --gpu-bind",
)
def gpu_bind(script: Script, _: LintContext) -> Iterator[Match]:
    """Anything but none."""
    for directive in script.given("gpu-bind"):
        if not re.fullmatch(r"(verbose,)?none", directive.value or ""):
            yield Match(directive.start, f"--gpu-bind={directive.value}")
    for _launch, srun, _request in script.steps:
        value = srun.option("gpu-bind")
        if value is not None and not re.fullmatch(r"(verbose,)?none", value):
            yield Match(srun.name_word.start, f"srun --gpu-bind={value}")


@rule(
    "gpu-flag",
    "error",
    why="--gres=gpu and the --gpus options are two ways to say the same; together they contradict each other.",
    fix="Keep the one that your site wants.",
    source="torchx#1092; sbatch(1), --gres and --gpus-per-node",
)
def gpu_flag(script: Script, _: LintContext) -> Iterator[Match]:
    """GPUs asked for twice."""
    for component in range(len(script.requests)):
        gres = script.last("gres", component=component)
        other = script.last("gpus-per-node", "gpus", "gpus-per-task", component=component)
        if gres and other and gres_gpus(gres.value or ""):
            yield Match(max(gres.start, other.start), f"--gres={gres.value} with --{other.name}")


@rule(
    "cuda-visible-devices",
    "warning",
    why="Slurm sets it to the GPUs it granted; numbers written by hand may be another job's, or none.",
    fix="Take the line out.",
    source="Slurm's gres.html, 'GPU Management'",
)
def cuda_visible_devices(script: Script, _: LintContext) -> Iterator[Match]:
    """A list of GPUs by hand."""
    for assignment in script.shell.assignments:
        parts = assignment.value.expansions if assignment.value else ()
        sets_local = any(part.name == assignment.name for part in parts)
        if assignment.name in _DEVICE_VARIABLES and assignment.text not in ("", "-1") and not sets_local:
            yield Match(assignment.start, f"{assignment.name}={assignment.text} by hand")


@rule(
    "tasks-gpus",
    "warning",
    why="With one rank for each GPU, more tasks than GPUs crash or share one, and fewer leave GPUs idle.",
    fix="Make --ntasks-per-node the number of GPUs per node.",
    source="PL#20391, PL#10098",
)
def tasks_gpus(script: Script, _: LintContext) -> Iterator[Match]:
    """A step of Python ranks that are not as many as the GPUs."""
    for launch, srun, request in script.steps:
        plain = [one for one in script.launches_of(launch) if is_python_launch(one)]
        tasks, gpus = request.node_tasks, request.node_gpus
        if not plain or not tasks or not gpus or tasks == gpus:
            continue
        if any(is_work(one) and not is_python_launch(one) for one in script.launches_of(launch)):
            continue
        what = "several ranks share a GPU" if tasks > gpus else "some have no rank"
        yield Match(srun.name_word.start, f"{tasks} task(s) and {gpus} GPU(s) on each node: {what}")


@rule(
    "devices-mismatch",
    "error",
    why="The program waits for ranks that never start, or leaves GPUs idle.",
    fix="Take the number from the job: $SLURM_JOB_NUM_NODES, $SLURM_GPUS_ON_NODE, $SLURM_NTASKS.",
    source="PL#20391, PL#10098; torchrun, accelerate and deepspeed --help",
)
def devices_mismatch(script: Script, _: LintContext) -> Iterator[Match]:
    """Numbers of nodes and devices that are not the job's."""
    for launch in script.launches:
        if not is_work(launch):
            continue
        srun = launch.find("srun")
        request = script.step_request(srun) if srun else script.request
        for option, value, asked, what in _numbers(launch.last, request):
            if asked and value and value != asked:
                yield Match(launch.start, f"{option} is {value}, but the job has {asked} {what}")


def _numbers(program: Program, request: ResourceRequest) -> Iterator[tuple[str, int | None, int | None, str]]:
    """What the program was told, and what the job has."""
    nodes = request.node_count if request.nodes else None
    gpus = request.node_gpus
    everywhere = nodes * gpus if nodes and gpus else None
    checks: dict[str, list[tuple[tuple[str, ...], int | None, str]]] = {
        "torchrun": [
            (("--nnodes",), nodes, "node(s)"),
            (("--nproc_per_node", "--nproc-per-node"), gpus, "GPU(s) per node"),
        ],
        "accelerate": [(("--num_machines",), nodes, "node(s)"), (("--num_processes",), everywhere, "GPU(s) in all")],
        "deepspeed": [(("--num_nodes",), nodes, "node(s)"), (("--num_gpus",), gpus, "GPU(s) per node")],
        "python": [
            (("--num_nodes", "--num-nodes", "trainer.num_nodes", "--trainer.num_nodes"), nodes, "node(s)"),
            (("--devices", "trainer.devices", "--trainer.devices"), gpus, "GPU(s) per node"),
        ],
    }
    for names, asked, what in checks.get(program.name, []):
        option, value = find_option(program, *names)
        if option:
            yield option, value, asked, what


def find_option(program: Program, *names: str) -> tuple[str, int | None]:
    """The first option by one of the names, and its number where it is a plain one."""
    for text, (name, value) in zip(program.texts, program.arguments(), strict=True):
        if name in names:
            return name, int(value) if re.fullmatch("[0-9]{1,6}", value) else None
        # What follows the script are its own options.
        if program.name != "python" and (text.endswith(".py") or text in ("-m", "--module")):
            break
    return "", None
