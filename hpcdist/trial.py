"""A short job on two nodes that trains nothing: the built-in training's preflight, alone, and what it measured."""

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import chain

import msgspec

from hpcdist.cluster_checks import PLACE_WORDS
from hpcdist.config.job import Backend
from hpcdist.config.project import Project
from hpcdist.errors import HpcdistError
from hpcdist.jobs.job import Job
from hpcdist.records.job import JobStatus, Progress
from hpcdist.records.network import write_probe
from hpcdist.records.store import new_run_name
from hpcdist.site_checks import choose_partition
from hpcdist.slurm.cluster import Partition
from hpcdist.submission.prepare import PreparedJob, complete_job, prepare
from hpcdist.submission.render import task_command
from hpcdist.submission.send import read_versions, send
from hpcdist.trial_checks import Trial, find_probe

# It takes some ten seconds; the rest is for imports from a slow disk, and for the preflight to name who is missing.
TIME_LIMIT = "3"
WAIT_S = 600.0

Tell = Callable[[JobStatus, Progress | None], None]


def probe_between_nodes(
    project: Project,
    *,
    backend: Backend,
    nodes: int = 2,
    gpus: int = 1,
    on_change: Tell | None = None,
    timeout_s: float = WAIT_S,
) -> Trial:
    """Submits the job, waits for it, and keeps what it measured where `probes.read_probes` finds it.

    A job that does not end in time is cancelled.

    Args:
        project: The project to run in; its defaults say where.
        backend: What runs it.
        nodes: Nodes.
        gpus: GPUs per node.
        on_change: Called about once a second with where it is.
        timeout_s: For how long it may wait and run.

    Raises:
        SubmitError: The scheduler refused it.
    """
    prepared = prepare_trial(project, backend=backend, nodes=nodes, gpus=gpus)
    job = Job(send(prepared))
    try:
        status = job.wait(on_change, timeout_s)
    except BaseException:
        with contextlib.suppress(HpcdistError):
            job.cancel()
        raise
    if not status.is_over:
        job.cancel()
    trial = _sum_up(job, status, prepared)
    probe = find_probe(trial)
    if probe is not None:
        # The measurement is told all the same where it can't be kept.
        with contextlib.suppress(OSError):
            write_probe(project.root, probe)
    return trial


def prepare_trial(project: Project, *, backend: Backend, nodes: int, gpus: int) -> PreparedJob:
    """The job: the preflight in the layout, with what the project's defaults say of place and surroundings.

    Raises:
        UsageError: A default can't be used.
    """
    options = {key: project.defaults[key] for key in PLACE_WORDS if key in project.defaults}
    options |= {"name": "doctor", "nodes": nodes, "gpus": gpus, "time": TIME_LIMIT}
    bare = Project(root=project.root, site=project.site)
    job = complete_job(options, bare)
    first = prepare(job, bare, backend=backend, run=new_run_name(job), workdir=project.root)
    training = msgspec.structs.replace(first.spec.training, data_dir=None)  # no data is read
    words = chain.from_iterable(task_command(msgspec.structs.replace(first.spec, training=training), first.place))
    job = msgspec.structs.replace(job, command=(*words, "--preflight-only"))
    return prepare(job, bare, backend=backend, run=first.place.run, workdir=project.root)


def choose_shape(partition: str | None, partitions: Sequence[Partition], wanted_gpus: object) -> tuple[int, int]:
    """Nodes and GPUs per node of a trial: two of the partition's nodes, a GPU on each where it has any.

    Args:
        partition: The partition that jobs go to; None is the default one.
        partitions: The cluster's.
        wanted_gpus: The project's default of GPUs per node, if it has one.
    """
    chosen = choose_partition(partition, partitions)
    if chosen is None:
        return 2, 0 if wanted_gpus == 0 else 1
    gpus = 1 if chosen.has_gpus and wanted_gpus != 0 else 0
    return min(2, max(1, chosen.usable_nodes)), gpus


def _sum_up(job: Job, status: JobStatus, prepared: PreparedJob) -> Trial:
    layout = prepared.spec.layout
    if status.state == "COMPLETED":
        job.run.wait_for_ranks(layout.world_size)
    ranks = tuple(job.run.ranks())
    fault = next((one.training.fault for one in ranks if one.training and one.training.fault), None)
    trouble, hint = (fault.sentence, fault.hint) if fault else ("", "")
    if status.is_over and status.state != "COMPLETED" and fault is None:
        cause = job.why()[0].cause
        trouble, hint = cause.sentence, cause.hint
    return Trial(
        run=job.run.name,
        job_id=job.id,
        state=status.state,
        is_over=status.is_over,
        nodes=layout.nodes,
        gpus=layout.gpus,
        device="cpu" if "--accelerator cpu" in " ".join(prepared.spec.command) else "auto",
        cluster=job.run.record().cluster or (None if prepared.backend == "local" else "slurm"),
        partition=prepared.spec.partition,
        trouble=trouble,
        hint=hint,
        waits_for=status.reason,
        ranks=ranks,
        versions=read_versions(),
        ended_at_s=time.time(),
    )
