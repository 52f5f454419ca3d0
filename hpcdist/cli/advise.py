"""hpcdist advise."""

from collections.abc import Sequence

import click
import msgspec

from hpcdist.cli.options import JOBS, JSON
from hpcdist.cli.output import print_json
from hpcdist.cli.status import find_or_id
from hpcdist.errors import NotReadyError
from hpcdist.jobs.advice import Advice, Observation, Recommendation, advise
from hpcdist.jobs.audit import Claim, audit_job, find_inconsistent
from hpcdist.jobs.job import Job, read_efficiencies
from hpcdist.records.job import AuditFinding, split_task
from hpcdist.text import printable, printable_line

# What sbatch calls an option where hpcdist has another word.
_SBATCH_NAMES = {"gpus": "gpus-per-node", "tasks-per-node": "ntasks-per-node"}


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that asked for the same, and what to ask for next.

    Attributes:
        run: The newest of them that is a run of ours.
        advice: The next request.
        findings: What did not run as it should.
    """

    run: str | None
    advice: Advice
    findings: tuple[AuditFinding, ...]


@click.command(
    "advise",
    epilog="""Examples:

\b
  hpcdist advise 1234
  hpcdist advise 1234 1235 1236      (runs of the same: the highest use of all)
  hpcdist rerun 1234 --advised
""",
)
@JOBS
@JSON
def advise_command(jobs: tuple[str, ...], *, as_json: bool) -> None:
    """Print the next request: CPUs, memory, time and GPUs, right-sized from what was used.

    JOB is a run of this project, or any Slurm job id. Several that asked for the same are taken together.
    """
    observed = observe([find_or_id(token) for token in jobs])
    groups = [_group(several) for several in _by_request(observed)]
    across = _across_layouts(observed)
    if as_json:
        print_json({"requests": groups, "findings": across})
        return
    for number, group in enumerate(groups):
        click.echo(("\n" if number else "") + format_group(group))
    for finding in across:
        click.echo(f"finding: {printable(finding.sentence)}")


def observe(jobs: Sequence[Job | str]) -> list[tuple[Job | None, Observation]]:
    """What jobs used and had asked for, one per job or array task, each with its run if it is ours.

    Raises:
        NotReadyError: One has not started.
    """
    found: list[tuple[Job | None, Observation]] = []
    for job in jobs:
        submitted = job.run.record() if isinstance(job, Job) else None
        for one in read_efficiencies([job], "sacct"):
            if one.started_at_s is None or one.wall_time_s is None:
                raise NotReadyError(f"job {one.array_job_id or one.job_id} is {one.state}: it never ran", "")
            if submitted is None or isinstance(job, str):
                found.append((None, Observation(efficiency=one)))
                continue
            mine = Job(job.run, split_task(one.array_job_id)[1] or job.task)
            found.append((mine, Observation(efficiency=one, job=submitted.job, ranks=tuple(mine.folder.ranks()))))
    return found


def _by_request(observed: Sequence[tuple[Job | None, Observation]]) -> list[list[tuple[Job | None, Observation]]]:
    """Jobs that asked for the same, together; in the order given."""
    groups: dict[bytes, list[tuple[Job | None, Observation]]] = {}
    for job, one in observed:
        groups.setdefault(_request(one), []).append((job, one))
    return list(groups.values())


def _request(one: Observation) -> bytes:
    if one.job:
        return msgspec.json.encode(one.job, order="sorted")
    it = one.efficiency
    request = (it.user, it.name, it.nodes, it.cores, it.gpus, it.memory_requested_bytes, it.time_limit_s)
    return msgspec.json.encode(request)


def _group(several: Sequence[tuple[Job | None, Observation]]) -> Group:
    findings: dict[str, AuditFinding] = {}
    for _, one in several:
        for finding in audit_job(one.efficiency, one.ranks, one.job).findings:
            findings[finding.code] = finding
    job, advice = several[-1][0], advise([one for _, one in several])
    return Group(run=job.run.name if job else None, advice=advice, findings=tuple(findings.values()))


def _across_layouts(observed: Sequence[tuple[Job | None, Observation]]) -> list[AuditFinding]:
    """Runs of one training whose figures don't fit their number of ranks."""
    trainings: dict[bytes, list[Claim]] = {}
    for _, one in observed:
        used, job = one.efficiency, one.job
        ranks = job.layout.world_size if job else used.gpus
        if ranks is None or used.state != "COMPLETED" or not used.wall_time_s:
            continue
        claim = Claim(f"job {used.job_id}", ranks, used.wall_time_s, used.memory_used_bytes, used.cores)
        same = (job.name, job.command, job.training) if job else (used.name,)
        trainings.setdefault(msgspec.json.encode(same), []).append(claim)
    return [finding for claims in trainings.values() for finding in find_inconsistent(claims)]


def format_group(group: Group) -> str:
    """The advice as text: one option a line, with its reason below."""
    run = f"run {group.run}, " if group.run else ""
    lines = [f"{run}job {', '.join(group.advice.jobs)}"]
    for line in group.advice.lines:
        lines += [f"  {format_line(line)}", f"      {line.evidence}; {line.rule}"]
    lines += [f"  finding: {finding.sentence}" for finding in group.findings]
    lines += [f"  note: {note}" for note in group.advice.notes]
    lines.append(f"  next: {_next(group)}")
    return "\n".join(printable_line(line) for line in lines)


def format_line(line: Recommendation) -> str:
    """`--mem 3G -> 1280M`, or the request with "as it is"."""
    if not line.is_change:
        return f"--{line.option} {line.asked}: as it is" if line.asked is not None else f"--{line.option}: as it is"
    return f"--{line.option} {line.asked or '(none)'} -> {line.advised}"


def _next(group: Group) -> str:
    changes = group.advice.changes()
    if not changes:
        return "the same request"
    if group.run:
        return f"hpcdist rerun {group.run} --advised"
    return "sbatch " + " ".join(f"--{_SBATCH_NAMES.get(option, option)}={value}" for option, value in changes.items())
