"""The Python API: submit() and rerun()."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.config.job import Backend, Layout, check_keys, merge_options
from hpcdist.jobs.job import Job
from hpcdist.records.store import new_run_name
from hpcdist.submission.open_project import open_project
from hpcdist.submission.prepare import choose_backend, complete_job, prepare
from hpcdist.submission.rerun import prepare_rerun
from hpcdist.submission.send import send


def submit(
    layout: Layout | None = None,
    *,
    command: Sequence[str] = (),
    run: str | None = None,
    backend: Backend | None = None,
    template: Path | None = None,
    **options: Any,
) -> Job:
    """Submits a job.

    Args:
        layout: Its shape.
        command: Program and arguments to run in each task; empty trains the built-in MNIST CNN.
        run: Name of the run; submitting the same run again returns the job that exists.
        backend: "slurm" or "local"; None takes Slurm where it is there.
        template: A template file to use in place of the layout's own.
        **options: Any option of `hpcdist submit`, by its name with underscores.

    Raises:
        UsageError: An option can't be used.
        SubmitError: The scheduler refused.
    """
    check_keys(options, "submit()")
    project = open_project()
    shape = msgspec.structs.asdict(layout) if layout else {}
    job = complete_job(merge_options(shape, options, {"command": tuple(command) or None}), project)
    name = run or new_run_name(job)
    return Job(send(prepare(job, project, backend=choose_backend(backend), run=name, template=template)))


def rerun(job: Job, run: str | None = None, **changes: Any) -> Job:
    """Submits a run again: its options, site, template, interpreter and folder, under a new name.

    Args:
        job: The run to repeat.
        run: Name of the new run; None makes one up.
        **changes: Options to change, by their names with underscores; None puts one back to its default.

    Raises:
        UsageError: An option can't be used.
        SubmitError: The scheduler refused.
    """
    return Job(send(prepare_rerun(job.run.record(), job.run.root, changes, run).prepared))
