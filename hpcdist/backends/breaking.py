"""What a drill does to a job of its owner's: no more than its owner may."""

import os
import shlex
import subprocess
from collections.abc import Sequence

from hpcdist.errors import HpcdistError
from hpcdist.records.ranks import RankUsage
from hpcdist.slurm import commands, sbatch
from hpcdist.slurm.queue import parse_job_fields

ADMIN_TIMEOUT_S = 120.0
# Ends by itself where nobody cancels it: it has done its work when it has started.
PREEMPTOR = ["--time=1", "--job-name=hpcdist-drill", "--output=/dev/null", "--wrap=sleep 5"]


def preempt(job_id: str, partition: str) -> str:
    """Submits a job that wants the whole nodes of a running one; returns its id.

    Raises:
        HpcdistError: Slurm refused it.
    """
    fields = parse_job_fields(commands.show_job(job_id))
    shape = [f"--partition={partition}", f"--nodes={fields['NumNodes']}", f"--nodelist={fields['NodeList']}"]
    if (account := fields.get("Account", "(null)")) != "(null)":
        shape.append(f"--account={account}")
    said = _run(["sbatch", "--parsable", "--exclusive", *shape, *PREEMPTOR])
    return said.strip().partition(";")[0]


def warn_of_time_limit(job_id: str) -> None:
    """Sends what Slurm sends before the time limit: USR2 to the job's steps, not to its script (man sbatch, --signal).

    Raises:
        HpcdistError: Slurm refused.
    """
    _run(["scancel", "--signal=USR2", job_id])


def signal_rank(job_id: str, rank: RankUsage, signal: str) -> None:
    """Sends a signal to a rank's program alone, from a step of its own on the rank's node.

    Raises:
        HpcdistError: Slurm refused the step, or the program is gone.
    """
    # The node by its place in the job: hosts need not be called what Slurm calls them.
    step = ["srun", f"--jobid={job_id}", "--overlap", "--nodes=1", "--ntasks=1", f"--relative={rank.node_rank}"]
    _run([*step, "kill", f"-{signal}", str(rank.pid)])


def kill_node(command: str, node: str) -> None:
    """Runs the administrator's command, with the node's name for `{node}`.

    Raises:
        HpcdistError: It failed.
    """
    words = [word.replace("{node}", node) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ADMIN_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HpcdistError(f"{words[0]}: {error}") from None
    if done.returncode != 0:
        raise HpcdistError(f"{words[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _run(arguments: Sequence[str]) -> str:
    return commands.run_command([*sbatch.outside_of_a_job(os.environ), *arguments])
