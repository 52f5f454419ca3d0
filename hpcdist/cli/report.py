"""hpcdist report."""

import shutil
from pathlib import Path

import click

from hpcdist.cli.complete import offer_studies_and_jobs
from hpcdist.cli.options import JSON
from hpcdist.cli.output import print_json
from hpcdist.config.project import find_project
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.files import write_atomically
from hpcdist.report.gather import report_on
from hpcdist.report.model import Comparison
from hpcdist.report.text import format_comparison, format_csv, format_markdown
from hpcdist.studies.state import name_studies

WIDEST = 10_000


@click.command(
    epilog="""Examples:

\b
  hpcdist report mnist-layouts
  hpcdist report mnist-layouts --html report.html
  hpcdist report 1234 1235 1236
"""
)
@click.argument("names", nargs=-1, required=True, metavar="STUDY|JOB...", shell_complete=offer_studies_and_jobs)
@JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print a line per variant, base units.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown.")
@click.option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    help="Also write the whole report as one HTML file; its plots go to TensorBoard, too.",
)
def report(names: tuple[str, ...], *, as_json: bool, as_csv: bool, as_markdown: bool, html: str | None) -> None:
    """Compare layouts: speedup, efficiency, cost, where the steps go, and a verdict with its evidence.

    A STUDY that was run here, or several JOBs, runs or job ids of this project, compared as if they were one.
    """
    if as_json + as_csv + as_markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other", "keep one of them")
    root = find_project(Path.cwd()).root
    comparison = report_on(names, root, details=html is not None)
    if html is not None:
        is_study = names[0] in name_studies(root)
        _write_html(comparison, Path(html), root / "tb_logs" / names[0] / "report" if is_study else None)
    if as_json:
        print_json(comparison)
    elif as_csv:
        click.echo(format_csv(comparison), nl=False)
    elif as_markdown:
        click.echo(format_markdown(comparison), nl=False)
    else:
        columns = shutil.get_terminal_size((WIDEST, 24)).columns
        click.echo("\n".join(format_comparison(comparison, None if columns == WIDEST else columns)))


def _write_html(comparison: Comparison, path: Path, board_folder: Path | None) -> None:
    """Writes the page, and a study's plots for TensorBoard."""
    # Only now: matplotlib takes a second to load.
    from hpcdist.report.html import render_html
    from hpcdist.report.plots import draw_plots

    plots = draw_plots(comparison, png=board_folder is not None)
    try:
        write_atomically(path, render_html(comparison, plots).encode())
    except OSError as error:
        raise HpcdistError(f"can't write {path}: {error.strerror}", "choose another file for --html") from None
    click.echo(f"written: {path}", err=True)
    if board_folder is not None:
        from hpcdist.jobs.tensorboard import write_plots

        try:
            write_plots(board_folder, comparison.made_at_s, {plot.key: plot.png for plot in plots if plot.png})
        except OSError as error:
            click.echo(f"warning: no plots for TensorBoard in {board_folder}: {error.strerror}", err=True)
