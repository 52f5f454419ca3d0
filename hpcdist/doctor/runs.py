"""Check the runs on disk against what the scheduler and this machine know of them, and repair them.

Nothing is changed here; `repair` does that.

Each run is held while it is changed and looked at again first: one that another process submits is left alone.
"""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from hpcdist.config.project import find_nearest
from hpcdist.doctor.check import Check
from hpcdist.errors import HpcdistError, NotFoundError, UsageError
from hpcdist.jobs import status as job_status
from hpcdist.launcher import local
from hpcdist.records.job import split_task
from hpcdist.records.store import LocalState, Run, RunRecord, Store
from hpcdist.slurm import cluster as slurm_cluster
from hpcdist.slurm import sbatch
from hpcdist.slurm.queue import RunMarker

ProblemKind = Literal[
    "damaged", "half-made", "unregistered", "unstarted", "dead", "leftover", "open", "lost-folder", "last-id"
]

# A submission that goes on elsewhere has its record a moment before its lock.
YOUNG_S = 10.0
LEFTOVER_AGE_S = 60.0
# A job submitted by hand makes its folders before its ranks write anything.
BEGINNING_S = 3600.0
# Slurm no longer knows the job: nothing can be writing.
FORGOTTEN_S = 86400.0
# What `write_atomically` and the preflight call their files before they are done with them.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}|\.preflight-[0-9a-f]{16}")


class Problem(msgspec.Struct, frozen=True):
    """Something about a run that is not as it should be.

    Attributes:
        kind: What it is.
        run: The run; None where it is about the project.
        path: The file or folder.
        sentence: What was found, for a person.
        hint: What to do where `--fix` can't.
        is_repairable: Whether `--fix` can.
    """

    kind: ProblemKind
    run: str | None
    path: Path
    sentence: str
    hint: str = "hpcdist doctor --fix"
    is_repairable: bool = True


def find_problems(store: Store, living: Sequence[RunMarker] | None) -> list[Problem]:
    """Find all that is wrong with runs; `living` jobs wait or run, None where Slurm is not here or does not answer."""
    found = [problem for run in store for problem in _examine(run, living)]
    found += find_leftovers(store)
    found += _find_lost_folders(store, living or ())
    highest, last = store.highest_local_number(), store.last_local.last()
    if highest > (last or 0):
        sentence = f"{store.runs / '.last-local-id'} says {last or 'nothing'}, and local-{highest} exists already"
        found.append(Problem("last-id", None, store.runs, sentence))
    return found


def _examine(run: Run, living: Sequence[RunMarker] | None) -> list[Problem]:
    """Find what is wrong with a run; nothing where it is removed while it is looked at."""
    try:
        return [problem for problem in (find_open(run), _judge(run, living)) if problem]
    except FileNotFoundError:
        return []


def _judge(run: Run, living: Sequence[RunMarker] | None) -> Problem | None:
    try:
        record = run.record()
    except NotFoundError:
        return _judge_without_record(run)
    except UsageError as error:
        sentence = f"the record of run {run.name} can't be used: {error.message}"
        hint = "it is sound, but of another hpcdist: use that one"
        return Problem("damaged", run.name, run.path, sentence, hint, is_repairable=False)
    except (HpcdistError, OSError) as error:
        words = error.message if isinstance(error, HpcdistError) else error
        sentence = f"the record of run {run.name} can't be read: {words}"
        writer = find_writer(run, living)
        if writer is None:
            return Problem("damaged", run.name, run.path, sentence)
        sentence += f"; it stays where it is: {writer}"
        return Problem("damaged", run.name, run.path, sentence, "hpcdist doctor --fix, later", is_repairable=False)
    return judge_record(run, record)


def find_open(run: Run) -> Problem | None:
    """The run, where others may look into it."""
    stat = run.path.stat()
    if not stat.st_mode & 0o077:
        return None
    sentence = f"run {run.name} can be entered by others (mode {stat.st_mode & 0o777:o}), expected 700"
    mine = stat.st_uid == os.getuid()
    hint = "hpcdist doctor --fix" if mine else "it is not yours: its owner can change it"
    return Problem("open", run.name, run.path, sentence, hint, is_repairable=mine)


