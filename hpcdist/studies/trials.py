"""A study's trials: where they are and what happened to them, Slurm being asked a few times for all of them."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from hpcdist.errors import HpcdistError
from hpcdist.jobs import status as job_status
from hpcdist.jobs.job import Job, read_known
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import JobRecord, JobStatus
from hpcdist.records.store import Run, RunRecord, Store
from hpcdist.slurm import queue
from hpcdist.studies.state import StudyState
from hpcdist.studies.study import NOT_SUBMITTED, Trial


class KnownRun(Run):
    """A run whose `job.json` was read: an array's is as long as it has tasks, and each of them would read it again."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        super().__init__(path)
        self._record = record

    def record(self) -> RunRecord:
        """The run's `job.json`, as it was."""
        return self._record

    @property
    def job_id(self) -> str | None:
        """The job's id, without an array task."""
        return self._record.job_id

    @property
    def is_local(self) -> bool:
        """Whether the run was sent to this machine."""
        return self._record.backend == "local"


def find_runs(state: StudyState, trials: Sequence[Trial] | None = None) -> dict[str, KnownRun]:
    """Find the runs of a study's trials (None: of all that its file has now) by name; those never made are missing."""
    store = Store(Path(state.root))
    found = {}
    chosen = state.trials if trials is None else trials
    for name in dict.fromkeys(trial.run for trial in chosen if trial.run is not None):
        run = store.run(name)
        with suppress(HpcdistError):
            found[name] = KnownRun(run.path, run.record())
    return found


def query_trials(
    state: StudyState, runs: dict[str, KnownRun] | None = None, *, settled: bool = False
) -> list[tuple[Trial, JobStatus]]:
    """Say where each trial is; one that no job was made for is `NOT SUBMITTED`, or `REFUSED` with Slurm's words.

    `settled` waits until accounting knows of all that are over.
    """
    runs = find_runs(state) if runs is None else runs
    of_trials = [runs.get(trial.run or "") for trial in state.trials]
    sent = [(run, trial.task) for trial, run in zip(state.trials, of_trials, strict=True) if run and run.job_id]
    answers = iter(job_status.query(sent, settled=settled))
    found = []
    for trial, run in zip(state.trials, of_trials, strict=True):
        if run and run.job_id:
            (status,) = next(answers)
        else:
            refused = run.record().refused if run else None
            status = JobStatus(job_id=None, state="REFUSED" if refused else NOT_SUBMITTED, reason=refused)
        layout = run.record().job.layout.name if run else None
        status = msgspec.structs.replace(status, run=trial.run, name=state.study.name, layout=layout)
        found.append((trial, status))
    return found


def read_records(state: StudyState) -> list[tuple[Trial, JobRecord | None]]:
    """What happened to each trial; None of one that was never sent. Nothing is written."""
    runs = find_runs(state)
    found = query_trials(state, runs, settled=True)
    figures = _read_figures(state, runs)
    over = [status for _, status in found if status.is_over and status.state != "COMPLETED"]
    failed = [one.job_id for one in over if one.job_id and not one.job_id.startswith("local-")]
    endings = queue.query_endings(failed) if failed else {}
    records: list[tuple[Trial, JobRecord | None]] = []
    for (trial, status), used in zip(found, figures, strict=True):
        run = runs.get(trial.run or "")
        if run is None or status.state == NOT_SUBMITTED:
            records.append((trial, None))
            continue
        told = None if run.is_local else endings.get(status.job_id or "", [])
        records.append((trial, Job(run, trial.task).join(used, status, told)))
    return records


def _read_figures(state: StudyState, runs: dict[str, KnownRun]) -> list[Efficiency | None]:
    """What each trial used, in their order; None of one without figures."""
    of_trials = [(runs.get(trial.run or ""), trial.task) for trial in state.trials]
    jobs = [Job(run, task) if run and run.job_id else None for run, task in of_trials]
    # Accounting may be off: what there is by now is all.
    known = iter(read_known([job for job in jobs if job])[0])
    figures = [next(known) if job else [] for job in jobs]
    return [next((one for one in reversed(own) if one.state != "PENDING"), None) for own in figures]


def iter_figures_of_trials(state: StudyState) -> Iterator[Efficiency | None]:
    """What each trial used, in their order and named after their variants; None of one without figures."""
    runs = find_runs(state)
    query_trials(state, runs, settled=True)
    for trial, found in zip(state.trials, _read_figures(state, runs), strict=True):
        yield msgspec.structs.replace(found, name=trial.variant) if found else None
