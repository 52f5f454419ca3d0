"""From options to a job that could be submitted: defaults merged, checked, its script rendered."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.errors import UsageError
from hpcdist.merging import merge_options
from hpcdist.privacy import part_secrets
from hpcdist.project import Project, read_templates
from hpcdist.render import Place, render
from hpcdist.spec import Backend, JobSpec, Site, build_job, check_run_name


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A job that could be submitted now.

    Attributes:
        spec: What to run.
        site: The site's settings.
        place: Where it runs.
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
    place: Place
    backend: Backend
    template: str | None = None
    rerun_of: str | None = None
    study: str | None = None
    script: str
    secrets: dict[str, str] = {}
    note: str = ""


def prepare(
    options: Mapping[str, Any],
    project: Project,
    *,
    backend: Backend,
    run: str | None,
    template: Path | None = None,
    workdir: Path | None = None,
    nodes_here: int | None = None,
) -> Prepared:
    """Everything of a submission but the sending.

    Args:
        options: Options by their names, over the site's defaults.
        project: The project to run in.
        backend: What is to run it.
        run: The run's name; None renders a script that names its run after its Slurm job.
        template: A template file to use in place of the layout's own.
        workdir: Folder the command starts in; None is the current one.
        nodes_here: Without Slurm, how many of its nodes this machine is; None is all of them.

    Raises:
        UsageError: An option or template can't be used.
    """
    workdir = (workdir or Path.cwd()).absolute()
    merged = merge_options(project.defaults, options)
    merged = _choose_partition(merged, project.site)
    merged["data_dir"] = str((workdir / merged.get("data_dir", project.root / "data")).absolute())
    spec = build_job(merged)
    box = project.site.container if backend == "slurm" else None
    python = box.python if box else project.site.python or sys.executable
    place = Place(root=str(project.root), workdir=str(workdir), python=python, run=run)
    return prepare_spec(spec, project.site, place, backend=backend, template=template, nodes_here=nodes_here)


def _choose_partition(options: dict[str, Any], site: Site) -> dict[str, Any]:
    """The options with the site's partition for what they ask for, where they name none."""
    purpose = site.partitions.cpu if options.get("gpus", 1) == 0 else site.partitions.gpu
    return options if options.get("partition") or purpose is None else {**options, "partition": purpose}


def prepare_spec(
    spec: JobSpec,
    site: Site,
    place: Place,
    *,
    backend: Backend,
    template: Path | None = None,
    nodes_here: int | None = None,
) -> Prepared:
    """As `prepare`, from a job that is complete.

    Raises:
        UsageError: The backend can't run it, or a template can't be used.
        NotFoundError: It is to wait for a run that is not there.
    """
    note = ""
    spec, secrets = part_secrets(spec, site.secrets)
    if backend == "local":
        if spec.array:
            raise UsageError("array: job arrays need Slurm", "leave out array and tasks")
        if spec.dependency:
            raise UsageError("dependency: only Slurm's jobs wait for others", "hpcdist wait JOB, then submit this")
        if spec.launcher == "torchrun":
            raise UsageError(
                "launcher: torchrun is for Slurm jobs; here the ranks are started directly", "leave it out"
            )
        from hpcdist.machine import fit_to_machine  # NVML: not for a render

        spec, note = fit_to_machine(spec, nodes_here)
        if site.container:
            note = f"{note}\nthe container is for Slurm's nodes: here the ranks run without it".strip()
    elif spec.dependency:
        from hpcdist.dependency import resolve_dependency  # only for those who have one

        spec = msgspec.structs.replace(spec, dependency=resolve_dependency(spec.dependency, Path(place.root)))
    if place.run is not None:
        check_run_name(place.run)
    templates, name = read_templates(site, template)
    if backend == "local":
        name = "local.sh.j2"
    script = render(spec, site, place, templates, template=name)
    return Prepared(
        spec=spec,
        site=site,
        place=place,
        backend=backend,
        template=str(template.absolute()) if template else None,
        script=script,
        secrets=secrets,
        note=note,
    )
