"""How a study's trials become jobs: those that ask Slurm for the same go as one array."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.config.job import JobSpec, Layout, build_job
from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.studies.study import Study, Trial, Variant
from hpcdist.studies.variants import choose
from hpcdist.submission.render import flag_words
from hpcdist.units import parse_slurm_time


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One job, or one array of them.

    Attributes:
        run: Its run's name; the same content always gets the same one.
        trials: What its tasks are, in the order of their numbers.
        options: Options of the job, without the site's defaults.
        layout: Its layout's name.
        width: How many of its tasks may run at once.
    """

    run: str
    trials: tuple[Trial, ...]
    options: dict[str, Any]
    layout: str
    width: int


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one variant runs.

    Attributes:
        own: Its options, without the site's defaults.
        job: It as a job, with them.
        args: The swept words at the end of its command.
        request: What it asks of Slurm; equal for variants that can be tasks of one array.
    """

    own: dict[str, Any]
    job: JobSpec
    args: tuple[str, ...]
    request: bytes

    @property
    def command(self) -> tuple[str, ...]:
        """The command without the swept words."""
        return self.job.command[: len(self.job.command) - len(self.args)]

    def training(self, repeat: int) -> Training:
        """The built-in training's options of one repeat: each has another seed."""
        return msgspec.structs.replace(self.job.training, seed=self.job.training.seed + repeat - 1)


def make_batches(
    study: Study,
    variants: Sequence[Variant],
    missing: Sequence[Trial],
    former: Sequence[Trial] = (),
    *,
    largest_array: int,
) -> tuple[Batch, ...]:
    """Make the jobs that run the missing trials of a study.

    Args:
        study, variants, missing: The study, all its variants, and the trials to run.
        former: Earlier attempts, which give a further one another run's name.
        largest_array: Tasks that an array may have; 1 makes no arrays.
    """
    choices = zip(variants, choose(study), strict=True)
    plans = {variant.label: _plan(variant, choice.options) for variant, choice in choices}
    attempts = Counter((trial.variant, trial.repeat, trial.digest) for trial in former)
    groups: dict[tuple[bytes, int], list[Trial]] = {}
    for trial in missing:
        attempt = attempts[trial.variant, trial.repeat, trial.digest]
        groups.setdefault((plans[trial.variant].request, attempt), []).append(trial)
    size = max(1, largest_array)
    return tuple(
        _batch(study, plans, trials[start : start + size], attempt)
        for (_, attempt), trials in groups.items()
        for start in range(0, len(trials), size)
    )


def _plan(variant: Variant, own: dict[str, Any]) -> _Plan:
    job = build_job(variant.options)
    args = tuple(variant.settings.get("args", ()))
    plan = _Plan(own=own, job=job, args=args, request=b"")
    asked = msgspec.structs.replace(job, training=Training(), env={}, command=plan.command)
    return msgspec.structs.replace(plan, request=msgspec.json.encode(asked, order="sorted"))


def _batch(study: Study, plans: Mapping[str, _Plan], trials: Sequence[Trial], attempt: int) -> Batch:
    first = plans[trials[0].variant]
    most = study.limits.max_concurrent or len(trials)
    if len(trials) == 1:
        options = {**first.own, "seed": first.training(trials[0].repeat).seed}
    else:
        limit = f"%{most}" if most < len(trials) else ""
        options = {**_common(plans, trials), "array": f"0-{len(trials) - 1}{limit}"}
    content = [options, [(trial.variant, trial.repeat, trial.digest) for trial in trials], attempt]
    digest = hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:8]
    run = f"{study.name}-{first.job.layout.name}-{digest}" + (f"-retry{attempt}" if attempt else "")
    tasks = [str(number) if len(trials) > 1 else None for number in range(len(trials))]
    pairs = zip(trials, tasks, strict=True)
    return Batch(
        run=run,
        trials=tuple(msgspec.structs.replace(trial, run=run, task=task) for trial, task in pairs),
        options=options,
        layout=first.job.layout.name,
        width=min(most, len(trials)),
    )


