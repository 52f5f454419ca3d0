"""Run a study: what of its file has not been sent is sent, never anything twice.

The plan, which trial is which run's task, is on disk before the first job is sent, and a run's name says what is in
it. So whatever ends this program, and wherever, the next one finds what exists and sends the rest.
"""

import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from hpcdist.config.job import Backend, JobSpec, build_job
from hpcdist.config.project import Project
from hpcdist.errors import HpcdistError, NotFoundError, SubmitError, UsageError
from hpcdist.jobs.job import Job
from hpcdist.launcher import local
from hpcdist.records.job import JobStatus, Progress
from hpcdist.records.store import Run, Store
from hpcdist.slurm import commands
from hpcdist.studies.batches import Batch, check_gpu_hours, jobs_to_wait_for, make_batches, most_gpu_hours
from hpcdist.studies.state import (
    StudyState,
    ask_to_stop,
    find_study,
    forget_stop,
    is_asked_to_stop,
    locked,
    same_folder,
    without_secrets,
    write_state,
)
from hpcdist.studies.study import Study, Trial
from hpcdist.studies.trials import find_runs, query_trials
from hpcdist.studies.variants import expand, list_trials, reconcile
from hpcdist.submission.prepare import PreparedJob, complete_job, prepare
from hpcdist.submission.send import find_sent, send

# A killed submission may still be on its way to Slurm, or its local job about to start.
UNSETTLED_S = 5.0
# Slurm's own default (slurm.conf(5), MaxArraySize): the numbers of an array's tasks are below it.
LARGEST_ARRAY = 1001


class StudyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What running a study now would do.

    Attributes:
        state: The study as it will be, every trial with its run.
        batches: The jobs to send.
        gpu_hours: GPU-hours of them at most, by their time limits; None where one has none.
    """

    state: StudyState
    batches: tuple[Batch, ...]
    gpu_hours: float | None


def plan_study(
    study: Study, project: Project, *, backend: Backend, source: Path | None = None, retry: bool = False
) -> StudyPlan:
    """Find out what of a study is missing; nothing is written or sent.

    Args:
        study, project, backend: The study, where it is to run, and what is to run it.
        source: The study's file.
        retry: Whether trials that did not end well are to be run again.

    Raises:
        UsageError: The study can't be run so, or may take more than its limit.
        HpcdistError: Slurm does not answer.
    """
    variants = expand(study, project.defaults)
    known = _known(study, project, backend, source)
    wanted = list_trials(study, variants)
    trials, former = reconcile(wanted, known.trials if known else (), known.former if known else ())
    now_s = time.time()
    state = StudyState(
        study=study,
        source=str(source.absolute()) if source else None,
        backend=backend,
        workdir=str(Path.cwd()),
        root=str(project.root),
        variants=tuple(without_secrets(variant, project.site.secrets) for variant in variants),
        trials=trials,
        former=former,
        created_at_s=known.created_at_s if known else now_s,
        updated_at_s=now_s,
    )
    state = _without_unsent(state)
    state = _without_failed(state) if retry else state
    missing = [trial for trial in state.trials if trial.run is None]
    hours = {variant.label: most_gpu_hours(build_job(variant.options)) for variant in variants}
    if missing:
        check_gpu_hours(study, hours, state.trials, _former_hours(state))
    batches = make_batches(study, variants, missing, state.former, largest_array=_largest_array(backend))
    planned = {(trial.variant, trial.repeat): trial for batch in batches for trial in batch.trials}
    trials = tuple(planned.get((trial.variant, trial.repeat), trial) for trial in state.trials)
    known_hours = [most for trial in missing if (most := hours[trial.variant]) is not None]
    gpu_hours = sum(known_hours) if len(known_hours) == len(missing) else None
    return StudyPlan(state=msgspec.structs.replace(state, trials=trials), batches=batches, gpu_hours=gpu_hours)


def _known(study: Study, project: Project, backend: Backend, source: Path | None) -> StudyState | None:
    """The study as it was run before.

    Raises:
        UsageError: It was another one, or run in another way: what is measured could not be compared.
    """
    known = find_study(study.name, project.root)
    if known is None:
        return None
    before = Path(known.source) if known.source else None
    if before and source and before.is_file() and not same_folder(str(before), str(source)):
        raise UsageError(f"{before} is a study called {study.name} too", "give one of them another name")
    if known.backend != backend:
        raise UsageError(
            f"{study.name} was begun with --backend {known.backend}, and this is {backend}",
            f"run it with --backend {known.backend}, or give it another name",
        )
    if not same_folder(known.workdir, str(Path.cwd())):
        raise UsageError(f"{study.name} was begun in {known.workdir}", f"cd {known.workdir} and run it there")
    return known


def _largest_array(backend: Backend) -> int:
    if backend == "local":
        return 1
    size = commands.read_config().get("MaxArraySize", "")
    return int(size) if size.isdecimal() else LARGEST_ARRAY


def _without_unsent(state: StudyState) -> StudyState:
    """The state without the runs of trials that were planned and never sent."""
    store = Store(Path(state.root))
    names = dict.fromkeys(trial.run for trial in state.trials if trial.run is not None)
    unsent = {name for name in names if not _was_sent(store.run(name))}
    trials = tuple(_unsent(trial) if trial.run in unsent else trial for trial in state.trials)
    return msgspec.structs.replace(state, trials=trials)


def _unsent(trial: Trial) -> Trial:
    return msgspec.structs.replace(trial, run=None, task=None)


def _was_sent(run: Run) -> bool:
    """Whether a run has, or had, a job; also when nobody wrote that down, and when Slurm refused it."""
    while True:
        try:
            record = run.record()
        except NotFoundError:
            return False
        if record.backend == "local":
            if record.refused is not None or (record.job_id is not None and run.local_state() is not None):
                return True
            patience_s = local.START_TIMEOUT_S if record.job_id is not None else 0.0
        else:
            if find_sent(run) is not None or record.refused is not None:
                return True
            patience_s = UNSETTLED_S
        if time.time() - record.created_at_s > patience_s:
            return False
        time.sleep(0.2)


def _without_failed(state: StudyState) -> StudyState:
    """The state with the trials that ended badly among the former ones, to be run again."""
    failed = {
        (trial.variant, trial.repeat)
        for trial, status in query_trials(state)
        if status.is_over and status.state != "COMPLETED"
    }
    again = [trial for trial in state.trials if (trial.variant, trial.repeat) in failed]
    trials = tuple(_unsent(trial) if trial in again else trial for trial in state.trials)
    return msgspec.structs.replace(state, trials=trials, former=(*state.former, *again))


def _former_hours(state: StudyState) -> float:
    runs = find_runs(state, state.former)
    jobs = [runs[trial.run].record().job for trial in state.former if trial.run in runs]
    return sum(most_gpu_hours(job) or 0 for job in jobs)


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
    """Send what of a study is missing; without Slurm it is run here, one trial after the other, to the end.

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
    trials = tuple(one for one in (*state.former, *state.trials) if one.run not in new)
    known = msgspec.structs.replace(state, trials=trials)
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
            job.wait(partial(watch.running, trial, number, len(state.trials)))


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
