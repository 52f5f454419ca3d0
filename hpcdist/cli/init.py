"""hpcdist init."""

import difflib
import os
from pathlib import Path

import click

from hpcdist.config.job import Backend
from hpcdist.config.project import CONFIG_NAME
from hpcdist.errors import UsageError
from hpcdist.text import printable_line


@click.command(
    epilog="""Examples:

\b
  hpcdist init
  hpcdist init --dry-run
  hpcdist init --from /shared/class/hpcdist.toml
"""
)
@click.option("--dry-run", is_flag=True, help="Print the file; write nothing.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take over another's hpcdist.toml, or that of a folder.",
)
@click.option("--force", is_flag=True, help="With --from: replace a file that is here.")
@click.option("--backend", type=click.Choice(["slurm", "local"]), help="Where jobs run [Slurm if it is there].")
def init(*, dry_run: bool, source: Path | None, force: bool, backend: Backend | None) -> None:
    """Write hpcdist.toml from what the cluster says: partitions, account, GPUs, CPUs and memory per GPU, modules.

    Each value stands below where it came from, and what jobs would ask for was tried with sbatch --test-only. Run again
    it shows what changed and keeps what you wrote.
    """
    from hpcdist.doctor import init as site_init
    from hpcdist.submission.prepare import choose_backend

    path = Path.cwd() / CONFIG_NAME
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept: tuple[str, ...] = ()
    if source is not None:
        text = site_init.read_from(source, path)
        if before and not (force or dry_run) and before != text:
            _show_difference(before, text)
            raise UsageError(f"{path} is there, and another one", "hpcdist init --from FILE --force replaces it")
    else:
        is_slurm = choose_backend(backend) == "slurm"
        merged = site_init.merge(path, site_init.look_at_cluster() if is_slurm else site_init.look_at_machine())
        text, kept = merged.text, merged.kept
    for sentence in kept:
        click.echo(printable_line(f"yours: {sentence}"), err=True)
    if dry_run:
        click.echo(text, nl=False)
        return
    if text == before:
        click.echo(f"{path} is as it was", err=True)
        return
    if before:
        _show_difference(before, text)
    site_init.write(path, text)
    click.echo(path)
    if named := os.environ.get("HPCDIST_CONFIG"):
        click.echo(f"note: HPCDIST_CONFIG is set: commands read {named}, not this file", err=True)
    click.echo("check it: hpcdist doctor; try it: hpcdist submit --nodes 2 --gpus 1 --dry-run", err=True)


def _show_difference(before: str, after: str) -> None:
    rows = difflib.unified_diff(before.splitlines(), after.splitlines(), "as it is", "as it would be", lineterm="", n=1)
    for row in rows:
        click.echo(printable_line(row), err=True)
