"""`--site NAME`, and the project that it leads to."""

import click

from hpcdist.cli.offers import offer_sites
from hpcdist.config.project import Project
from hpcdist.submission.open_project import open_project

_KEY = "hpcdist.config.site"


def _remember(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    ctx.meta[_KEY] = value


SITE = click.option(
    "--site",
    metavar="NAME",
    expose_value=False,
    callback=_remember,
    shell_complete=offer_sites,
    help="Profile of hpcdist.toml [by the cluster's name].",
)


def open_here() -> Project:
    """The project around the working folder, with the profile that was asked for.

    Raises:
        UsageError: `hpcdist.toml` has a fault, or no such profile.
    """
    return open_project(profile=asked_profile())


def asked_profile() -> str | None:
    """The profile that was asked for; None where none was."""
    context = click.get_current_context(silent=True)
    return context.meta.get(_KEY) if context else None