def _judge_without_record(run: Run) -> Problem | None:
    """A folder without job.json: of a script that was submitted by hand, or of a submission that was cut off."""
    if run.ranks() or any(run.path.glob("logs/*")) or any(run.path.glob("[0-9]*/")):
        return None
    age_s = time.time() - run.path.stat().st_mtime
    if age_s < (LEFTOVER_AGE_S if run.script.exists() else BEGINNING_S):
        return None
    sentence = f"run {run.name} is half-made: it has no job.json, so it was never sent"
    return Problem("half-made", run.name, run.path, sentence)


def find_writer(run: Run, living: Sequence[RunMarker] | None) -> str | None:
    """What may still write into a run's folder, so that it must stay where it is; None where nothing does."""
    marked = next((mark.job_id for mark in living or () if mark.run == run.name), None)
    if marked:
        return f"its job {marked} waits or runs"
    state = run.local_state()
    if state is not None:
        return "its supervisor runs" if state.state == "RUNNING" and local.is_alive(state) else None
    return "Slurm, which may know its job, does not answer" if living is None else None


def judge_record(run: Run, record: RunRecord) -> Problem | None:
    """What is wrong with a run by its own record; to be asked again with the run held, before anything is changed."""
    age_s = time.time() - record.created_at_s
    if record.job_id is None and record.refused is None and age_s > YOUNG_S:
        if record.backend == "local":
            return Problem("unstarted", run.name, run.path, f"run {run.name} was cut off before it started")
        sentence = f"the submission of run {run.name} was cut off: its job's id was not written down"
        return Problem("unregistered", run.name, run.path, sentence)
    if record.backend != "local" or record.job_id is None:
        return None
    state = run.local_state()
    if state is None:
        if age_s < LEFTOVER_AGE_S:
            return None
        return Problem("dead", run.name, run.path, f"run {run.name} ({record.job_id}) never started")
    now = local.query(run)
    if state.state == "RUNNING" and now is not None and now.state == "FAILED":
        sentence = f"run {run.name} ({record.job_id}) is marked RUNNING, and its supervisor is gone"
        return Problem("dead", run.name, run.path, sentence)
    return None


def find_leftovers(store: Store) -> list[Problem]:
    """Temporary files that their writers, killed, left behind: over a minute old, and no process has them open."""
    old = [path for path in _list_temporaries(store) if _age_s(path) > LEFTOVER_AGE_S]
    if not old:
        return []
    held = _list_open_files()
    found = []
    for path in old:
        parts = path.relative_to(store.runs).parts
        run = Run(store.runs / parts[0]) if len(parts) > 1 else None
        if _identify(path) in held or (run is not None and _may_be_written(run, path)):
            continue
        sentence = f"{path} was left by a writer that was killed"
        found.append(Problem("leftover", run.name if run else None, path, sentence))
    return found


def _list_temporaries(store: Store) -> Iterator[Path]:
    # Unlike rglob it leaves out a folder that is removed meanwhile.
    for folder, _, names in os.walk(store.runs):
        for path in (Path(folder, name) for name in names if TEMPORARY.fullmatch(name)):
            if path.is_file() and not path.is_symlink():
                yield path


def _may_be_written(run: Run, path: Path) -> bool:
    """Whether a node may have the file open, which can't be seen from here."""
    status = job_status.furthest(job_status.query([(run, None)])[0])
    if status.state == "UNKNOWN":
        return _age_s(path) < FORGOTTEN_S
    return not status.is_over


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0  # gone: its writer lives


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _list_open_files() -> set[tuple[int, int]]:
    """Device and inode of every file that a process of this user's has open here (proc(5), /proc/PID/fd)."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            found |= {name for path in folder.iterdir() if (name := _identify(path))}
        except OSError:
            continue  # it ended, or is another user's
    return found


def _find_lost_folders(store: Store, living: Sequence[RunMarker]) -> list[Problem]:
    """Jobs of this project's whose folder was deleted under them."""
    found = []
    for mark in living:
        folder, workdir = store.runs / mark.run, Path(mark.workdir)
        # The folder it started in may be of a project within this one.
        if folder.is_dir() or (find_nearest(workdir) or workdir) != store.root:
            continue
        sentence = f"job {mark.job_id} (run {mark.run}) still waits or runs, and its folder was deleted"
        hint = f"scancel {mark.job_id}; its logs and checkpoints are lost"
        found.append(Problem("lost-folder", mark.run, folder, sentence, hint, is_repairable=False))
    return found


