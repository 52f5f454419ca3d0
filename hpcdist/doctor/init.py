"""`hpcdist.toml` from what the cluster says: asked, tried with `sbatch --test-only`, and written down."""

import getpass
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from hpcdist.config.project import CONFIG_NAME, read_options
from hpcdist.doctor.init_file import (
    Accepted,
    GpuShare,
    Merged,
    Setting,
    find_share,
    format_section,
    merge_file,
    propose_accelerator,
    propose_account,
    propose_identity,
    propose_requests,
    propose_surroundings,
)
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.files import write_atomically
from hpcdist.slurm import commands, sbatch
from hpcdist.slurm.cluster import (
    Association,
    Partition,
    list_qos_to_try,
    order_partitions,
    parse_associations,
    parse_modules,
    parse_qos_limits,
    parse_scontrol,
)
from hpcdist.submission.render import quote_sbatch


def _ask(command: list[str]) -> str:
    """Return the answer, or nothing: sites without accounting have no sacctmgr that answers."""
    try:
        return commands.run_command(command)
    except HpcdistError:
        return ""


def try_request(options: Iterable[tuple[str, str]]) -> str | None:
    """Why Slurm would refuse a job with these sbatch options; None when it would take it (`sbatch --test-only`).

    Raises:
        NotReadyError: It did not answer.
    """
    lines = "".join(f"#SBATCH --{key}={quote_sbatch(value)}\n" for key, value in options)
    try:
        sbatch.test_only(f"#!/bin/bash\n#SBATCH --job-name=hpcdist-init\n{lines}srun true\n")
    except HpcdistError as error:
        if error.exit_code != 1:
            raise
        return re.sub(r"^(sbatch: )?(error: )?", "", error.message.splitlines()[-1])
    return None


MODULES_TIMEOUT_S = 30.0
HYPERPOD = Path("/opt/sagemaker_cluster")  # there on its nodes [awsome-distributed-ai#231]
PROGRAMS = ("apptainer", "singularity", "enroot", "seff")
# A site may have fifty partitions; each try asks the controller.
MOST_PARTITIONS = 8
_RELATIVE = re.compile(r'^(\s*(?:venv|uv|templates|data[_-]dir|image)\s*=\s*")(?!/|[a-z]+://)([^"]*")', re.MULTILINE)


class Found(msgspec.Struct, frozen=True):
    """What a cluster said.

    Attributes:
        cluster: Its name; None without Slurm.
        settings: What to write.
    """

    cluster: str | None
    settings: tuple[Setting, ...]


def look_at_cluster() -> Found:
    """Asks the cluster for everything, and tries what it would take.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    config = commands.read_config()
    user, sacctmgr = getpass.getuser(), ["sacctmgr", "--noheader", "--parsable2", "show"]
    nodes = commands.run_command(["scontrol", "--oneliner", "--all", "show", "node"])
    partitions = parse_scontrol(commands.run_command(["scontrol", "--oneliner", "show", "partition"]), nodes)
    accounts = [*sacctmgr, "associations", "where", f"user={user}", "format=Account,Partition,QOS,DefaultQOS"]
    associations = parse_associations(_ask(accounts))
    # What to charge: the user's default account, else the first.
    default = _ask([*sacctmgr, "user", user, "format=DefaultAccount"]).strip()
    mine = next((one for one in associations if one.account == default), next(iter(associations), None))
    limits = parse_qos_limits(_ask([*sacctmgr, "qos", "format=Name,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU"]))
    named = {one.name: one for one in partitions}
    refused: list[str] = []
    gpu, cpu = (
        _try_partitions(order_partitions(partitions, mine, gpus=gpus), mine, refused, gpus=gpus)
        for gpus in (True, False)
    )
    # None where nothing was taken with it.
    account = mine.account if mine and (gpu or cpu) else None
    share = find_share(named[gpu.partition]) if gpu else None
    if gpu and share:
        share = _try_share(gpu, share, account)
    settings = [
        *propose_identity(config),
        *propose_account(associations, account, limits),
        *propose_requests(gpu, cpu, named, share, refused),
        *propose_accelerator(named[gpu.partition] if gpu else None),
        *propose_surroundings(
            modules=parse_modules(read_modules()),
            programs=[name for name in PROGRAMS if shutil.which(name)],
            srun_help=_ask(["srun", "--help"]),
            scratch=_find_scratch(config, partitions),
            has_hyperpod=HYPERPOD.exists(),
        ),
        _describe_accounting(config),
    ]
    return Found(config.get("ClusterName"), tuple(settings))


def _describe_accounting(config: Mapping[str, str]) -> Setting:
    storage, gathered = (config.get(key) or "?" for key in ("AccountingStorageType", "JobAcctGatherType"))
    state = "on" if "slurmdbd" in storage else "off"
    return Setting(source=f"accounting: {state} ({storage}), usage by {gathered} (scontrol show config)")


def _find_scratch(config: Mapping[str, str], partitions: Sequence[Partition]) -> str | None:
    """The nodes' own folder, where the settings say that there is room in it."""
    folder = config.get("TmpFS", "")
    has_room = any(node.scratch_mib > 0 for one in partitions for node in one.nodes)
    return folder if folder.startswith("/") and has_room else None


