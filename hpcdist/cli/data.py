"""hpcdist data."""

from pathlib import Path

import click

from hpcdist import datasets
from hpcdist.cli.options import SITE, open_here
from hpcdist.datasets import list_datasets
from hpcdist.errors import NotReadyError

NAMES = [dataset.name for dataset in list_datasets()]

_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the datasets [data, in the project].",
)


@click.group(epilog="Example: hpcdist data fetch mnist")
def data() -> None:
    """Put datasets where jobs find them: jobs themselves never download."""


@data.command(epilog="Example: hpcdist data fetch cifar10 --from ~/downloads")
@click.argument("name", type=click.Choice(NAMES))
@_data_dir
@SITE
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Take the files or archives from this folder, and ask no network.",
)
def fetch(name: str, *, data_dir: Path | None, source: Path | None) -> None:
    """Fetch a dataset on the login node and verify its checksums."""
    datasets.fetch(name, _folder(data_dir), lambda text: click.echo(text, err=True), source=source)


@data.command(epilog="Example: hpcdist data verify mnist cifar10")
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@_data_dir
@SITE
def verify(names: tuple[str, ...], *, data_dir: Path | None) -> None:
    """Check the checksums of datasets; without a NAME, of all that are there."""
    folder = _folder(data_dir)
    present = [name for name in NAMES if datasets.is_present(name, folder)]
    if not names and not present:
        raise NotReadyError(f"no dataset is in {folder}", "hpcdist data fetch mnist")
    for name in names or present:
        datasets.verify(name, folder)
        click.echo(f"{name} is in {folder}, all checksums right")


def _folder(given: Path | None) -> Path:
    project = open_here()
    return given or Path(project.defaults.get("data_dir", project.root / "data"))
