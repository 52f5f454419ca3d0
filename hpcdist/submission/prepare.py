"""From options to a job that could be submitted: defaults merged, checked, its script rendered."""

import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.config.job import Backend, JobSpec, build_job, check_run_name, merge_options
from hpcdist.config.project import Project
from hpcdist.config.secrets import part_secrets
from hpcdist.config.site import Site
from hpcdist.errors import SubmitError, UsageError
from hpcdist.submission.render import JobPaths, read_templates, render


def fit_to_machine(job: JobSpec, nodes: int | None = None) -> tuple[JobSpec, str]:
    """Return the job as this machine, being so many of its nodes (None: all), can run it, and a sentence about that.

    Ranks share this machine's cores; GPUs are used when there is one for each rank, else the CPUs.
    """
    from hpcdist.gpu import count_gpus  # only here: NVML's bindings take a tenth of a render to import

    nodes = nodes or job.layout.nodes
    cores = len(os.sched_getaffinity(0))
    world = nodes * job.layout.ranks_per_node
    cpus = max(1, min(job.layout.cpus_per_task, cores // world))
    layout = msgspec.structs.replace(job.layout, cpus_per_task=cpus)
    training = job.training
    gpus = count_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    needed = nodes * job.layout.gpus
    if training.accelerator == "gpu" and gpus < needed:
        raise SubmitError(
            f"accelerator is gpu, but the layout needs {needed} and this machine has {gpus}",
            "leave out --accelerator gpu to train on the CPUs",
        )
    if gpus < needed or training.accelerator == "cpu":
        training = msgspec.structs.replace(training, accelerator="cpu")
        device = f"CPU (gloo): {gpus} GPU(s) here, {needed} asked for"
    else:
        device = "GPUs (NCCL)" if needed else "CPU (gloo)"
    said = f"no Slurm here: {world} rank(s) on {platform.node()} with {cpus} thread(s) each, {device}"
    return msgspec.structs.replace(job, layout=layout, training=training), said


# Slurm's own words (sbatch(1), --dependency): kinds, ids with a task or a delay, "singleton".
_OWN = r"after(any|burstbuffer|corr|notok|ok)?|expand|singleton|[0-9]+(_([0-9]+|\*))?(\+[0-9]+)?|[,?:]|"


def resolve_dependency(text: str, root: Path) -> str:
    """Return what a job waits for in Slurm's words; a run or job alone has to end well.

    The text is such as `afterok:123`, `afterany:RUN:124`, `RUN` or `singleton`.

    Raises:
        NotFoundError: There is no such run here.
        UsageError: A run has no Slurm job.
    """
    found = re.split(r"([,?:])", text if ":" in text or text == "singleton" else f"afterok:{text}")
    return "".join(word if re.fullmatch(_OWN, word) else _find_id(word, root) for word in found)


def _find_id(token: str, root: Path) -> str:
    # Only for a job that waits for a run: most renders need nothing of the runs on disk.
    from hpcdist.records.job import join_task
    from hpcdist.records.store import Store

    run, task = Store(root).find(token)
    job_id = join_task(run.job_id, task)
    if job_id is None or run.is_local:
        raise UsageError(f"dependency: run {run.name} has no Slurm job to wait for", f"hpcdist status {run.name}")
    return job_id


class PreparedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that could be submitted now.

    Attributes:
        spec: What to run.
        site: The site's settings.
        paths: Where it runs.
        backend: What would run it.
        template: The template file it was made from; None is the layout's own.
        rerun_of: The run that this one repeats, if it repeats one.
        study: The study that it is of, if it is of one.
        script: The script's text.
        secrets: Values of secret variables that were given with the options.
        note: What a person should know before, if anything.
    """

    spec: JobSpec
    site: Site
    paths: JobPaths
    backend: Backend
    template: str | None = None
    rerun_of: str | None = None
    study: str | None = None
    script: str
    secrets: dict[str, str] = {}
    note: str = ""

    @property
    def run(self) -> str:
        """The run's name.

        Raises:
            UsageError: It has none: its script names the run after the Slurm job.
        """
        if self.paths.run is None:
            raise UsageError("a submission needs a run's name", "pass run=")
        return self.paths.run


def choose_backend(asked: Backend | None) -> Backend:
    """The backend asked for, else Slurm where it is there, else this machine."""
    from hpcdist.slurm import commands  # not for a render

    return asked or ("slurm" if commands.is_available() else "local")


def complete_job(options: Mapping[str, Any], project: Project) -> JobSpec:
    """Build the job that options ask for: with the project's defaults, its partition and its folder of datasets.

    A path is meant from the current folder.

    Raises:
        UsageError: An option can't be used.
    """
    merged = merge_options(project.defaults, options)
    partitions = project.site.partitions
    merged["partition"] = merged.get("partition") or (partitions.cpu if merged.get("gpus") == 0 else partitions.gpu)
    merged["data_dir"] = str(Path(merged.get("data_dir", project.root / "data")).absolute())
    return build_job(merged)


def prepare(
    job: JobSpec,
    project: Project,
    *,
    backend: Backend,
    run: str | None,
    template: Path | None = None,
    workdir: Path | None = None,
    python: str | None = None,
    nodes_here: int | None = None,
) -> PreparedJob:
    """Everything of a submission but the sending.

    Args:
        job, project, backend: What to run, complete; where, and what is to run it.
        run: The run's name; None renders a script that names its run after its Slurm job.
        template: A template file to use in place of the layout's own.
        workdir: Folder the command starts in; None is the current one.
        python: Interpreter to start; None is the site's, else this one.
        nodes_here: Without Slurm, how many of its nodes this machine is; None is all of them.

    Raises:
        UsageError: The backend can't run it, or a template can't be used.
        NotFoundError: It is to wait for a run that is not there.
    """
    site = project.site
    box = site.container if backend == "slurm" else None
    paths = JobPaths(
        root=str(project.root),
        workdir=str((workdir or Path.cwd()).absolute()),
        python=python or (box.python if box else site.python or sys.executable),
        run=run if run is None else check_run_name(run),
    )
    job, secrets = part_secrets(job, site.secrets)
    note = ""
    if backend == "local":
        job, note = _fit_to_this_machine(job, site, nodes_here)
    elif job.dependency:
        job = msgspec.structs.replace(job, dependency=resolve_dependency(job.dependency, project.root))
    templates, name = read_templates(site, template)
    return PreparedJob(
        spec=job,
        site=site,
        paths=paths,
        backend=backend,
        template=str(template.absolute()) if template else None,
        script=render(job, site, paths, templates, template="local.sh.j2" if backend == "local" else name),
        secrets=secrets,
        note=note,
    )


def _fit_to_this_machine(job: JobSpec, site: Site, nodes_here: int | None) -> tuple[JobSpec, str]:
    """The job as it runs without Slurm, and what a person should know of that.

    Raises:
        UsageError: It needs Slurm.
    """
    if job.array:
        raise UsageError("array: job arrays need Slurm", "leave out array and tasks")
    if job.dependency:
        raise UsageError("dependency: only Slurm's jobs wait for others", "hpcdist wait JOB, then submit this")
    if job.launcher == "torchrun":
        raise UsageError("launcher: torchrun is for Slurm jobs; here the ranks are started directly", "leave it out")
    job, note = fit_to_machine(job, nodes_here)
    if site.container:
        note += "\nthe container is for Slurm's nodes: here the ranks run without it"
    return job, note
