"""What Slurm says: whether it is there, accounts for jobs, and would take the jobs of this project."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcdist.check import SLURM, Check
from hpcdist.config.project import Project
from hpcdist.errors import HpcdistError, NotReadyError
from hpcdist.records.efficiency import parse_gathering
from hpcdist.site_checks import judge_accounting, judge_clock, judge_partition
from hpcdist.slurm import cluster as slurm_cluster
from hpcdist.slurm import commands, sbatch
from hpcdist.slurm.cluster import Partition, parse_clock
from hpcdist.submission.prepare import complete_job, prepare

# What only a scheduler can give: a project whose settings name it needs Slurm.
SLURM_WORDS = ("partition", "account", "qos", "constraint", "reservation", "nodelist")
# What a job's shape and place come from; the rest of a project's defaults is not for a job of the doctor's.
PLACE_WORDS = (*SLURM_WORDS, "exclude", "sbatch", "srun", "setup", "env", "cpus_per_task", "accelerator", "gpus")
_LOOK = "load Slurm's module (module load slurm), or ask on the login node"


def check_slurm(defaults: Mapping[str, Any], *, is_needed: bool = False) -> tuple[Check, dict[str, str] | None]:
    """Whether Slurm answers, and its settings if it does; None where it is not here.

    Args:
        defaults: The project's defaults for jobs: one that only Slurm knows says that it is needed.
        is_needed: Whether it was asked for.
    """
    try:
        available = commands.is_available()
    except NotReadyError as error:
        return Check(name=SLURM, status="error", sentence=error.message, hint=error.hint), None
    if not available:
        named = [word for word in SLURM_WORDS if defaults.get(word)]
        if named:
            sentence = f"hpcdist.toml names a {named[0]} ({defaults[named[0]]}), and there is no sbatch on PATH"
            return Check(name=SLURM, status="error", sentence=sentence, hint=_LOOK), None
        if is_needed:
            return Check(name=SLURM, status="error", sentence="there is no sbatch on PATH", hint=_LOOK), None
        return Check(name=SLURM, status="ok", sentence="not on this machine: jobs run here, without it"), None
    try:
        config = commands.read_config()
    except HpcdistError as error:
        *earlier, last = error.message.splitlines()
        hint = f"{error.hint or 'scontrol ping'}; --backend local works here without Slurm"
        sentence = f"the controller does not answer: {last.removeprefix('scontrol: ')}"
        return Check(name=SLURM, status="error", sentence=sentence, hint=hint, evidence=tuple(earlier)), None
    sentence = f"cluster {config.get('ClusterName', '(unnamed)')} answers"
    return Check(name=SLURM, status="ok", sentence=sentence, evidence=(config.get("SLURM_VERSION", ""),)), config


def check_accounting(config: Mapping[str, str]) -> Check:
    """Whether sacct answers, and what is gathered."""
    trouble = ""
    try:
        slurm_cluster.ask_accounting()
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
        return [*checks, Check(name="request", status="error", sentence=sentence, hint=hint)]
    except OSError as error:
        sentence = f"can't write a script to try: {error.strerror}"
        return [*checks, Check(name="request", status="unknown", sentence=sentence)]
    sentence = "Slurm would take a job with this project's settings (sbatch --test-only)"
    return [*checks, Check(name="request", status="ok", sentence=sentence, evidence=tuple(words.splitlines()[:1]))]


def check_clock() -> Check:
    """This machine's clock against the controller's."""
    try:
        line, before_s, after_s = slurm_cluster.read_controller_clock()
    except HpcdistError as error:
        return Check(name="clock", status="unknown", sentence=error.message)
    return judge_clock(parse_clock(line), before_s, after_s)