def judge_runs(count: int, problems: Sequence[Problem]) -> list[Check]:
    """One check a problem; one for all where there is none."""
    if not problems:
        said = f"{count} run(s), nothing half done" if count else "no runs yet"
        return [Check("runs", "ok", said)]
    return [
        Check("runs", "warning", problem.sentence, problem.hint, evidence=(problem.kind, str(problem.path)))
        for problem in problems
    ]


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
    """Mend what can be mended.

    `living` and the cluster's settings are None where Slurm is not here or does not answer. Where accounting answers,
    its not knowing a job means that there is none.
    """
    # What is moved away is mended last: until then its other problems are found where they were said to be.
    order = sorted((one for one in problems if one.is_repairable), key=lambda one: one.kind in ("damaged", "half-made"))
    mender = _Mender(store, living, config, is_accounted)
    return [mender.mend(problem) for problem in order]


class _Mender(NamedTuple):
    """Mends one problem after the other; its fields are what `repair` was given."""

    store: Store
    living: Sequence[RunMarker] | None
    config: Mapping[str, str] | None
    is_accounted: bool

    def mend(self, problem: Problem) -> Repair:
        """Mends it, or says why not."""
        try:
            done, sentence = self._mend_held(problem)
        except (OSError, HpcdistError) as error:
            words = error.message if isinstance(error, HpcdistError) else f"{error.filename}: {error.strerror}"
            done, sentence = False, f"not mended: {words}"
        return Repair(kind=problem.kind, run=problem.run, done=done, sentence=sentence)

    def _mend_held(self, problem: Problem) -> tuple[bool, str]:
        if problem.run is None and problem.kind == "last-id":
            highest = self.store.highest_local_number()
            self.store.last_local.raise_to(highest)
            return True, f"the next local job is local-{highest + 1}"
        if problem.run is None:
            return _remove(problem.path)
        run = self.store.run(problem.run)
        with run.locked(wait=False) as held:
            if not held:
                return False, f"run {run.name} is held by another process and was left alone"
            if problem.kind == "leftover":
                return _remove(problem.path)
            if problem.kind == "open":
                if find_open(run) is None:
                    return False, f"run {run.name} is well by now"
                run.path.chmod(0o700)
                return True, f"run {run.name} is private to you now (mode 700)"
            if problem.kind in ("damaged", "half-made"):
                return self._move_aside(run)
            return self._complete_record(run)

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
        if not job_id and self.config is None:
            return False, f"run {run.name} may have a job: Slurm has to be asked, and does not answer"
        job_id = job_id or sbatch.find_by_run(run.name, record.workdir) or ""
        if job_id:
            cluster = (ranks[0].cluster if ranks else None) or slurm_cluster.find_cluster_name(self.config)
            run.write_record(msgspec.structs.replace(record, job_id=job_id, cluster=cluster))
            return True, f"run {run.name} is job {job_id}: found by its name and written down"
        if self.is_accounted and time.time() - record.created_at_s < SEARCHED_S:
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
            if writer := find_writer(run, self.living):
                return False, f"run {run.name} stays where it is: {writer}"
        else:
            return False, f"run {run.name} is well by now"
        folder = self.store.runs / ASIDE
        folder.mkdir(mode=0o700, exist_ok=True)
        target = folder / f"{run.name}-{time.time_ns()}"
        run.path.rename(target)
        return True, f"run {run.name} was moved to {target}"


def _remove(path: Path) -> tuple[bool, str]:
    path.unlink(missing_ok=True)
    return True, f"removed {path}"


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
