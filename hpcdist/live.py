"""What only the running cluster knows of jobs: how it gathers their usage, and what those that run used so far."""

from collections.abc import Iterable, Iterator, Sequence

from hpcdist.backends import slurm
from hpcdist.errors import HpcdistError
from hpcdist.records.efficiency import Efficiency, Gathering, parse_gathering, with_gathering
from hpcdist.sstat import LiveUsage, parse_sstat, sstat_arguments, with_live_usage

# sstat sends a message to every node of every job it is asked about.
_MOST_JOBS = 50


def complete(found: Sequence[Efficiency]) -> list[Efficiency]:
    """The figures with how they were gathered, and for running jobs with those of now.

    Where sstat says nothing of a job, is not allowed to, or too many jobs run, theirs stay unknown.
    """
    return _complete(found, read_gathering()) if found else []


def iter_complete(found: Iterable[Efficiency], gathering: Gathering) -> Iterator[Efficiency]:
    """As `complete`, as the figures come, which know already how they were gathered.

    Jobs that still run are given out last, since sstat is asked once for all of them.
    """
    running: list[Efficiency] = []
    for one in found:
        if one.live and len(running) <= _MOST_JOBS:
            running.append(one)
        else:
            yield one
    yield from _complete(running, gathering)


def _complete(found: Sequence[Efficiency], gathering: Gathering) -> list[Efficiency]:
    usage = _read_usage([one.job_id for one in found if one.live])
    return [with_gathering(with_live_usage(one, usage.get(one.job_id)), gathering) for one in found]


def read_gathering() -> Gathering:
    """How the cluster gathers usage; nothing is known where it does not answer."""
    try:
        return parse_gathering(slurm.read_config())
    except HpcdistError:
        return Gathering()


def _read_usage(job_ids: Sequence[str]) -> dict[str, LiveUsage]:
    if not 0 < len(job_ids) <= _MOST_JOBS:
        return {}
    return parse_sstat(slurm.read_live(sstat_arguments(job_ids)).split("\n"))
