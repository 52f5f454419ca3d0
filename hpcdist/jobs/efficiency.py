"""A job's efficiency: from the site's seff, from sacct, or from what its ranks measured."""

import functools
import grp
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from hpcdist.errors import NotFoundError, NotReadyError, UsageError
from hpcdist.records.efficiency import RANK_GATHERING, Efficiency, Gathering, name_kinds
from hpcdist.records.job import JobStatus, split_task
from hpcdist.records.ranks import RankUsage, sum_known
from hpcdist.slurm import commands, queue
from hpcdist.slurm.sacct import iter_sacct, parse_sacct
from hpcdist.slurm.sacct_query import ask_jobs, ask_period, batch_job_ids, expand_job_id
from hpcdist.slurm.sstat import complete, iter_complete, read_gathering
from hpcdist.text import printable

if TYPE_CHECKING:
    from hpcdist.config.job import Layout
    from hpcdist.records.store import LocalState

Source = Literal["seff", "sacct", "ranks"]
NAMED_JOBS = 10  # of an array, thousands of tasks may be unknown


def iter_known(job_ids: Sequence[str], source: Source | None = None) -> Iterator[Efficiency]:
    """Yield what Slurm accounted for jobs; an array gives one per task.

    One job is read through the site's own `seff` when that is on PATH; several, or none there, through one sacct. Of
    several, those that accounting does not know yet come last, without figures, in the state the queue has them in.

    Raises:
        NotReadyError: Accounting is off, or has nothing on the only job that was asked for.
        NotFoundError: Slurm does not know some of the jobs; said when the others were given out.
    """
    if source is None:
        source = "seff" if len(job_ids) == 1 and shutil.which("seff") else "sacct"
    found, missing = _read_seff(job_ids) if source == "seff" else _read_sacct(job_ids)
    yield from complete(found)
    yield from _query_missing(missing, alone=len(job_ids) == 1)


def _read_sacct(job_ids: Sequence[str]) -> tuple[list[Efficiency], list[str]]:
    """The figures, and the ids of which accounting has no row."""
    answers = (ask_jobs(batch) for batch in batch_job_ids(job_ids))
    found = [one for answer in answers for one in parse_sacct(answer.lines, answer.delimiter, group_name)]
    known = set().union(*(names_of(one) for one in found))
    return found, [name for one in job_ids if one not in known for name in sorted(names_asked(one) - known)]


def _read_seff(job_ids: Sequence[str]) -> tuple[list[Efficiency], list[str]]:
    """The figures, and the ids of which seff says nothing."""
    from hpcdist.slurm.seff import parse_seff  # only here: its patterns take longer to compile than most of a command

    texts = {job_id: commands.read_seff(job_id) for job_id in job_ids}
    missing = [job_id for job_id, text in texts.items() if not text.strip()]
    return [one for job_id, text in texts.items() if job_id not in missing for one in parse_seff(text)], missing


def iter_slurm(job_ids: Sequence[str], *, missing_ok: bool = False) -> Iterator[Efficiency]:
    """Yield what Slurm accounted for jobs, as sacct prints it; for any number of jobs, for none is kept.

    Jobs that still run come after the others, and after them those that accounting does not know yet; with `missing_ok`
    these are passed over.

    Raises:
        NotReadyError: Accounting is off, or has nothing on the only job that was asked for.
        NotFoundError: Slurm does not know some of the jobs; said when the others were given out.
    """
    if not job_ids:
        return
    unseen: list[str] = []
    gathering = read_gathering()
    yield from iter_complete(_iter_accounted(job_ids, unseen, gathering), gathering)
    if not missing_ok:
        yield from _query_missing(unseen, alone=len(job_ids) == 1)


def _iter_accounted(job_ids: Sequence[str], unseen: list[str], gathering: Gathering) -> Iterator[Efficiency]:
    """The jobs that accounting knows; the ids of the others are added to `unseen`."""
    for batch in batch_job_ids(job_ids):
        left = set().union(*map(names_asked, batch))
        answer = ask_jobs(batch)
        for one in iter_sacct(answer.lines, answer.delimiter, group_name, gathering):
            if left:
                left -= names_of(one)
            yield one
        if left:
            unseen += [name for one in batch for name in sorted(names_asked(one)) if name in left]


def iter_period(since: str, users: Sequence[str] = ()) -> Iterator[Efficiency]:
    """As `iter_slurm`, for the jobs since a time (`selection.parse_since`), of some users or of whom sacct lists.

    Raises:
        NotReadyError: Accounting is off.
    """
    gathering = read_gathering()
    answer = ask_period(since, users)
    return iter_complete(iter_sacct(answer.lines, answer.delimiter, group_name, gathering), gathering)


@functools.lru_cache(maxsize=4096)
def group_name(text: str) -> str:
    """The name of a group by its number, which stays where it has no name here."""
    try:
        return printable(grp.getgrgid(int(text)).gr_name)
    except (KeyError, ValueError, OverflowError):
        return printable(text)


def names_asked(job_id: str) -> set[str]:
    """What an id stands for: itself, or the tasks of `123_[2-5]` unless there are too many to tell."""
    try:
        return set(expand_job_id(job_id))
    except UsageError:
        return {job_id}