def _common(plans: Mapping[str, _Plan], trials: Sequence[Trial]) -> dict[str, Any]:
    """The options that an array's tasks share, and what each has of its own as `tasks` and `task_env`."""
    own = [plans[trial.variant] for trial in trials]
    common = dict(own[0].own)
    if own[0].command:
        common["command"] = list(own[0].command)
        tasks = [list(plan.args) for plan in own]
    else:
        trainings = [plan.training(trial.repeat) for plan, trial in zip(own, trials, strict=True)]
        names = [name for name in Training.__struct_fields__ if len({getattr(one, name) for one in trainings}) > 1]
        for name in names:
            if any(getattr(one, name) is None for one in trainings):
                common.pop(name, None)  # no option unsets what the common line says
        tasks = [_flags(one, names) for one in trainings]
    if any(tasks):
        common["tasks"] = tasks
    envs = [plan.job.env for plan in own]
    changing = sorted({name for env in envs for name in env if any(other.get(name) != env[name] for other in envs)})
    if changing:
        common["env"] = {name: value for name, value in common.get("env", {}).items() if name not in changing}
        common["task_env"] = [{name: env[name] for name in changing if name in env} for env in envs]
    return common


def _flags(training: Training, names: Sequence[str]) -> list[str]:
    values = {name: getattr(training, name) for name in names}
    return [word for name, value in values.items() if value is not None for word in flag_words(name, value)]


def jobs_to_wait_for(living: Sequence[tuple[str, int]], width: int, most: int) -> tuple[str, ...]:
    """Return the jobs that must be over before one of this width may begin, so that at most so many run at once.

    Of the living jobs, ids and widths in the order of submission, those next to the new one may run together with it
    as long as their widths fit; any further back must be over.
    """
    room = most - width
    for place in range(len(living) - 1, -1, -1):
        room -= living[place][1]
        if room < 0:
            return tuple(job_id for job_id, _ in living[: place + 1])
    return ()


def count_gpus(layout: Layout) -> int:
    """What a layout is charged by: its GPUs, of a CPU layout its ranks."""
    return layout.nodes * layout.gpus or layout.world_size


def most_gpu_hours(job: JobSpec) -> float | None:
    """GPU-hours that one job, or one task of an array, takes at most; None without a time limit.

    A run that begins again at its time limit may take it that often.
    """
    limit_s = parse_slurm_time(job.layout.time) if job.layout.time else None
    if limit_s is None:
        return None
    starts = 1 + (job.max_requeues if job.goes_on else 0)
    return count_gpus(job.layout) * limit_s * starts / 3600


def check_gpu_hours(
    study: Study, hours: Mapping[str, float | None], trials: Sequence[Trial], former_hours: float
) -> None:
    """Compare what a study may take at most with its limit.

    `hours` are what a trial of each variant takes at most, by label; `trials` are all, sent or not; `former_hours` are
    what its former trials may have taken at most.

    Raises:
        UsageError: It is too much, or can't be known.
    """
    limit = study.limits.max_gpu_hours
    if limit is None:
        return
    unlimited = [label for label, most in hours.items() if most is None]
    if unlimited:
        raise UsageError(
            f"max-gpu-hours: {unlimited[0]} has no time limit, so it may take any time", 'add time = "30" to [options]'
        )
    most = sum(hours[trial.variant] or 0 for trial in trials) + former_hours
    if most > limit * (1 + 1e-9):  # sums of tenths are not exact
        earlier = f", {former_hours:.2f} of them in former trials" if former_hours else ""
        raise UsageError(
            f"{study.name} may take {most:.2f} GPU-hours by its time limits{earlier}; max-gpu-hours is {limit:g}",
            "shorten time, leave out layouts or repeats, or raise the limit; nothing was sent",
        )
