"""Evidence for the tests of the post-mortem, in few words."""

from hpcdist.config.job import JobSpec, Layout
from hpcdist.jobs.advice import Observation
from hpcdist.jobs.diagnosis.evidence import Evidence, Log
from hpcdist.jobs.diagnosis.rules import judge
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Ending
from hpcdist.records.ranks import RankUsage
from tests.conftest import REPOSITORY

GIB = 1024**3


def text(name):
    return tuple((REPOSITORY / "tests" / "data" / "logs" / f"{name}.txt").read_text().splitlines())


def rank(number=0, exit_code=None, *, signal=None, ended=100.0, **other):
    over = exit_code is not None or signal is not None
    return RankUsage(
        rank=number,
        local_rank=0,
        node_rank=number,
        world_size=2,
        host=f"n{number + 1}",
        started_at_s=0.0,
        ended_at_s=ended if over else None,
        exit_code=exit_code,
        signal=signal,
        **other,
    )


def usage(used_gib=1, asked_gib=4, **other):
    """One node's."""
    return Observation(
        efficiency=Efficiency(
            job_id="7",
            nodes=1,
            memory_used_bytes=int(used_gib * GIB),
            memory_requested_bytes=asked_gib * GIB,
            wall_time_s=1800.0,
            time_limit_s=1800.0,
            **other,
        )
    )


def verdict(
    state="FAILED", ranks=(), logs=None, batch=(), used=None, layout=None, run="r", job=True, command=(), **ending
):
    """Logs are given by rank, as the name of a text or as lines; what else there is are fields of `Ending`."""
    written = {task: text(log) if isinstance(log, str) else tuple(log) for task, log in (logs or {}).items()}
    written = {None: text(batch) if isinstance(batch, str) else tuple(batch)} | written
    layout = layout or Layout(nodes=2)
    return judge(
        Evidence(
            ending=Ending(state=state, **ending),
            job_id="7",
            run=run,
            job=JobSpec(name="mnist", layout=layout, command=command) if job else None,
            ranks=tuple(ranks),
            logs=tuple(Log(path=f"{task}.out", task=task, lines=lines) for task, lines in written.items()),
            usage=used,
        )
    )


def one_rank(log, exit_code=1, **other):
    return verdict(ranks=[rank(0, exit_code)], logs={0: log}, layout=Layout(), **other)
