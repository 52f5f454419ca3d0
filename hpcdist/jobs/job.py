"""Job: a run of ours, followed, ended and measured; what the command line calls, and the Python API."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hpcdist.config.job import Layout
from hpcdist.config.project import find_project
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError
from hpcdist.jobs import efficiency as job_efficiency
from hpcdist.jobs import status as job_status
from hpcdist.jobs.audit import audit_job
from hpcdist.jobs.diagnosis import collect
from hpcdist.jobs.diagnosis.rules import has_launch_failed
from hpcdist.jobs.timeline import build_timeline, find_disagreements
from hpcdist.launcher import local
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Diagnosis, Ending, JobRecord, JobStatus, Progress, join_task, split_task
from hpcdist.records.store import Run, Store
from hpcdist.slurm import commands
from hpcdist.slurm.sacct_query import check_job_id

POLL_INTERVAL_S = 1.0
MOST_RELEASES = 3


class Job:
    """A job of ours, found by its run.

    Attributes:
        run: The run's folder.
        task: The array task this is about (`4` of `123_4`); None for the whole job.
    """

    def __init__(self, run: Run, task: str | None = None) -> None:
        self.run = run
        self.task = task
        self._is_settled = False

    @classmethod
    def find(cls, token: str, root: Path | None = None) -> "Job":
        """The job a person means by a run's name or a job id.

        Raises:
            NotFoundError: There is no such run here.
        """
        run, task = Store(root or find_project(Path.cwd()).root).find(token)
        return cls(run, task)

    @property
    def id(self) -> str | None:
        """The job's id; None before it exists. Of a script submitted by hand it comes from what its ranks wrote."""
        return join_task(self.run.job_id, self.task)

    @property
    def folder(self) -> Run:
        """Where this job's (or array task's) ranks write."""
        return self.run.task(self.task)

    def statuses(self, *, settled: bool = False) -> list[JobStatus]:
        """Return where the job is, one status per array task; `settled` waits until accounting knows of what is over.

        Raises:
            NotFoundError: The run's folder was deleted.
        """
        found = job_status.query([(self.run, self.task)], settled=settled)[0]
        if not self.run.path.is_dir():
            raise NotFoundError(
                f"the folder of run {self.run.name} was deleted: {self.run.path}",
                "squeue --me -o '%i %T %k' shows whether its job still runs; scancel ends it",
            )
        return found

    def status(self) -> JobStatus:
        """Where the job is; of an array, the task that is furthest from its end."""
        return job_status.furthest(self.statuses())

    def wait(
        self, on_change: Callable[[JobStatus, Progress | None], None] | None = None, timeout_s: float | None = None
    ) -> JobStatus:
        """Waits until the job is over, in accounting too; one that Slurm could not start is released, three times.

        Args:
            on_change: Called with the status and how far the training is, once a second and later less often; its
                reason says what was released.
            timeout_s: Give up after so many seconds; None waits for ever.

        Returns:
            The last status seen; of a time-out, one that is not over.
        """
        began = time.monotonic()
        deadline = math.inf if timeout_s is None else began + timeout_s
        releases = 0
        while True:
            status = self.status()
            if has_launch_failed(status.state, status.reason) and releases < MOST_RELEASES:
                releases += 1
                status = _release(status)
            if on_change:
                on_change(status, self.folder.progress())
            if status.is_over and (status := self._settle(status)).is_over:
                return status
            now = time.monotonic()
            if now >= deadline:
                return status
            pause = POLL_INTERVAL_S if self.run.is_local else job_status.pause_s(now - began, POLL_INTERVAL_S)
            time.sleep(min(pause, deadline - now))

    def cancel(self) -> None:
        """Ends the job; one that is over is left alone."""
        if self.run.is_local:
            local.cancel(self.run)
        elif self.id:
            commands.cancel(self.id)

    def log_paths(self, rank: int | None = None) -> list[Path]:
        """The log files of one rank, or of all and the batch script."""
        pattern = "*.out" if rank is None else f"*_{rank}_log.out"
        found = set(self.folder.logs.glob(pattern))
        if rank is None and self.task:
            found |= set(self.run.logs.glob(f"*_{self.task}_batch.out"))
        return sorted(path for path in found if not path.is_symlink())

    def logs(self, rank: int = 0) -> str:
        """A rank's log so far."""
        return "".join(path.read_text(errors="replace") for path in self.log_paths(rank))

    def why(self) -> list[Diagnosis]:
        """Why the job is where it is or ended as it did, one verdict per array task."""
        return [collect.explain(status, self.run) for status in self.statuses()]

    def efficiency(self, source: job_efficiency.Source | None = None) -> Efficiency:
        """What the job used of what it had.

        Raises:
            NotReadyError: It has not started, or accounting is off.
        """
        return read_efficiencies([self], source)[0]

    def record(self) -> JobRecord:
        """What happened to the job, Slurm's figures and the ranks' on one clock; also written to `record.json`."""
        status = self.status()
        if status.is_over:
            status = self._settle(status)
        efficiency = self._efficiency_or_none(None)
        self._await_ranks(status)
        record = self.join(efficiency, status)
        self.folder.write("record.json", record)
        return record

    def join(
        self, efficiency: Efficiency | None, status: JobStatus | None = None, endings: Sequence[Ending] | None = None
    ) -> JobRecord:
        """Figures that are known already, joined with what the ranks measured; nothing is written.

        Args:
            efficiency: What Slurm or the ranks accounted.
            status: Where the job is; None takes the state in the figures.
            endings: How its attempts ended, where Slurm was asked already; None asks it about a job that failed.
        """
        if status is None:
            state = (efficiency.state if efficiency else None) or "UNKNOWN"
            status = JobStatus(job_id=self.id, run=self.run.name, state=state)
        timed = efficiency
        if efficiency is not None and efficiency.source == "seff":
            timed = self._efficiency_or_none("sacct") or efficiency  # seff has no points in time
        submitted = job_status.read_record(self.run)
        failed = status.is_over and status.state != "COMPLETED"
        ranks = self.folder.ranks()
        return JobRecord(
            status=status,
            efficiency=efficiency,
            ranks=ranks,
            failure=collect.explain(status, self.run, timed, endings).cause if failed else None,
            timeline=build_timeline(timed, ranks, submitted.created_at_s if submitted else None) if timed else None,
            disagreements=find_disagreements(timed, ranks) if timed else (),
            audit=audit_job(timed, ranks, submitted.job if submitted else None),
        )

    def _await_ranks(self, status: JobStatus) -> None:
        """Waits for what the ranks of an ended job wrote, where it can't all be seen yet."""
        ranks = self.folder.ranks()
        is_told = any(usage.exit_code or usage.signal for usage in ranks)
        if status.state != "COMPLETED" and (status.state != "FAILED" or is_told or not ranks):
            return  # what was killed may never write
        if submitted := job_status.read_record(self.run):
            self.folder.wait_for_ranks(submitted.job.layout.world_size)

    def _settle(self, status: JobStatus) -> JobStatus:
        """Where a job that is over is when accounting knows of its end, too; that is waited for once."""
        if self._is_settled:
            return status
        self._is_settled = True
        return job_status.furthest(self.statuses(settled=True))

    def _efficiency_or_none(self, source: job_efficiency.Source | None) -> Efficiency | None:
        try:
            return self.efficiency(source)
        except HpcdistError:
            return None


