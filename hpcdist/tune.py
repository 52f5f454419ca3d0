"""The batch size and worker count of a layout, found by short trainings: a study that grows as it goes."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from hpcdist.attempts import build_attempt
from hpcdist.config.job import LAYOUT_KEYS, Backend, JobSpec, build_job, merge_options
from hpcdist.config.project import Project
from hpcdist.datasets import is_folder
from hpcdist.errors import UsageError
from hpcdist.jobs.status import pause_s
from hpcdist.studies import Watch, cancel_study, run_study
from hpcdist.study import Limits, Study
from hpcdist.study_state import StudyState, find_study
from hpcdist.trials import find_runs, query_trials, read_records
from hpcdist.tuning import (
    NOT_PROMISED,
    Attempt,
    Search,
    choose_batch,
    choose_workers,
    explain,
    next_batches,
    next_workers,
)

POLL_INTERVAL_S = 2.0
# Together in the queue, since each wait there may be long.
AT_ONCE_ON_SLURM = 4
# Start-up on a slow disk, and the trial; a short limit starts sooner.
TIME_LIMIT = "15"
# What would make a trial something else than a few seconds of training.
_NOT_FOR_TRIALS = frozenset(
    {
        *("name", "batch_size", "batch_size_per_rank", "workers", "max_steps", "target_accuracy", "array"),
        *("dependency", "resume_from", "logger", "tasks", "task_env", "time", "stage_data", "mail_type", "comment"),
    }
)


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        layout: Name of the layout.
        ranks: Its ranks.
        studies: The studies that the trials are, for `hpcdist report`.
        attempts: What was tried, in that order.
        chosen: The one to take; None where none ran with memory to spare.
        options: What to set: `batch_size` and, where they matter, `workers`.
        sentences: Why.
        not_promised: What this says nothing of.
    """

    layout: str
    ranks: int
    studies: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    chosen: Attempt | None
    options: dict[str, int]
    sentences: tuple[str, ...]
    not_promised: str = NOT_PROMISED


