"""Studies run: what of a study's file has not been sent is sent, never anything twice.

The plan, which trial is which run's task, is on disk before the first job is sent, and a run's name says what is in
it. So whatever ends this program, and wherever, the next one finds what exists and sends the rest.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpcdist.batches import Batch, jobs_to_wait_for
from hpcdist.config.job import Backend, JobSpec
from hpcdist.config.project import Project
from hpcdist.errors import HpcdistError, SubmitError
from hpcdist.jobs.job import Job
from hpcdist.records.job import JobStatus, Progress
from hpcdist.records.store import Run, Store
from hpcdist.study import Study, Trial
from hpcdist.study_plan import StudyPlan, plan_study
from hpcdist.study_state import StudyState, ask_to_stop, forget_stop, is_asked_to_stop, locked, write_state
from hpcdist.submission.prepare import PreparedJob, complete_job, prepare
from hpcdist.submission.send import send
from hpcdist.trials import find_runs, query_trials


class Watch:
    """What is told while a study runs; nothing here."""

    def prepared(self, prepared: Sequence[PreparedJob]) -> None:
        """All jobs to be sent, before the first one is."""

    def sent(self, batch: Batch, done: int, total: int, refusal: str | None) -> None:
        """A job was sent, or refused, so many of how many."""

    def running(self, trial: Trial, done: int, total: int, status: JobStatus, progress: Progress | None) -> None:
        """A trial runs here, after so many of how many."""


def run_study(
    study: Study,
    project: Project,
    *,
    backend: Backend,
    source: Path | None = None,
    retry: bool = False,
    watch: Watch | None = None,
) -> StudyState:
    """Sends what of a study is missing; without Slurm it is run here, one trial after the other, to the end.

    Args:
        study: The study.
        project: The project to run in.
        backend: What is to run it.
        source: The study's file.
        retry: Whether trials that did not end well are to be run again.
        watch: What is told meanwhile.

    Raises:
        UsageError: The study can't be run so, or may take more than its limit; nothing was sent.
        NotReadyError: Another process is running it.
        HpcdistError: Slurm does not answer.
    """
    watch = watch or Watch()
    with locked(study.name, project.root):
        plan = plan_study(study, project, backend=backend, source=source, retry=retry)
        prepared = prepare_batches(plan, project)
        watch.prepared(prepared)
        forget_stop(plan.state)
        write_state(plan.state)
        pairs = list(zip(plan.batches, prepared, strict=True))
        if backend == "local":
            _run_here(plan.state, pairs, watch)
        else:
            _send_all(plan.state, pairs, watch)
    return plan.state


def prepare_batches(plan: StudyPlan, project: Project) -> list[PreparedJob]:
    """The jobs of a plan, rendered.

    Raises:
        UsageError: An option or template can't be used.
    """
    prepared = [
        prepare(complete_job(batch.options, project), project, backend=plan.state.backend, run=batch.run)
        for batch in plan.batches
    ]
    return [msgspec.structs.replace(one, study=plan.state.study.name) for one in prepared]


def _send_all(state: StudyState, pairs: Sequence[tuple[Batch, PreparedJob]], watch: Watch) -> None:
    """Sends jobs to Slurm; one that it refuses does not keep the others from being sent."""
    most = state.study.limits.max_concurrent
    living = _living(state, {batch.run for batch, _ in pairs}) if most is not None and pairs else []
    for number, (batch, prepared) in enumerate(pairs, 1):
        if is_asked_to_stop(state):
            return
        refusal = None
        _forget(Store(Path(state.root)).run(batch.run))
        try:
            after = jobs_to_wait_for(living, batch.width, most) if most is not None else ()
            living.append((send(prepared, after).job_id or "", batch.width))
        except SubmitError as error:
            refusal = error.message
        watch.sent(batch, number, len(pairs), refusal)


def _living(state: StudyState, new: set[str]) -> list[tuple[str, int]]:
    """The jobs of a study that are not over, oldest first, and how many of their tasks may run at once."""
    everything = msgspec.structs.replace(state, trials=(*state.former, *state.trials))
    known = msgspec.structs.replace(everything, trials=tuple(one for one in everything.trials if one.run not in new))
    runs = find_runs(known)
    alive = {trial.run for trial, status in query_trials(known, runs) if status.job_id and not status.is_over}
    found = sorted((run for run in runs.values() if run.name in alive), key=lambda run: run.record().created_at_s)
    return [(run.job_id or "", _width(run.record().job)) for run in found]


def _width(job: JobSpec) -> int:
    tasks, _, most = (job.array or "0").partition("%")
    first, _, last = re.sub(r"[^0-9-].*", "", tasks).partition("-")
    count = int(last or first) - int(first) + 1
    return min(count, int(most)) if most else count


def _forget(run: Run) -> None:
    """Removes what an unfinished submission wrote of a run that has no job: it may have been another script."""
    for name in ("job.json", "script.sbatch"):
        (run.path / name).unlink(missing_ok=True)


def _run_here(state: StudyState, pairs: Sequence[tuple[Batch, PreparedJob]], watch: Watch) -> None:
    """Runs trials one after the other, each to its end; first waits for one that was left running."""
    store = Store(Path(state.root))
    unsent = {batch.run: (batch, prepared) for batch, prepared in pairs}
    for number, trial in enumerate(state.trials):
        if is_asked_to_stop(state):
            return
        run = store.run(trial.run or "")
        if run.name in unsent:
            batch, prepared = unsent[run.name]
            refusal = None
            _forget(run)
            try:
                send(prepared)
            except SubmitError as error:
                refusal = error.message
                run.write_record(msgspec.structs.replace(run.record(), refused=refusal, job_id=None))
                watch.sent(batch, number + 1, len(state.trials), refusal)
                continue
        job = Job(run)
        if not job.status().is_over and job.id is not None:
            _follow(job, trial, number, len(state.trials), watch)


def _follow(job: Job, trial: Trial, done: int, total: int, watch: Watch) -> None:
    job.wait(lambda status, progress: watch.running(trial, done, total, status, progress))


def cancel_study(state: StudyState) -> list[str]:
    """Ends the jobs of a study that are not over, and has a process that is running it stop; returns their ids.

    Raises:
        HpcdistError: Slurm refused, or does not answer.
    """
    ask_to_stop(state)
    runs = find_runs(state)
    alive = [trial.run for trial, status in query_trials(state, runs) if status.job_id and not status.is_over]
    ended = []
    for name in dict.fromkeys(alive):
        if name in runs:
            job = Job(runs[name])
            try:
                job.cancel()
            except HpcdistError as error:
                if "Invalid job id" not in error.message:  # it ended meanwhile
                    raise
            ended.append(job.id or name)
    return ended
