"""Check the cluster: whether Slurm is there, accounts for jobs, and would take the jobs of this project.

Source: `scontrol show config`, run with Slurm 22.05.8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcdist.config.project import Project
from hpcdist.doctor.check import SLURM, Check
from hpcdist.errors import HpcdistError, NotReadyError
from hpcdist.records.efficiency import Gathering, parse_gathering
from hpcdist.slurm import cluster as slurm_cluster
from hpcdist.slurm import commands, sbatch
from hpcdist.slurm.cluster import Partition, parse_clock
from hpcdist.submission.prepare import complete_job, prepare
from hpcdist.text import nearest

# munge refuses a credential that is older than five minutes (munged(8), --max-ttl is an hour, the default 300 s).
REFUSED_SKEW_S = 300.0
WARN_SKEW_S = 5.0


def choose_partition(requested: str | None, partitions: Sequence[Partition]) -> Partition | None:
    """The first of those asked for (`a,b`), else the default one; None where there is none of the name."""
    if requested:
        return next((one for name in requested.split(",") for one in partitions if one.name == name), None)
    return next((one for one in partitions if one.is_default), None)


def judge_partition(requested: str | None, partitions: Sequence[Partition]) -> Check:
    """Whether the partition that jobs go to exists, is up and has nodes."""
    names = [one.name for one in partitions]
    for name in requested.split(",") if requested else ():
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near!r}? change partition in hpcdist.toml" if near else "sinfo lists them"
            sentence = f"there is no partition {name!r} that you can see, expected one of: {', '.join(names) or 'none'}"
            return Check("partition", "error", sentence, hint)
    chosen = choose_partition(requested, partitions)
    if chosen is None:
        sentence = "no partition is named in hpcdist.toml, and the cluster has no default one"
        hint = f'put partition = "{names[0]}" into hpcdist.toml' if names else "sinfo lists them"
        return Check("partition", "error", sentence, hint)
    count = sum(node.count for node in chosen.nodes)
    said = f"partition {chosen.name}: {chosen.usable_nodes} of {count} node(s) usable"
    said += ", with GPUs" if chosen.has_gpus else ", no GPUs"
    if not chosen.is_up or chosen.usable_nodes == 0:
        sentence = said if chosen.is_up else f"partition {chosen.name} is not up: it starts no jobs"
        return Check("partition", "warning", sentence, f"sinfo -p {chosen.name} -R says why")
    return Check("partition", "ok", said)


def judge_accounting(gathering: Gathering, storage: str | None, trouble: str) -> Check:
    """Say whether Slurm accounts for jobs, and what it gathers of them.

    `storage` is its `AccountingStorageType`; `trouble` is what sacct complained of, empty when it answered.
    """
    name = "accounting"
    if trouble:
        off = (storage or "").endswith(("none", "(null)"))
        rest = "it is off" if off else "it does not answer"
        sentence = f"{rest} ({trouble}): seff has only what the ranks measured, and ended jobs are soon forgotten"
        hint = "ask the administrators for accounting" if off else "sacct again later; jobs run without it"
        return Check(name, "warning", sentence, hint)
    if gathering.gathered == "nothing":
        sentence = "sacct answers, but memory and CPU of steps are not gathered (JobAcctGatherType is none)"
        return Check(name, "warning", sentence, "hpcdist seff --source ranks has its own")
    if gathering.gathered == "cgroup-peak":
        return Check(name, "ok", "sacct answers; memory is the kernel's own peak")
    if gathering.gathered is None or gathering.every_s is None:
        return Check(name, "ok", "sacct answers; how memory is gathered is not known")
    every_s = gathering.every_s
    rest = "" if every_s <= 1 else ": shorter peaks are missed, and jobs shorter than that have no memory figure"
    return Check(name, "ok", f"sacct answers; memory is sampled every {every_s:.0f} s{rest}")


def judge_clock(controller_s: float | None, before_s: float, after_s: float) -> Check:
    """Compare this machine's clock, before and after the controller was asked, with the controller's.

    All in seconds since the epoch, the controller's in whole ones.
    """
    if controller_s is None:
        return Check("clock", "unknown", "the controller does not say what time it is")
    # Whole seconds: the true time is up to one later than what was printed.
    ahead_s = max(0.0, before_s - (controller_s + 1), controller_s - after_s)
    if ahead_s <= WARN_SKEW_S:
        return Check("clock", "ok", "this machine and the controller agree on the time")
    side = "ahead of" if before_s > controller_s else "behind"
    sentence = f"this machine is {ahead_s:.0f} s {side} the controller"
    if ahead_s >= REFUSED_SKEW_S:
        sentence += ": from five minutes on munge refuses every command"
    status = "error" if ahead_s >= REFUSED_SKEW_S else "warning"
    hint = "have both set their time from one server (chronyc tracking, timedatectl)"
    return Check("clock", status, sentence, hint)  # type: ignore[arg-type]


# What only a scheduler can give: a project whose settings name it needs Slurm.
SLURM_WORDS = ("partition", "account", "qos", "constraint", "reservation", "nodelist")
# What a job's shape and place come from; the rest of a project's defaults is not for a job of the doctor's.
PLACE_WORDS = (*SLURM_WORDS, "exclude", "sbatch", "srun", "setup", "env", "cpus_per_task", "accelerator", "gpus")
_LOOK = "load Slurm's module (module load slurm), or ask on the login node"


def check_slurm(defaults: Mapping[str, Any], *, is_needed: bool = False) -> tuple[Check, dict[str, str] | None]:
    """Say whether Slurm answers, and its settings if it does; None where it is not here.

    A default that only Slurm knows says that it is needed, too.
    """
    try:
        available = commands.is_available()
    except NotReadyError as error:
        return Check(SLURM, "error", error.message, error.hint), None
    if not available:
        named = [word for word in SLURM_WORDS if defaults.get(word)]
        if named:
            sentence = f"hpcdist.toml names a {named[0]} ({defaults[named[0]]}), and there is no sbatch on PATH"
            return Check(SLURM, "error", sentence, _LOOK), None
        if is_needed:
            return Check(SLURM, "error", "there is no sbatch on PATH", _LOOK), None
        return Check(SLURM, "ok", "not on this machine: jobs run here, without it"), None
    try:
        config = commands.read_config()
    except HpcdistError as error:
        *earlier, last = error.message.splitlines()
        hint = f"{error.hint or 'scontrol ping'}; --backend local works here without Slurm"
        sentence = f"the controller does not answer: {last.removeprefix('scontrol: ')}"
        return Check(SLURM, "error", sentence, hint, evidence=tuple(earlier)), None
    sentence = f"cluster {config.get('ClusterName', '(unnamed)')} answers"
    return Check(SLURM, "ok", sentence, evidence=(config.get("SLURM_VERSION", ""),)), config


def check_accounting(config: Mapping[str, str]) -> Check:
    """Whether sacct answers, and what is gathered."""
    trouble = ""
    try:
        commands.list_accounting("JobID", "-X", "-S", "now-1minutes")
    except HpcdistError as error:
        trouble = error.message.splitlines()[0]
    return judge_accounting(parse_gathering(config), config.get("AccountingStorageType"), trouble)


def check_request(project: Project, partitions: Sequence[Partition]) -> list[Check]:
    """Whether the partition is there, and Slurm would take a minute on one node with the project's settings."""
    checks = [judge_partition(project.defaults.get("partition") or project.site.partitions.gpu, partitions)]
    if checks[0].status == "error":
        return checks
    options = {key: project.defaults[key] for key in PLACE_WORDS if key in project.defaults}
    options |= {"name": "doctor", "time": "1", "nodes": 1, "command": ("true",)}
    bare = Project(root=project.root, site=project.site)
    try:
        prepared = prepare(complete_job(options, bare), bare, backend="slurm", run=None)
        words = sbatch.test_only(prepared.script)
        sbatch.check_srun(prepared.spec.srun)
    except HpcdistError as error:
        sentence = f"Slurm would refuse a job with this project's settings: {error.message}"
        hint = error.hint or "hpcdist submit --dry-run shows what is asked for"
        return [*checks, Check("request", "error", sentence, hint)]
    except OSError as error:
        return [*checks, Check("request", "unknown", f"can't write a script to try: {error.strerror}")]
    sentence = "Slurm would take a job with this project's settings (sbatch --test-only)"
    return [*checks, Check("request", "ok", sentence, evidence=tuple(words.splitlines()[:1]))]


def check_clock() -> Check:
    """This machine's clock against the controller's."""
    try:
        line, before_s, after_s = slurm_cluster.read_controller_clock()
    except HpcdistError as error:
        return Check("clock", "unknown", error.message)
    return judge_clock(parse_clock(line), before_s, after_s)