def _release(status: JobStatus) -> JobStatus:
    """Lets a job start that is held; where Slurm does not let us, `hpcdist status` says what to do."""
    try:
        commands.release(status.job_id or "")
    except HpcdistError:
        return status
    return msgspec.structs.replace(status, reason=f"{status.reason}: released")


def read_efficiencies(jobs: Sequence[Job | str], source: job_efficiency.Source | None = None) -> list[Efficiency]:
    """What several jobs used of what they had; Slurm is asked once for all of them.

    Args:
        jobs: Jobs of ours, and Slurm ids of any other jobs.
        source: Where to read; None takes the ranks for local runs and Slurm for the others.

    Returns:
        One per job in their order; an array gives one per task.

    Raises:
        NotReadyError: The only job has not started, or accounting is off.
        NotFoundError: Slurm knows no such job.
    """
    ids = [_id_to_ask(job, source) for job in jobs]
    wanted = [job_id for job_id in ids if job_id]
    answers = list(job_efficiency.iter_known(wanted, source)) if wanted else []
    found: list[Efficiency] = []
    for job, job_id, own in zip(jobs, ids, job_efficiency.match(ids, answers), strict=True):
        if isinstance(job, Job) and job_id is None:
            found.append(_efficiency_of_ranks(job))
        elif not own:
            raise NotReadyError(f"there are no figures of job {job_id}", f"hpcdist status {job_id}")
        found += own
    return found


def read_known(jobs: Sequence[Job]) -> tuple[list[list[Efficiency]], HpcdistError | None]:
    """What is known by now of what several jobs used; Slurm is asked once for all of them.

    Returns:
        The figures of each job in their order, of an array one per task, of a job without any none; and why Slurm's
        are missing, where it did not answer.
    """
    are_local = [job.run.is_local for job in jobs]
    ids = [None if is_local else job.id for job, is_local in zip(jobs, are_local, strict=True)]
    wanted = dict.fromkeys(split_task(job_id)[0] for job_id in ids if job_id)
    answers: list[Efficiency] = []
    trouble = None
    try:
        for one in job_efficiency.iter_slurm(list(wanted), missing_ok=True):
            answers.append(one)  # noqa: PERF402 extend() does not promise to keep what came before an error
    except HpcdistError as error:
        trouble = error
    found = job_efficiency.match(ids, answers)
    for job, own, is_local in zip(jobs, found, are_local, strict=True):
        if is_local:
            with contextlib.suppress(HpcdistError):
                own.append(_efficiency_of_ranks(job))
    return found, trouble


def _id_to_ask(job: Job | str, source: job_efficiency.Source | None) -> str | None:
    """The id to ask Slurm for; None where the ranks tell."""
    if isinstance(job, str):
        return check_job_id(job)
    if source == "ranks" or job.run.is_local:
        return None
    if job.id is None:
        raise NotReadyError(f"run {job.run.name} has no job", "submit it again with the same --run")
    return check_job_id(job.id)


def _efficiency_of_ranks(job: Job) -> Efficiency:
    ranks = job.folder.ranks()
    try:
        layout = job.run.record().job.layout
    except NotFoundError:
        nodes = 1 + max((rank.node_rank for rank in ranks), default=0)
        layout = Layout(nodes=nodes, gpus=0, tasks_per_node=max(1, len(ranks) // nodes), cpus_per_task=1)
    return job_efficiency.from_ranks(job.id or job.run.name, layout, ranks, local.query(job.run))
