"""Repairs what `registry` finds wrong with runs, and says what it did. Deletes nothing but temporary files.

Each run is held while it is changed and looked at again first: one that another process submits is left alone.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hpcdist.errors import HpcdistError, NotFoundError, UsageError
from hpcdist.launcher import local
from hpcdist.records.job import split_task
from hpcdist.records.store import LocalState, Run, Store
from hpcdist.registry import Problem, find_open, find_writer, judge_record
from hpcdist.slurm import cluster as slurm_cluster
from hpcdist.slurm import sbatch
from hpcdist.slurm.queue import RunMarker

ASIDE = ".aside"
# sacct is asked for a week (`sbatch.find_by_run`): an older job may exist that it does not show.
SEARCHED_S = 6 * 86400.0


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What was done about a problem.

    Attributes:
        kind: The problem's.
        run: Its run.
        done: Whether it is mended.
        sentence: What was done, or why nothing was.
    """

    kind: str
    run: str | None
    done: bool
    sentence: str


def repair(
    store: Store,
    problems: Sequence[Problem],
    living: Sequence[RunMarker] | None,
    config: Mapping[str, str] | None,
    *,
    is_accounted: bool,
) -> list[Repair]:
    """Mends what can be mended.

    Args:
        store: The runs.
        problems: What was found.
        living: The user's jobs that wait or run; None where Slurm is not here or does not answer.
        config: The cluster's settings; None likewise.
        is_accounted: Whether accounting answers, so that Slurm's not knowing a job means that there is none.
    """
    # What is moved away is mended last: until then its other problems are found where they were said to be.
    order = sorted((one for one in problems if one.is_repairable), key=lambda one: one.kind in ("damaged", "half-made"))
    return [_Mender(store, living, config, is_accounted=is_accounted).mend(problem) for problem in order]


class _Mender:
    """Mends one problem after the other."""

    def __init__(
        self, store: Store, living: Sequence[RunMarker] | None, config: Mapping[str, str] | None, *, is_accounted: bool
    ) -> None:
        self._store = store
        self._living = living
        self._config = config
        self._is_accounted = is_accounted

    def mend(self, problem: Problem) -> Repair:
        """Mends it, or says why not."""
        try:
            done, sentence = self._mend_held(problem)
        except (OSError, HpcdistError) as error:
            words = error.message if isinstance(error, HpcdistError) else f"{error.filename}: {error.strerror}"
            done, sentence = False, f"not mended: {words}"
        return Repair(kind=problem.kind, run=problem.run, done=done, sentence=sentence)

    def _mend_held(self, problem: Problem) -> tuple[bool, str]:
        if problem.run is None:
            return self._mend_project(problem)
        run = self._store.run(problem.run)
        with run.locked(wait=False) as held:
            if not held:
                return False, f"run {run.name} is held by another process and was left alone"
            if problem.kind == "leftover":
                return _remove(problem.path)
            if problem.kind == "open":
                return _close(run)
            if problem.kind in ("damaged", "half-made"):
                return self._move_aside(run)
            return self._complete_record(run)

    def _mend_project(self, problem: Problem) -> tuple[bool, str]:
        if problem.kind == "leftover":
            return _remove(problem.path)
        highest = self._store.highest_local_number()
        self._store.last_local.raise_to(highest)
        return True, f"the next local job is local-{highest + 1}"

    def _complete_record(self, run: Run) -> tuple[bool, str]:
        """Brings a record to what is known; nothing where it is well by now."""
        problem = judge_record(run, run.record())
        if problem is None:
            return False, f"run {run.name} is well by now"
        if problem.kind == "dead":
            return _end(run)
        if problem.kind == "unstarted":
            return self._refuse(run, "the submission was cut off before the job started")
        return self._register(run)

    def _register(self, run: Run) -> tuple[bool, str]:
        """Finds the job of a run whose submission was cut off."""
        record = run.record()
        ranks = run.ranks()
        job_id = split_task(ranks[0].job_id)[0] if ranks else ""
        if not job_id and self._config is None:
            return False, f"run {run.name} may have a job: Slurm has to be asked, and does not answer"
        job_id = job_id or sbatch.find_by_run(run.name, record.workdir) or ""
        if job_id:
            cluster = (ranks[0].cluster if ranks else None) or slurm_cluster.find_cluster_name(self._config)
            run.write_record(msgspec.structs.replace(record, job_id=job_id, cluster=cluster))
            return True, f"run {run.name} is job {job_id}: found by its name and written down"
        if self._is_accounted and time.time() - record.created_at_s < SEARCHED_S:
            return self._refuse(run, "the submission was cut off before Slurm had the job")
        return False, f"Slurm knows no job of run {run.name} now; whether there was one can't be told any more"

    def _refuse(self, run: Run, why: str) -> tuple[bool, str]:
        run.write_record(msgspec.structs.replace(run.record(), refused=why))
        return True, f"run {run.name} is marked as never sent; hpcdist rerun {run.name} sends it anew"

    def _move_aside(self, run: Run) -> tuple[bool, str]:
        try:
            run.record()
        except NotFoundError:
            pass  # half-made
        except UsageError:
            return False, f"run {run.name} stays where it is: its record is of another hpcdist"
        except HpcdistError:
            if writer := find_writer(run, self._living):
                return False, f"run {run.name} stays where it is: {writer}"
        else:
            return False, f"run {run.name} is well by now"
        folder = self._store.runs / ASIDE
        folder.mkdir(mode=0o700, exist_ok=True)
        target = folder / f"{run.name}-{time.time_ns()}"
        run.path.rename(target)
        return True, f"run {run.name} was moved to {target}"


def _remove(path: Path) -> tuple[bool, str]:
    path.unlink(missing_ok=True)
    return True, f"removed {path}"


def _close(run: Run) -> tuple[bool, str]:
    if find_open(run) is None:
        return False, f"run {run.name} is well by now"
    run.path.chmod(0o700)
    return True, f"run {run.name} is private to you now (mode 700)"


def _end(run: Run) -> tuple[bool, str]:
    """Writes down that a local run is over; its last sign of life stands for its end."""
    record, state = run.record(), local.query(run)
    if state is None:
        state = LocalState(
            host=socket.gethostname(),
            boot_id="",
            pid=0,
            pid_started=0,
            state="FAILED",
            started_at_s=record.created_at_s,
        )
    ended_at_s = max([state.started_at_s, *_find_signs_of_life(run)])
    run.write("local.json", msgspec.structs.replace(state, state="FAILED", ended_at_s=ended_at_s))
    return True, f"run {run.name} ({record.job_id}) is marked FAILED"


def _find_signs_of_life(run: Run) -> list[float]:
    found = []
    for path in (*run.path.glob("ranks/*"), *run.logs.glob("*"), run.path / "progress.json"):
        try:
            found.append(path.stat().st_mtime)
        except OSError:
            continue
    return found