def names_of(efficiency: Efficiency) -> set[str]:
    """The ids a person may use for the job of a figure: its own, the array task's or component's, the whole job's."""
    array = efficiency.array_job_id or ""
    het = efficiency.het_job_id or ""
    names = {efficiency.job_id, array, split_task(array)[0], het, het.partition("+")[0]}
    if "[" in array:  # tasks that wait are one row
        names |= names_asked(array)
    return names - {""}


def match(job_ids: Sequence[str | None], answers: Sequence[Efficiency]) -> list[list[Efficiency]]:
    """The answers about each job, in the order of the ids; of an array one per task, of what has no id none."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(answers):
        for name in names_of(one):
            places.setdefault(name, []).append(place)
    found = []
    for job_id in job_ids:
        names = {job_id, *names_asked(job_id)} if job_id else set()
        found.append([answers[at] for at in sorted({place for name in names for place in places.get(name, ())})])
    return found


def _query_missing(job_ids: Sequence[str], *, alone: bool) -> Iterator[Efficiency]:
    """Yield jobs of which accounting has no row yet, as the queue has them.

    Of a job that is `alone`, all that was asked for, a state would be no answer.

    Raises:
        NotReadyError: The only job waits, or is not accounted for yet.
        NotFoundError: Slurm does not know some of them; said when the others were given out.
    """
    unknown: list[str] = []
    for job_id, statuses in queue.query(job_ids).items():
        if all(status.state == "UNKNOWN" for status in statuses):
            unknown.append(job_id)
        elif alone and all(status.state == "PENDING" for status in statuses):
            raise NotReadyError(f"job {job_id} is PENDING", f"hpcdist wait {job_id}")
        elif alone:
            raise NotReadyError(f"accounting has nothing on job {job_id} yet", f"hpcdist status {job_id}")
        else:
            yield from (_from_status(job_id, status) for status in statuses)
    if unknown:
        more = f" and {len(unknown) - NAMED_JOBS} more" if len(unknown) > NAMED_JOBS else ""
        names = ", ".join(unknown[:NAMED_JOBS])
        raise NotFoundError(f"Slurm knows no job {names}{more}", "hpcdist status lists this project's runs")


def _from_status(job_id: str, status: JobStatus) -> Efficiency:
    """A job without figures, for its state."""
    name = status.job_id or job_id
    waits = status.state == "PENDING"
    return Efficiency(
        job_id=name,
        array_job_id=name if "_" in name else None,
        het_job_id=name if "+" in name else None,
        state=status.state,
        exit_code=status.exit_code,
        wall_time_s=None if waits else status.elapsed_s,
        name=printable(status.name) if status.name else None,
        node_list=status.nodes,
        source="squeue",
        live=not waits and not status.is_over,
    )


def from_ranks(
    job_id: str, layout: "Layout", ranks: Sequence[RankUsage], state: "LocalState | None" = None
) -> Efficiency:
    """The efficiency of a job from what its ranks measured.

    Memory is the sum of the ranks' peaks, which need not have come at the same moment: an upper bound, and marked
    as an estimate where there is more than one rank.

    Raises:
        NotReadyError: No rank wrote anything yet.
    """
    if not ranks:
        raise NotReadyError(f"no rank of job {job_id} has written anything yet", f"hpcdist status {job_id}")
    started_s = state.started_at_s if state else min(rank.started_at_s for rank in ranks)
    ends = [state.ended_at_s] if state else [rank.ended_at_s for rank in ranks]
    live = any(end is None for end in ends)
    wall_s = (time.time() if live else max(end for end in ends if end is not None)) - started_s
    cores = layout.world_size * layout.cpus_per_task
    cpu_s = sum_known([rank.cpu_time_s for rank in ranks])
    memory = sum_known([rank.memory_peak_bytes for rank in ranks])
    busy = [rank.gpu_utilization for rank in ranks if rank.gpu_utilization is not None]
    gpu_memory = sum_known([rank.gpu_memory_peak_bytes for rank in ranks])
    codes = [rank.exit_code if rank.exit_code is not None else 128 + (rank.signal or 0) for rank in ranks]
    return Efficiency(
        job_id=job_id,
        state=state.state if state else ("RUNNING" if live else "FAILED" if any(codes) else "COMPLETED"),
        exit_code=state.exit_code if state else (None if live else max(codes)),
        nodes=layout.nodes,
        cores=cores,
        cores_per_node=cores // layout.nodes,
        cpu_time_s=cpu_s,
        cpu_efficiency=cpu_s / (cores * wall_s) if cpu_s is not None and wall_s > 0 else None,
        core_walltime_s=cores * wall_s,
        wall_time_s=wall_s,
        memory_used_bytes=int(memory) if memory is not None else None,
        memory_is_estimate=len(ranks) > 1 if memory is not None else None,
        gpus=(state.gpus if state else layout.nodes * layout.gpus),
        gpu_efficiency=sum(busy) / len(busy) if busy else None,
        gpu_memory_used_bytes=int(gpu_memory) if gpu_memory is not None else None,
        started_at_s=started_s,
        ended_at_s=None if live else started_s + wall_s,
        source="ranks",
        kinds=name_kinds(
            "ranks",
            cpu=cpu_s,
            memory=memory,
            memory_is_estimate=len(ranks) > 1,
            gpu=busy[0] if busy else None,
            gpu_memory=gpu_memory,
            gathering=RANK_GATHERING,
        ),
        live=live,
    )
