"""The project around the working folder, with the settings of the cluster that this machine submits to."""

import shutil
from pathlib import Path

import msgspec

from hpcdist.config.project import Project, find_project
from hpcdist.slurm.releases import find_release


def open_project(start: Path | None = None, *, profile: str | None = None) -> Project:
    """Find the project around a folder (None: the current one), with Slurm's release where that can be told.

    `profile` is the one of `hpcdist.toml` to take; None chooses by `HPCDIST_SITE` or the cluster's name.

    Raises:
        UsageError: The file has a fault, or no profile for this cluster.
    """
    project = find_project(start or Path.cwd(), profile=profile, ask_cluster=_ask_cluster)
    if project.site.slurm_version is not None:
        return project
    return msgspec.structs.replace(project, site=msgspec.structs.replace(project.site, slurm_version=find_release()))


def _ask_cluster() -> str | None:
    """The cluster's name; None where there is no Slurm, or it does not answer."""
    if not shutil.which("scontrol"):
        return None
    from hpcdist.slurm import cluster as slurm_cluster  # only where there are profiles to choose from

    return slurm_cluster.find_cluster_name(None)