def tune(
    options: Mapping[str, Any],
    project: Project,
    *,
    backend: Backend,
    seconds: float,
    target_utilization: float | None = None,
    most: int | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Finds them.

    Args:
        options: The job's options; its batch size is where the search begins.
        project: The project to run in.
        backend: What runs the trials.
        seconds: How long each is measured.
        target_utilization: How busy the processors are to be, a fraction; None looks for the best throughput.
        most: Largest batch size to try.
        watch: What is told meanwhile.

    Raises:
        UsageError: The job is not of the built-in networks, or an option can't be used.
    """
    job = build_job(merge_options(project.defaults, options))
    _check(job)
    search = msgspec.structs.replace(
        begin_search(job, most),
        at_once=AT_ONCE_ON_SLURM if backend == "slurm" else 1,
        target_utilization=target_utilization,
    )
    has_workers = is_folder(job.training.data or "mnist")
    bench = _Bench(job, options, project, backend=backend, seconds=seconds, watch=watch or Watch())
    attempts: list[Attempt] = []
    while sizes := next_batches(search, attempts):
        attempts = bench.measure("batch", {}, "batch_size", [*(one.batch_size for one in attempts), *sizes])
    chosen = choose_batch(search, attempts)
    tried = list(attempts)
    if chosen is not None:
        counts = next_workers(chosen, attempts, job.layout.cpus_per_task, has_workers=has_workers)
        if counts:
            more = bench.measure("workers", {"batch_size": chosen.batch_size}, "workers", list(counts))
            tried += more
            chosen = choose_workers(chosen, more)
    found = {} if chosen is None else {"batch_size": chosen.batch_size, "workers": chosen.workers}
    return Tuned(
        layout=job.layout.name,
        ranks=job.layout.world_size,
        studies=tuple(bench.names),
        attempts=tuple(tried),
        chosen=chosen,
        options={name: value for name, value in found.items() if value is not None},
        sentences=tuple(explain(search, tried, chosen, has_workers=has_workers)),
    )


def begin_search(job: JobSpec, most: int | None) -> Search:
    """Where the search begins and ends: at the job's batch size, at `most` where that is smaller.

    Raises:
        UsageError: `most` leaves a rank without a sample.
    """
    ranks = job.layout.world_size
    if most is not None and most < ranks:
        raise UsageError(f"most is {most}, and {ranks} ranks train at least one image each", f"use --most {ranks}")
    # What is given per rank is written down per rank.
    multiple = ranks if job.training.batch_size_per_rank is not None else 1
    batch = job.training.global_batch_size(ranks)
    start = batch if most is None else min(batch, most // multiple * multiple)
    return Search(start=start, least=ranks, most=most, multiple=multiple)


def _check(job: JobSpec) -> None:
    if job.command:
        raise UsageError("tune tries the built-in training alone, and this has a COMMAND", "sweep it in a study")
    if job.training.module:
        raise UsageError("tune sets the batch size, and a module's data has its own", "sweep it in a study")
    if job.training.ps_mode == "async":
        raise UsageError("tune measures ranks that keep step, and ps_mode is async", "tune it with --ps-mode sync")


class _Bench:
    """Runs short trainings of one job in studies of its own.

    Args:
        job: The job.
        options: Its options as they were given, without the project's defaults.
        project: The project to run in.
        backend: What runs them.
        seconds: How long each is measured.
        watch: What is told meanwhile.

    Attributes:
        names: The studies so far.
    """

    def __init__(
        self,
        job: JobSpec,
        options: Mapping[str, Any],
        project: Project,
        *,
        backend: Backend,
        seconds: float,
        watch: Watch,
    ) -> None:
        self._job, self._project, self._backend, self._watch = job, project, backend, watch
        given = {key: value for key, value in options.items() if key not in _NOT_FOR_TRIALS and value is not None}
        self._layout = {key: value for key, value in given.items() if key in LAYOUT_KEYS}
        self._options = {key: value for key, value in given.items() if key not in LAYOUT_KEYS}
        # More epochs than fit into the time; the trial ends by the clock.
        self._options |= {"epochs": 10_000, "speed_trial": f"{seconds:g}s", "time": TIME_LIMIT}
        self._name = f"tune-{job.slug[:24]}-{job.layout.name}-{secrets.token_hex(2)}"
        self.names: list[str] = []

    def measure(self, stage: str, fixed: Mapping[str, int], swept: str, values: list[int]) -> list[Attempt]:
        """Runs what of a stage has not run yet; returns all of its attempts."""
        study = Study(
            name=f"{self._name}-{stage}",
            options={**self._options, **fixed},
            layouts=(self._layout,),
            grid={swept: tuple(values)},
            limits=Limits(max_concurrent=1),
        )
        self.names += [] if study.name in self.names else [study.name]
        try:
            state = run_study(study, self._project, backend=self._backend, watch=self._watch)
            if self._backend == "slurm":
                self._wait(state)
        except KeyboardInterrupt:
            # Nobody wants the rest of a measurement.
            if begun := find_study(study.name, self._project.root):
                cancel_study(begun)
            raise
        return self._read(state, values, {"batch_size": fixed.get("batch_size", 0), "workers": None}, swept)

    def _wait(self, state: StudyState) -> None:
        """Until all jobs are over; the trial that is furthest is told about."""
        began = time.monotonic()
        while True:
            statuses = query_trials(state)
            living = [(trial, status) for trial, status in statuses if status.job_id and not status.is_over]
            if not living:
                break
            trial, status = next((pair for pair in living if pair[1].state != "PENDING"), living[0])
            self._watch.running(trial, len(statuses) - len(living), len(statuses), status, None)
            time.sleep(pause_s(time.monotonic() - began, POLL_INTERVAL_S))
        for name, run in find_runs(state).items():
            for trial in state.trials:
                if trial.run == name:
                    run.task(trial.task).wait_for_ranks(self._job.layout.world_size)

    def _read(self, state: StudyState, values: list[int], common: dict[str, Any], swept: str) -> list[Attempt]:
        runs = find_runs(state)
        found = []
        for value, (trial, record) in zip(values, read_records(state), strict=True):
            run = runs.get(trial.run or "")
            # As it ran: without Slurm a rank may have got fewer CPUs than were asked for.
            layout = run.record().job.layout if run else self._job.layout
            curves = run.task(trial.task).curves() if run else []
            setting = {**common, swept: value}
            found.append(build_attempt(layout, record, curves, run=trial.run, **setting))
        return found
