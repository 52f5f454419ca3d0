"""hpcdist why."""

import click

from hpcdist.cli.options import JOBS, JSON
from hpcdist.cli.output import format_cause, print_json
from hpcdist.cli.status import find_or_id
from hpcdist.errors import NotFoundError
from hpcdist.jobs.diagnosis.collect import explain
from hpcdist.jobs.job import Job
from hpcdist.records.job import Diagnosis
from hpcdist.slurm import queue
from hpcdist.text import printable_line


@click.command(
    epilog="""Examples:

\b
  hpcdist why 1234
  hpcdist why 1234_7 --json
"""
)
@JOBS
@JSON
def why(jobs: tuple[str, ...], *, as_json: bool) -> None:
    """Say why jobs ended as they did: which rank, where, how, its last lines, and what to do next.

    JOB is a run of this project, or any Slurm job id; an array is told task by task, and a requeued job attempt by
    attempt. Of a job that waits it says what for.
    """
    verdicts = [verdict for token in jobs for verdict in examine(find_or_id(token))]
    if as_json:
        print_json(verdicts)
        return
    click.echo("\n\n".join(format_verdict(verdict) for verdict in verdicts))


def examine(job: Job | str) -> list[Diagnosis]:
    """The verdicts on a job of ours, or on any of Slurm's by its id.

    Raises:
        NotFoundError: Slurm knows no such job.
    """
    if isinstance(job, Job):
        return job.why()
    statuses = queue.query([job])[job]
    if all(status.state == "UNKNOWN" for status in statuses):
        raise NotFoundError(f"Slurm knows no job {job}", "hpcdist status lists the runs here")
    return [explain(status) for status in statuses]


def format_verdict(verdict: Diagnosis) -> str:
    """The cause of the last attempt, what it rests on, and the attempts before it."""
    lines = [format_cause(f"{verdict.job_id or verdict.run} {verdict.state}", verdict.cause)]
    lines += [f"cause: {verdict.cause.kind}"]
    lines += [f"evidence: {printable_line(proof)}" for proof in verdict.cause.evidence]
    for number, attempt in enumerate(verdict.earlier, 1):
        sentence = f"attempt {number} of {len(verdict.earlier) + 1}: {attempt.state}: {attempt.cause.sentence}"
        lines.append(printable_line(sentence))
    return "\n".join(lines)
