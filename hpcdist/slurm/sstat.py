"""sstat: what the running steps of jobs used so far.

sacct has no usage of a step before it ended. Source: sstat(1), run with Slurm 22.05.8. Its `TRESUsageInTot` is memory
in use *now*; the peak so far is `MaxRSS`, of the largest task [run: 100 MB held, then freed].
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from hpcdist.errors import HpcdistError, ParseError
from hpcdist.records.efficiency import Efficiency, Gathering, name_kinds, parse_gathering, with_gathering
from hpcdist.slurm import commands
from hpcdist.units import parse_elapsed, parse_size

FIELDS = ("JobID", "NTasks", "MaxRSS", "AveCPU", "TRESUsageInTot")
_DELIMITER = "|"


class LiveUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's running steps used so far.

    Attributes:
        cpu_time_s: CPU seconds of all their tasks.
        memory_bytes: Peak of the largest of them: of one task its own, of several the largest task's times their
            number.
        memory_is_estimate: Whether it was multiplied.
    """

    cpu_time_s: float = 0.0
    memory_bytes: int = 0
    memory_is_estimate: bool = False


def sstat_arguments(job_ids: Sequence[str]) -> list[str]:
    """Return the arguments of one sstat call for all steps of these jobs, by their own ids (`123`, not `123_4`)."""
    # sstat 22.05 knows no --delimiter; no field here is free text.
    options = ["--allsteps", "--parsable2", "--noheader", "--noconvert"]
    return [*options, f"--format={','.join(FIELDS)}", f"--jobs={','.join(job_ids)}"]


def parse_sstat(lines: Iterable[str]) -> dict[str, LiveUsage]:
    """Return usage by job id; a job of which sstat says nothing is not there.

    A row that is cut short is left out: sstat prints errors about some steps among the rows of others.
    """
    found: dict[str, LiveUsage] = {}
    for line in lines:
        cells = line.strip().split(_DELIMITER)
        job_id, dot, _ = cells[0].partition(".")
        if len(cells) != len(FIELDS) or not dot or not job_id.isdigit():
            continue
        try:
            step = _read_step(*cells[1:])
        except ParseError:
            continue
        before = found.get(job_id, LiveUsage())
        largest = step if step.memory_bytes > before.memory_bytes else before
        cpu_s = before.cpu_time_s + step.cpu_time_s
        found[job_id] = msgspec.structs.replace(largest, cpu_time_s=cpu_s)
    return found


def _read_step(tasks: str, max_rss: str, average_cpu: str, usage: str) -> LiveUsage:
    """Return the usage in one step's row."""
    count = int(tasks) if tasks.isdigit() and len(tasks) <= 9 else 1
    amounts = dict(part.partition("=")[::2] for part in usage.split(","))
    if "cpu" in amounts:
        cpu_s = parse_elapsed(amounts["cpu"])
    else:
        cpu_s = parse_elapsed(average_cpu) * count if average_cpu else 0.0
    largest = parse_size(max_rss) if max_rss else 0
    return LiveUsage(cpu_time_s=cpu_s, memory_bytes=largest * count, memory_is_estimate=count > 1)


def with_live_usage(efficiency: Efficiency, usage: LiveUsage | None) -> Efficiency:
    """Return a running job's figures with what its running steps used so far added to what its ended ones did.

    Without such usage they stay as they are: unknown, not zero.
    """
    if usage is None or not efficiency.live:
        return efficiency
    cpu_s = (efficiency.cpu_time_s or 0.0) + usage.cpu_time_s
    memory, is_estimate = efficiency.memory_used_bytes or 0, bool(efficiency.memory_is_estimate)
    if usage.memory_bytes > memory:
        memory, is_estimate = usage.memory_bytes, usage.memory_is_estimate
    used, asked = memory or None, efficiency.memory_requested_bytes
    gpu_memory = efficiency.gpu_memory_used_bytes
    return msgspec.structs.replace(
        efficiency,
        cpu_time_s=cpu_s,
        cpu_efficiency=cpu_s / efficiency.core_walltime_s if efficiency.core_walltime_s else None,
        memory_used_bytes=used,
        memory_is_estimate=is_estimate,
        memory_efficiency=used / asked if used and asked else None,
        source="sstat",
        kinds=name_kinds("sstat", cpu=cpu_s, memory=used, memory_is_estimate=is_estimate, gpu_memory=gpu_memory),
    )


# sstat sends a message to every node of every job it is asked about.
_MOST_JOBS = 50


def complete(found: Sequence[Efficiency], gathering: Gathering | None = None) -> list[Efficiency]:
    """Return the figures with how they were gathered (asked for unless given), and for running jobs with those of now.

    Where sstat says nothing of a job, is not allowed to, or too many jobs run, theirs stay unknown.
    """
    if not found:
        return []
    gathering = gathering or read_gathering()
    running = [one.job_id for one in found if one.live]
    said = commands.read_live(sstat_arguments(running)) if 0 < len(running) <= _MOST_JOBS else ""
    usage = parse_sstat(said.split("\n"))
    return [with_gathering(with_live_usage(one, usage.get(one.job_id)), gathering) for one in found]


def iter_complete(found: Iterable[Efficiency], gathering: Gathering) -> Iterator[Efficiency]:
    """Yield what `complete` returns, lazily, from figures that already carry how they were gathered.

    Jobs that still run are given out last, since sstat is asked once for all of them.
    """
    running: list[Efficiency] = []
    for one in found:
        if one.live and len(running) <= _MOST_JOBS:
            running.append(one)
        else:
            yield one
    yield from complete(running, gathering)


def read_gathering() -> Gathering:
    """Return how the cluster gathers usage; nothing is known where it does not answer."""
    try:
        return parse_gathering(commands.read_config())
    except HpcdistError:
        return Gathering()