def _try_partitions(
    candidates: Sequence[Partition], mine: Association | None, refused: list[str], *, gpus: bool
) -> Accepted | None:
    """Find the first partition (the likeliest come first) that takes a job, and how it has to be requested there.

    What was refused, and why, is added to `refused`.
    """
    for partition in candidates[:MOST_PARTITIONS]:
        types = {node.gpu_type for node in partition.nodes if node.gpu_type}
        for flag, gpu_type in _ways(sorted(types)) if gpus else [(None, None)]:
            for qos in list_qos_to_try(partition, mine):
                wanted = Accepted(partition=partition.name, gpu_flag=flag, gpu_type=gpu_type, qos=qos)
                request = _request(wanted, mine.account if mine else None)
                why = try_request(request)
                if why is None:
                    return wanted
                given = (f" --{key}={value}" for key, value in request if key in ("qos", "gpus-per-node", "gres"))
                refused.append(f"--partition={partition.name}{''.join(given)}: {why}")
                if "qos" not in why.lower():
                    break  # another one would not help
    return None


def _ways(types: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """How to ask for a GPU, the plainest first."""
    for gpu_type in (None, *types):
        for flag in ("gpus-per-node", "gres"):
            yield flag, gpu_type


def _request(wanted: Accepted, account: str | None) -> list[tuple[str, str]]:
    """Sbatch's options for a minute of one task, with a GPU where one is wanted."""
    request = [("partition", wanted.partition), ("nodes", "1"), ("ntasks-per-node", "1"), ("time", "1")]
    if account:
        request.append(("account", account))
    if wanted.qos:
        request.append(("qos", wanted.qos))
    if wanted.gpu_flag:
        count = f"{wanted.gpu_type}:1" if wanted.gpu_type else "1"
        request.append((wanted.gpu_flag, f"gpu:{count}" if wanted.gpu_flag == "gres" else count))
    return request


def _try_share(gpu: Accepted, share: GpuShare, account: str | None) -> GpuShare:
    """The share as Slurm takes it: without the memory where it refuses that."""
    request = [*_request(gpu, account), ("cpus-per-task", str(share.cpus))]
    if share.mem_per_cpu_mib and try_request([*request, ("mem-per-cpu", f"{share.mem_per_cpu_mib}M")]) is None:
        return share
    return msgspec.structs.replace(share, mem_per_cpu_mib=None)


def read_modules() -> str:
    """What `module avail` lists in a login shell; empty where there are no modules."""
    try:
        done = subprocess.run(
            ["bash", "-lc", "command -v module > /dev/null && module --terse avail 2>&1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MODULES_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def look_at_machine() -> Found:
    """A small file for runs on a machine without Slurm."""
    cores = len(os.sched_getaffinity(0))
    return Found(
        None,
        (
            Setting(source="There is no Slurm on this machine: jobs run here, one process per rank."),
            Setting(source="On the cluster's login node, hpcdist init writes what jobs need there."),
            Setting("cpus_per_task", max(1, cores // 2), f"half of the {cores} CPUs here: two ranks fit"),
        ),
    )


def merge(path: Path, found: Found) -> Merged:
    """The file with what was found; what a person wrote stays.

    Raises:
        UsageError: The file can't be read, or has a fault.
    """
    if not path.exists():
        return Merged(text=_head(found) + "\n".join(format_section(found.settings)) + "\n")
    read_options(path, site=True)  # a fault is told before anything is changed
    text = _read(path)
    return merge_file(text, found.settings, _find_section(text, found.cluster), str(path))


def _head(found: Found) -> str:
    said = f"from what the cluster {found.cluster} said to {getpass.getuser()}" if found.cluster else "on this machine"
    return (
        f"# Written by hpcdist init {said}. Change what you like: run again it keeps your changes.\n"
        "# Every line can be overridden on the command line; docs/cluster.md and hpcdist schema have all the keys.\n"
    )


def _find_section(text: str, cluster: str | None) -> str | None:
    """The profile that is this cluster's in a file with profiles, or of another cluster; None is the file itself."""
    parsed = tomllib.loads(text)
    if cluster is None:
        return None
    profiles = parsed.get("sites", {})
    for name, profile in profiles.items():
        if fnmatchcase(cluster, str(profile.get("cluster", name))):
            return str(name)
    other = not fnmatchcase(cluster, str(parsed.get("cluster", cluster)))
    return cluster if profiles or other else None


def read_from(source: Path, target: Path) -> str:
    """Another's file for this project, its relative paths still meant from where it was.

    Raises:
        UsageError: There is none, or it has a fault.
    """
    path = source / CONFIG_NAME if source.is_dir() else source
    if not path.is_file():
        raise UsageError(f"there is no {path}", "give a hpcdist.toml, or a folder that has one")
    if path.resolve() == target.resolve():
        raise UsageError(f"{path} is the file to write", "go to your own project's folder first")
    read_options(path, site=True)
    folder = path.parent.resolve()
    text = _RELATIVE.sub(lambda found: f"{found[1]}{folder}/{found[2]}", _read(path))
    return f"# From {path.resolve()} by hpcdist init --from.\n{text}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {path}: {error}", "check the path") from None


def write(path: Path, text: str) -> None:
    """Writes the file whole, or not at all.

    Raises:
        HpcdistError: It can't be written.
    """
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise HpcdistError(f"can't write {path}: {error.strerror}", "check the folder's permissions") from None
