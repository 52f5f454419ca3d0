"""hpcdist drill."""

from functools import partial
from typing import Any

import click

from hpcdist.cli.complete import offer_partitions
from hpcdist.cli.options import JSON, SITE, collect_options, job_options, open_here
from hpcdist.cli.output import format_table, print_json
from hpcdist.doctor.drill import DRILLS, DrillKind, Means, Result
from hpcdist.errors import NotReadyError
from hpcdist.units import format_duration, parse_duration

HEADER = ("DRILL", "VERDICT", "ATTEMPTS", "LOST", "BACK AFTER", "TOOK", "WHAT HAPPENED")
VERDICTS = {True: "passed", False: "FAILED", None: "not tried"}


@click.command(
    epilog="""Kinds:

\b
  preempt             a job in --preempt-with takes its nodes
  time-limit          the signal that Slurm sends before the limit (scancel --signal=USR2)
  kill-rank           kill -9 of one rank: must fail at once, with the right cause
  kill-node           needs --allow-kill-node
  hang                kill -STOP of one rank: must fail after --hang-timeout [10s]
  corrupt-checkpoint  requeued, its newest checkpoint cut in half

Examples:

\b
  hpcdist drill time-limit kill-rank --nodes 2
  hpcdist drill all --nodes 2 --preempt-with urgent
"""
)
@click.argument("kinds", nargs=-1, required=True, metavar="KIND...", type=click.Choice([*DRILLS, "all"]))
@click.option("--at-step", type=int, default=Means().at_step, show_default=True, help="Break it after so many steps.")
@click.option(
    "--preempt-with", shell_complete=offer_partitions, metavar="PARTITION", help="Partition whose jobs preempt yours."
)
@click.option("--allow-kill-node", metavar="COMMAND", help="An administrator's command that kills the node {node}.")
@click.option("--timeout", default="30min", metavar="TIME", show_default=True, help="Give a drill up after so long.")
@JSON
@SITE
@job_options
@click.pass_context
def drill(
    ctx: click.Context,
    /,
    kinds: tuple[DrillKind, ...],
    *,
    at_step: int,
    preempt_with: str | None,
    allow_kill_node: str | None,
    timeout: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Break a short training on purpose, and say whether your jobs would survive the same here.

    Each is a job of its own: two epochs of MNIST that save every second. Exit code: 0 when all did as they should,
    1 when one did not, 3 when one could not be tried.
    """
    from hpcdist.cli import progress
    from hpcdist.doctor.drill import prepare_drill, run_drill
    from hpcdist.slurm import commands

    if not commands.is_available():
        raise NotReadyError("a drill needs Slurm, and there is no sbatch here", "run it on the cluster's login node")
    project = open_here()
    given = collect_options(None, options)
    timeout_s = parse_duration(timeout)
    means = Means(at_step=at_step, preempt_with=preempt_with, kill_node=allow_kill_node, timeout_s=timeout_s)
    chosen = [kind for kind in DRILLS if kind in kinds or "all" in kinds]
    prepared = [prepare_drill(kind, given, project) for kind in chosen]
    progress.warn_of_missing_data(prepared[0])
    results = []
    for kind, one in zip(chosen, prepared, strict=True):
        tell = partial(_tell, kind)
        result = run_drill(kind, one, means, tell)
        tell(f"{VERDICTS[result.passed]}: {result.sentence}")
        results.append(result)
    if as_json:
        print_json(results)
    else:
        click.echo(format_table(HEADER, [_row(result) for result in results]))
    verdicts = [result.passed for result in results]
    ctx.exit(1 if False in verdicts else 3 if None in verdicts else 0)


def _tell(kind: DrillKind, text: str) -> None:
    click.echo(f"{kind}: {text}", err=True)


def _row(result: Result) -> list[str | None]:
    seen = result.seen
    if seen is None:
        return [result.kind, VERDICTS[result.passed], None, None, None, None, result.sentence]
    steps = "" if seen.lost_steps is None else f" (~{seen.lost_steps} steps)"
    return [
        result.kind,
        VERDICTS[result.passed],
        ", ".join(seen.states),
        None if seen.lost_s is None else f"{seen.lost_s:.1f} s{steps}",
        None if seen.back_s is None else f"{seen.back_s:.0f} s",
        format_duration(int(seen.took_s)),
        result.sentence,
    ]
