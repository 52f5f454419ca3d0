"""What running a study now would do: which of its trials are missing, and the jobs that would run them."""

import time
from pathlib import Path

import msgspec

from hpcdist.batches import Batch, check_gpu_hours, make_batches, most_gpu_hours
from hpcdist.config.job import Backend, build_job
from hpcdist.config.project import Project
from hpcdist.errors import NotFoundError, UsageError
from hpcdist.launcher import local
from hpcdist.records.store import Run, Store
from hpcdist.slurm import commands
from hpcdist.study import Study, Trial
from hpcdist.study_state import StudyState, find_study, same_folder, without_secrets
from hpcdist.submission.send import find_sent
from hpcdist.trials import find_runs, query_trials
from hpcdist.variants import expand, list_trials, reconcile

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
    """Finds out what of a study is missing; nothing is written or sent.

    Args:
        study: The study.
        project: The project to run in.
        backend: What is to run it.
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
    if retry:
        state = _without_failed(state)
    missing = [trial for trial in state.trials if trial.run is None]
    hours = {variant.label: most_gpu_hours(build_job(variant.options)) for variant in variants}
    if missing:
        check_gpu_hours(study, hours, state.trials, _former_hours(state))
    batches = make_batches(study, variants, missing, state.former, largest_array=_largest_array(backend))
    planned = {(trial.variant, trial.repeat): trial for batch in batches for trial in batch.trials}
    trials = tuple(planned.get((trial.variant, trial.repeat), trial) for trial in state.trials)
    told = [hours[trial.variant] for trial in missing]
    known_hours = [one for one in told if one is not None]
    return StudyPlan(
        state=msgspec.structs.replace(state, trials=trials),
        batches=batches,
        gpu_hours=sum(known_hours) if len(known_hours) == len(told) else None,
    )


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
