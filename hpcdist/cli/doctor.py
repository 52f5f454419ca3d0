"""hpcdist doctor."""

import os
from pathlib import Path

import click

from hpcdist.cli.options import JSON, SITE, asked_profile
from hpcdist.cli.output import print_json
from hpcdist.config.job import Backend
from hpcdist.doctor.check import Check, find_exit_status
from hpcdist.text import printable_line
from hpcdist.units import parse_duration

COLORS = {"ok": "green", "warning": "yellow", "error": "red", "unknown": "cyan"}
STATUS_WIDTH, NAME_WIDTH = 7, 21


@click.command(
    epilog="""Examples:

\b
  hpcdist doctor
  hpcdist doctor --deep        # a short job on two nodes checks what only they know
  hpcdist doctor --fix         # mends runs that were left half done
"""
)
@click.option("--deep", is_flag=True, help="Ask the nodes too, by a short job on two of them.")
@click.option("--fix", is_flag=True, help="Mend what can be mended in jobs/runs, and say what was done.")
@click.option("--backend", type=click.Choice(["slurm", "local"]), help="Where jobs run [Slurm if it is there].")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Nodes for --deep [2].")
@click.option(
    "--gpus", type=click.IntRange(min=0), metavar="N", help="GPUs per node for --deep [1 where there are any]."
)
@click.option("--timeout", default="10min", metavar="TIME", show_default=True, help="Give --deep up after so long.")
@SITE
@JSON
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    deep: bool,
    fix: bool,
    backend: Backend | None,
    nodes: int | None,
    gpus: int | None,
    timeout: str,
    as_json: bool,
) -> None:
    """Check that everything a job needs is there: Slurm, accounting, settings, versions, disk, data, runs.

    Exit code: 0 when nothing is wrong or there are only warnings, 1 when something is, 3 when Slurm is needed and does
    not answer.
    """
    from hpcdist.cli.progress import ProgressLine
    from hpcdist.doctor.doctor import Doctor

    timeout_s = parse_duration(timeout)
    patient = Doctor(Path.cwd(), backend, profile=asked_profile())
    checks: list[Check] = []
    for check in patient.examine(fix=fix):
        # The nodes tell for certain what is only likely here.
        if deep and check.name == "shared folder":
            continue
        checks.append(check)
        _show(check, as_json=as_json)
    for done in patient.repairs:
        click.echo(printable_line(f"{'fixed' if done.done else 'left'}: {done.sentence}"), err=as_json)
    if fix and not patient.repairs:
        click.echo("nothing to fix", err=as_json)
    if deep:
        line = ProgressLine()
        found = patient.examine_nodes(nodes=nodes, gpus=gpus, on_change=line, timeout_s=timeout_s)
        line.close()
        for check in found:
            _show(check, as_json=as_json)
        checks += found
    if as_json:
        print_json({"checks": checks, "repairs": patient.repairs, "run": patient.trial.run if patient.trial else None})
    ctx.exit(find_exit_status(checks))


def _show(check: Check, *, as_json: bool) -> None:
    if not as_json:
        click.echo(format_check(check), color=False if os.environ.get("NO_COLOR") else None)


def format_check(check: Check) -> str:
    """A line with what was seen, and one with what to do where there is something."""
    status = click.style(check.status.ljust(STATUS_WIDTH), fg=COLORS[check.status])
    lines = [f"{status}  {check.name.ljust(NAME_WIDTH)}  {printable_line(' '.join(check.sentence.splitlines()))}"]
    if check.hint and check.status != "ok":
        indent = " " * (STATUS_WIDTH + NAME_WIDTH + 4)
        lines.append(indent + click.style("hint: ", fg="cyan") + printable_line(check.hint))
    return "\n".join(lines)
