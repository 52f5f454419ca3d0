"""Rules about how ranks find each other: address, port, interface."""

import re
from collections.abc import Iterator

from hpcdist.lint.launches import CONTAINERS, Program, is_work
from hpcdist.lint.rule import LintContext, Match, insert, replace, rule
from hpcdist.lint.script import Script

FREE_PORT = "$((10000 + SLURM_JOB_ID % 20000))"
# sed reads to the end: under pipefail, head could end scontrol with a broken pipe.
HEAD_NODE = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)'
_PORTS = ("MASTER_PORT", "MAIN_PROCESS_PORT", "MAIN_PORT")
_PORT_OPTIONS = ("--master_port", "--master-port", "--main_process_port", "--rdzv_endpoint", "--rdzv-endpoint")
_ADDRESSES = ("MASTER_ADDR", "MASTER_ADDRESS", "MAIN_ADDR", "MAIN_PROCESS_IP", "HEAD_NODE_IP", "MASTER_IP")
_ADDRESS_OPTIONS = ("--master_addr", "--master-addr", "--main_process_ip", "--rdzv_endpoint", "--rdzv-endpoint")
_LOCAL = ("localhost", "127.0.0.1", "0.0.0.0", "::1")  # noqa: S104
_LISTS = ("SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST")
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


@rule(
    "port",
    "warning",
    why="Two jobs on one node with the same port: 'address already in use'.",
    fix=f"Make it from the job's id, below 32768: export MASTER_PORT={FREE_PORT}.",
    source="PL#401, PL#485; torchrun's documentation, --standalone",
)
def port(script: Script, _: LintContext) -> Iterator[Match]:
    """A fixed port, or the fixed default."""
    seen: set[int] = set()
    for assignment in script.shell.assignments:
        word = assignment.value
        if assignment.name in _PORTS and word and re.fullmatch("[0-9]{2,5}", word.text):
            edits = replace(word.start, word.end, FREE_PORT) if script.is_written(word, word.text) else ()
            seen.add(assignment.start)
            yield Match(assignment.start, f"{assignment.name} is always {word.text}", edits)
    for launch in script.launches:
        if not is_work(launch):
            continue
        values = dict(_options(launch.last, _PORT_OPTIONS))
        for option, value in values.items():
            found = re.search(r"(?:^|:)([0-9]{2,5})$", value)
            if found and found[1] != "0" and not seen:
                yield Match(launch.start, f"{option} is always {found[1]}")
        texts = launch.last.texts
        # Told of other nodes, it may have them from sbatch's command line.
        several = any(re.match(r"--(nnodes(?!=1$)|node.rank)", text) for text in texts)
        told = script.exports("MASTER_PORT") or script.exports("PET_MASTER_PORT")
        is_alone = several or "--standalone" in texts or told
        if launch.last.name == "torchrun" and not values and not is_alone and not script.is_multi_node:
            word = launch.last.name_word
            is_plain = script.is_written(word, "torchrun") and not launch.inside
            edits = insert(word.end, " --standalone") if is_plain else ()
            fix = "torchrun --standalone chooses a free port."
            yield Match(word.start, "torchrun without --standalone always takes port 29500", edits, fix)


def _options(program: Program, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for text, (name, value) in zip(program.texts, program.arguments(), strict=True):
        if name in names:
            yield name, value
        elif text.endswith(".py"):
            return


@rule(
    "master-addr",
    "error",
    why="Every task would wait on itself, or for a name that the other nodes can't resolve.",
    fix=f"export MASTER_ADDR={HEAD_NODE}, before srun.",
    source="pytorch#73656; torch.distributed's documentation, 'Environment variable initialization'",
)
def master_addr(script: Script, _: LintContext) -> Iterator[Match]:
    """This host's name or address as the address of a job of several nodes."""
    if not script.is_multi_node:
        return
    for assignment in script.shell.assignments:
        word = assignment.value
        if assignment.name not in _ADDRESSES or word is None:
            continue
        said = _own_address(word.text)
        if said:
            edits = replace(word.start, word.end, HEAD_NODE)
            yield Match(assignment.start, f"{assignment.name} is {said}", edits)
    for launch in script.launches:
        if not launch.inside:
            continue
        for command_word in launch.command.words:
            found = re.search(r"\bMASTER_ADDR=(\S+)", command_word.text)
            said = _own_address(found[1].strip("\"'")) if found and launch.last.name == "export" else ""
            if said:
                yield Match(command_word.start, f"MASTER_ADDR is {said}, in each task another")
    for launch in script.launches:
        for option, value in _options(launch.last, _ADDRESS_OPTIONS) if is_work(launch) else ():
            said = _own_address(value)
            if said:
                yield Match(launch.start, f"{option} is {said}")


def _own_address(text: str) -> str:
    """What is wrong with an address; empty where nothing is."""
    host = text.strip("\"'")
    if re.match(r"(\$\(|`)\s*hostname\b", host):
        return "what hostname says"
    if re.match(r"\$\{?(HOSTNAME|HOST)\b", host):
        return "the name of whatever host it runs on"
    if "SLURM_SUBMIT_HOST" in host:
        return "the login node's"
    name = host.rpartition(":")[0] if re.search(r":[0-9$]", host) and host != "::1" else host
    return f"{name}: each node itself" if name in _LOCAL else ""


@rule(
    "nodelist",
    "error",
    why="The list is written short, as rack[0-1]n[0-3], so that cutting it up gives names of hosts that do not exist.",
    fix='scontrol show hostnames "$SLURM_JOB_NODELIST", its first line, outside of any container.',
    source="scontrol(1), show hostnames; Lightning 2.6.6 makes rack0 of it [run]",
)
def nodelist(script: Script, _: LintContext) -> Iterator[Match]:
    """The node list cut by hand."""
    for assignment in script.shell.assignments:
        for part in assignment.value.expansions if assignment.value else ():
            whole = assignment.value is not None and assignment.value.text == part.source
            if part.name in _LISTS and (part.kind == "modified" and not re.search(r":[-?+=]", part.source)):
                yield Match(part.start, f"{part.source} cuts the node list by hand")
            elif part.name in _LISTS and whole and assignment.name in _ADDRESSES:
                yield Match(part.start, f"{assignment.name} is the whole node list")
    for launch in script.launches:
        command = launch.command
        if launch.inside:
            continue
        reads = any(part.name in _LISTS for word in command.words for part in word.expansions)
        cutter = next((name for name in command.piped_into if name in ("cut", "sed", "awk", "tr", "grep")), None)
        if reads and cutter and launch.last.name in ("echo", "printf"):
            yield Match(command.start, f"{cutter} cuts the node list by hand")
        if launch.last.name == "scontrol" and launch.find(*CONTAINERS):
            yield Match(launch.start, "scontrol in a container, which has no Slurm in it")


@rule(
    "nic",
    "warning",
    why="A name that only some nodes have, or the loopback: NCCL hangs, or finds no interface.",
    fix="Take it out, or exclude what is wrong: NCCL_SOCKET_IFNAME=^lo,docker0.",
    source="nccl#286; NCCL's environment variables, NCCL_SOCKET_IFNAME",
)
def nic(script: Script, _: LintContext) -> Iterator[Match]:
    """An interface that hardly fits all nodes."""
    if not script.is_multi_node:
        return
    for assignment in script.shell.assignments:
        fits_few = re.match(r"=?(lo\b|docker|virbr|veth|eth[0-9])", assignment.text)
        if assignment.name in _INTERFACES and fits_few:
            yield Match(assignment.start, f"{assignment.name}={assignment.text} in a job of several nodes")
