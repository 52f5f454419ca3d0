"""hpcdist data."""

from pathlib import Path

import click

from hpcdist import datasets
from hpcdist.cli.site_option import SITE, open_here


@click.group(epilog="Example: hpcdist data fetch mnist")
def data() -> None:
    """Put datasets where jobs find them: jobs themselves never download."""


@data.command(epilog="Example: hpcdist data fetch mnist")
@click.argument("name", type=click.Choice(["mnist"]))
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="FOLDER", help="Where to [data, in the project].")
@SITE
def fetch(name: str, *, data_dir: Path | None) -> None:
    """Fetch a dataset on the login node and verify its checksums."""
    project = open_here()
    folder = data_dir or Path(project.defaults.get("data_dir", project.root / "data"))
    datasets.fetch(name, folder, lambda text: click.echo(text, err=True))
