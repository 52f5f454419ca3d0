"""The runs on disk against what the scheduler and this machine know of them: what was left half done, and by what.

Nothing is changed here; `repair` does that.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from hpcdist.check import Check
from hpcdist.config.project import find_nearest
from hpcdist.errors import HpcdistError, NotFoundError, UsageError
from hpcdist.jobs import status as job_status
from hpcdist.launcher import local
from hpcdist.records.store import Run, RunRecord, Store
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


class Problem(msgspec.Struct, frozen=True, kw_only=True):
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
    """All that is wrong with a project's runs.

    Args:
        store: The runs.
        living: The user's jobs that wait or run; None where Slurm is not here or does not answer.
    """
    found = [problem for run in store for problem in _examine_standing(run, living)]
    found += find_leftovers(store)
    found += _find_lost_folders(store, living or ())
    highest, last = store.highest_local_number(), store.last_local.last()
    if highest > (last or 0):
        sentence = f"{store.runs / '.last-local-id'} says {last or 'nothing'}, and local-{highest} exists already"
        found.append(Problem(kind="last-id", run=None, path=store.runs, sentence=sentence))
    return found


def _examine_standing(run: Run, living: Sequence[RunMarker] | None) -> list[Problem]:
    """What is wrong with a run; nothing where it is removed while it is looked at."""
    try:
        return list(_examine(run, living))
    except FileNotFoundError:
        return []


def _examine(run: Run, living: Sequence[RunMarker] | None) -> Iterator[Problem]:
    if problem := find_open(run):
        yield problem
    try:
        record = run.record()
    except NotFoundError:
        if problem := _judge_without_record(run):
            yield problem
        return
    except UsageError as error:
        sentence = f"the record of run {run.name} can't be used: {error.message}"
        hint = "it is sound, but of another hpcdist: use that one"
        yield Problem(kind="damaged", run=run.name, path=run.path, sentence=sentence, hint=hint, is_repairable=False)
        return
    except (HpcdistError, OSError) as error:
        yield _judge_damaged(run, living, error)
        return
    if problem := judge_record(run, record):
        yield problem


def find_open(run: Run) -> Problem | None:
    """The run, where others may look into it."""
    stat = run.path.stat()
    if not stat.st_mode & 0o077:
        return None
    sentence = f"run {run.name} can be entered by others (mode {stat.st_mode & 0o777:o}), expected 700"
    mine = stat.st_uid == os.getuid()
    hint = "hpcdist doctor --fix" if mine else "it is not yours: its owner can change it"
    return Problem(kind="open", run=run.name, path=run.path, sentence=sentence, hint=hint, is_repairable=mine)


def _judge_without_record(run: Run) -> Problem | None:
    """A folder without job.json: of a script that was submitted by hand, or of a submission that was cut off."""
    if run.ranks() or any(run.path.glob("logs/*")) or any(run.path.glob("[0-9]*/")):
        return None
    age_s = time.time() - run.path.stat().st_mtime
    if age_s < (LEFTOVER_AGE_S if run.script.exists() else BEGINNING_S):
        return None
    sentence = f"run {run.name} is half-made: it has no job.json, so it was never sent"
    return Problem(kind="half-made", run=run.name, path=run.path, sentence=sentence)


def _judge_damaged(run: Run, living: Sequence[RunMarker] | None, error: Exception) -> Problem:
    words = error.message if isinstance(error, HpcdistError) else str(error)
    sentence = f"the record of run {run.name} can't be read: {words}"
    writer = find_writer(run, living)
    if writer is None:
        return Problem(kind="damaged", run=run.name, path=run.path, sentence=sentence)
    return Problem(
        kind="damaged",
        run=run.name,
        path=run.path,
        sentence=f"{sentence}; it stays where it is: {writer}",
        hint="hpcdist doctor --fix, later",
        is_repairable=False,
    )


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
        return _judge_unsent(run, record)
    if record.backend != "local" or record.job_id is None:
        return None
    state = run.local_state()
    if state is None:
        if age_s < LEFTOVER_AGE_S:
            return None
        sentence = f"run {run.name} ({record.job_id}) never started"
        return Problem(kind="dead", run=run.name, path=run.path, sentence=sentence)
    now = local.query(run)
    if state.state == "RUNNING" and now is not None and now.state == "FAILED":
        sentence = f"run {run.name} ({record.job_id}) is marked RUNNING, and its supervisor is gone"
        return Problem(kind="dead", run=run.name, path=run.path, sentence=sentence)
    return None


def _judge_unsent(run: Run, record: RunRecord) -> Problem:
    if record.backend == "local":
        sentence = f"run {run.name} was cut off before it started"
        return Problem(kind="unstarted", run=run.name, path=run.path, sentence=sentence)
    sentence = f"the submission of run {run.name} was cut off: its job's id was not written down"
    return Problem(kind="unregistered", run=run.name, path=run.path, sentence=sentence)


def find_leftovers(store: Store) -> list[Problem]:
    """Temporary files that their writers, killed, left behind: over a minute old, and no process has them open."""
    old = [path for path in _list_temporaries(store) if _age_s(path) > LEFTOVER_AGE_S]
    if not old:
        return []
    held = _list_open_files()
    found = []
    for path in old:
        run = _run_of(store, path)
        if _identify(path) in held or (run is not None and _may_be_written(run, path)):
            continue
        sentence = f"{path} was left by a writer that was killed"
        found.append(Problem(kind="leftover", run=run.name if run else None, path=path, sentence=sentence))
    return found


def _list_temporaries(store: Store) -> Iterator[Path]:
    # Unlike rglob it leaves out a folder that is removed meanwhile.
    for folder, _, names in os.walk(store.runs):
        for path in (Path(folder, name) for name in names if TEMPORARY.fullmatch(name)):
            if path.is_file() and not path.is_symlink():
                yield path


def _run_of(store: Store, path: Path) -> Run | None:
    parts = path.relative_to(store.runs).parts
    return Run(store.runs / parts[0]) if len(parts) > 1 else None


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
        found.append(
            Problem(kind="lost-folder", run=mark.run, path=folder, sentence=sentence, hint=hint, is_repairable=False)
        )
    return found


def judge_runs(count: int, problems: Sequence[Problem]) -> list[Check]:
    """One check a problem; one for all where there is none."""
    if not problems:
        said = f"{count} run(s), nothing half done" if count else "no runs yet"
        return [Check(name="runs", status="ok", sentence=said)]
    return [
        Check(
            name="runs",
            status="warning",
            sentence=problem.sentence,
            hint=problem.hint,
            evidence=(problem.kind, str(problem.path)),
        )
        for problem in problems
    ]
