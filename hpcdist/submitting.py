"""submit() and its like: what the command line calls, and the Python API."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.backends import slurm
from hpcdist.here import open_project
from hpcdist.jobs import Job
from hpcdist.merging import merge_options
from hpcdist.prepare import Prepared, prepare
from hpcdist.rerun import prepare_rerun
from hpcdist.sending import send
from hpcdist.spec import Backend, Layout, build_job, check_keys
from hpcdist.store import new_run_name


def choose_backend(backend: Backend | None) -> Backend:
    """The backend asked for, else Slurm where it is there, else this machine."""
    return backend or ("slurm" if slurm.is_available() else "local")


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
    check_keys(options, "submit()", site=False)
    project = open_project()
    shape = msgspec.structs.asdict(layout) if layout else {}
    given = merge_options(shape, options, {"command": tuple(command) or None})
    backend = choose_backend(backend)
    if run is None:
        run = new_run_name(build_job(merge_options(project.defaults, given)))
    return submit_prepared(prepare(given, project, backend=backend, run=run, template=template))


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
    again = prepare_rerun(job.run.record(), job.run.path.parents[2], changes, run)
    return submit_prepared(again.prepared)


def submit_prepared(prepared: Prepared, *, after: Sequence[str] = ()) -> Job:
    """Sends what `prepare` made; a run that was sent before is returned, never sent twice.

    Args:
        prepared: What to send.
        after: Slurm jobs that must be over before it starts, however they end.

    Raises:
        SubmitError: The scheduler refused.
        UsageError: A run of that name exists with another script.
    """
    return Job(send(prepared, after))
