"""What a cluster says of itself and of the jobs of one user, for `hpcdist doctor` and for Tab."""

import getpass
import time
from collections.abc import Mapping

from hpcdist.backends import slurm
from hpcdist.errors import HpcdistError
from hpcdist.partitions import SINFO_WITH_STATES, Partition, parse_sinfo
from hpcdist.refusal import CLOSED_DOOR
from hpcdist.sacct_question import TIME_ENVIRONMENT
from hpcdist.status_rows import MARK_FORMAT, Mark, parse_marks


def list_partitions() -> tuple[Partition, ...]:
    """All partitions of the cluster; none where it does not say."""
    try:
        return parse_sinfo(slurm.run_command([*SINFO_WITH_STATES, "-a"]))
    except HpcdistError:
        return ()


def name_partitions() -> list[str]:
    """The names of the partitions that this user may see.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    return sorted(set(slurm.run_command(["sinfo", "-h", "-o", "%R"]).split()))


def ask_accounting() -> None:
    """Asks accounting for anything at all.

    Raises:
        HpcdistError: It is off, or does not answer; the message has its own words.
    """
    slurm.list_accounting("JobID", "-X", "-S", "now-1minutes")


def read_controller_clock() -> tuple[str, float, float]:
    """What the controller says its settings were told at, and this machine's time before and after, since the epoch.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    before_s = time.time()
    said = slurm.run_command(["scontrol", "show", "config"], TIME_ENVIRONMENT)
    return said.split("\n", 1)[0], before_s, time.time()


def list_living_runs() -> list[Mark]:
    """This user's jobs that wait or run, and carry the name of a run.

    Raises:
        HpcdistError: Slurm does not answer.
    """
    return parse_marks(slurm.list_queue(MARK_FORMAT, "-u", getpass.getuser()))


def find_closed_door(job_id: str) -> str | None:
    """Why a job that Slurm took will never start, in its words; None unless its partition is closed to it."""
    try:
        listed = slurm.list_queue("%r", "-j", job_id)
    except HpcdistError:
        return None
    return next((line for line in listed.splitlines() if CLOSED_DOOR in line), None)


def find_cluster_name(config: Mapping[str, str] | None) -> str | None:
    """The cluster's name, from its settings or asked for; None where nobody says."""
    try:
        return (slurm.read_config() if config is None else config).get("ClusterName")
    except HpcdistError:
        return None
