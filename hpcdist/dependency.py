"""What a job waits for: the names of runs replaced by the ids of their jobs."""

import re
from pathlib import Path

from hpcdist.errors import UsageError
from hpcdist.records.job import join_task
from hpcdist.records.store import Store

# Slurm's own words (sbatch(1), --dependency): kinds, ids with a task or a delay, "singleton".
_OWN = re.compile(r"after(any|burstbuffer|corr|notok|ok)?|expand|singleton|[0-9]+(_([0-9]+|\*))?(\+[0-9]+)?|[,?:]|")


def resolve_dependency(text: str, root: Path) -> str:
    """What a job waits for in Slurm's words; a run or job alone has to end well.

    Args:
        text: `afterok:123`, `afterany:RUN:124`, `RUN`, `singleton`.
        root: Folder of the project whose runs are meant.

    Raises:
        NotFoundError: There is no such run here.
        UsageError: A run has no Slurm job.
    """
    found = re.split(r"([,?:])", text if ":" in text or text == "singleton" else f"afterok:{text}")
    return "".join(word if _OWN.fullmatch(word) else _find_id(word, root) for word in found)


def _find_id(token: str, root: Path) -> str:
    run, task = Store(root).find(token)
    job_id = join_task(run.job_id, task)
    if job_id is None or run.is_local:
        raise UsageError(f"dependency: run {run.name} has no Slurm job to wait for", f"hpcdist status {run.name}")
    return job_id
