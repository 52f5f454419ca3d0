"""hpcdist train."""

from pathlib import Path
from typing import Any

import click

from hpcdist.cli.options import JobCommand, collect_options, training_options
from hpcdist.config.project import find_project
from hpcdist.errors import UsageError
from hpcdist.submission.prepare import complete_job, prepare


@click.command(
    cls=JobCommand,
    epilog="""Example, on three machines, of which the first has the address 10.10.1.1:

\b
  hpcdist train --nodes 3 --node-rank 0 --master 10.10.1.1:9955 --run first
  hpcdist train --nodes 3 --node-rank 1 --master 10.10.1.1:9955 --run first
  hpcdist train --nodes 3 --node-rank 2 --master 10.10.1.1:9955 --run first
""",
)
@training_options
@click.option("--node-rank", type=click.IntRange(0), required=True, metavar="R", help="Which node this machine is.")
@click.option("--master", required=True, metavar="HOST:PORT", help="An address of node 0, and a free port there.")
@click.option("--procs-per-node", type=click.IntRange(1), metavar="P", help="Ranks on each machine [1].")
@click.option("--run", metavar="NAME", help="Name of the run, the same on all machines [one for each].")
@click.pass_context
def train(
    ctx: click.Context, /, *, node_rank: int, master: str, procs_per_node: int | None, run: str | None, **options: Any
) -> None:
    """Train on several machines without a scheduler: run this on each of them.

    Where they share the project's folder and are given the same --run, all leave their logs and figures in one run.
    """
    from hpcdist.launcher.local import NodeShare
    from hpcdist.records.store import new_run_name
    from hpcdist.submission.by_hand import choose_gpus, parse_master, run_share  # loads more than the help needs

    address, port = parse_master(master)
    if options.get("gpus") is None:
        procs = procs_per_node or 1
        gpus = choose_gpus(procs, options.get("accelerator"))
        options |= {"gpus": gpus} if gpus else {"gpus": 0, "tasks_per_node": procs}
    elif procs_per_node is not None:
        options["tasks_per_node"] = procs_per_node
    project = find_project(Path.cwd())
    job = complete_job(collect_options(None, options, ctx.meta["hpcdist.command"]), project)
    if node_rank >= job.layout.nodes:
        raise UsageError(
            f"node_rank is {node_rank} of {job.layout.nodes} node(s)", "count from 0, and give --nodes on each machine"
        )
    name = run or f"{new_run_name(job)}-n{node_rank}"
    prepared = prepare(job, project, backend="local", run=name, nodes_here=1)
    click.echo(f"run {name}: node {node_rank} of {job.layout.nodes}", err=True)
    if prepared.note:
        click.echo(prepared.note, err=True)
    share = NodeShare(node_rank=node_rank, address=address, port=port)
    found, status = run_share(prepared, share, lambda text: click.echo(text, nl=False))
    if node_rank == 0:
        _conclude(found.name)
    ctx.exit(status)


def _conclude(name: str) -> None:
    """The figures, where the ranks of all machines left theirs here."""
    from hpcdist.cli.progress import show_result
    from hpcdist.jobs.job import Job

    job = Job.find(name)
    world_size = job.run.record().job.layout.world_size
    job.run.wait_for_ranks(world_size, 2.0)
    if len(job.run.ranks()) == world_size:
        show_result(job, job.record())
    else:
        click.echo("the other machines have their ranks' figures, in jobs/runs/ there", err=True)
