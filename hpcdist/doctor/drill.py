"""Drills: a short training is submitted, broken on purpose with its owner's own rights, and followed to its end."""

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from hpcdist.config.job import merge_options
from hpcdist.config.project import Project
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.jobs.job import Job
from hpcdist.records.job import CONTINUED_STATES, Cause, Diagnosis, JobStatus
from hpcdist.records.job import Kind as CauseKind
from hpcdist.records.ranks import RESTART_LINE, RankUsage
from hpcdist.records.store import new_run_name
from hpcdist.slurm import commands, sbatch
from hpcdist.slurm.queue import ACCOUNTING_LAG_S, parse_job_fields
from hpcdist.submission.prepare import PreparedJob, complete_job, prepare
from hpcdist.submission.send import send
from hpcdist.units import parse_duration

DrillKind = Literal["preempt", "time-limit", "kill-rank", "kill-node", "hang", "corrupt-checkpoint"]
DRILLS: tuple[DrillKind, ...] = get_args(DrillKind)
# What another attempt would not mend ends at once, with the right cause; everything else is survived.
MUST_FAIL: Mapping[DrillKind, CauseKind] = {"kill-rank": "killed", "hang": "hang"}
# Slurm gives what it ends 30 s (KillWait); a rank that was stopped by a signal needs all of them.
QUICK_S = 60.0
# Many steps in few epochs: a GPU would be through with a larger batch before it can be broken.
BATCH_SIZE = 32


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill may use.

    Attributes:
        at_step: The job is broken when it has trained so many steps.
        preempt_with: Partition whose jobs preempt the drill's.
        kill_node: Command of the administrator's that kills `{node}`.
        timeout_s: Seconds after which a drill is given up, its time in the queue included.
    """

    at_step: int = 50
    preempt_with: str | None = None
    kill_node: str | None = None
    timeout_s: float = 1800.0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a drill's job.

    Attributes:
        states: Slurm's word for how each attempt ended, oldest first.
        restarts: How often it was started again.
        cause: Why its last attempt ended as it did.
        is_over: Whether it came to an end in time.
        is_broken: Whether it was broken.
        is_damage_noticed: Whether a damaged checkpoint was put aside.
        went_on_after: Step of the checkpoint its last attempt went on from; None when it began anew.
        lost_s: Seconds of training done again: from that checkpoint to the last step before it went on.
        lost_steps: About so many steps, by the median time of one.
        back_s: Seconds from the break until it trained again.
        ended_s: Seconds from the break to its end.
        took_s: Seconds of the whole drill.
    """

    states: tuple[str, ...]
    restarts: int
    cause: Cause
    is_over: bool = True
    is_broken: bool = True
    is_damage_noticed: bool = False
    went_on_after: int | None = None
    lost_s: float | None = None
    lost_steps: int | None = None
    back_s: float | None = None
    ended_s: float | None = None
    took_s: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a drill went.

    Attributes:
        kind: Which drill.
        passed: Whether the job did as it should; None when it could not be tried.
        sentence: The verdict for a person.
        run: The run that was broken; None when there was none.
        job_id: Its Slurm job.
        seen: What was seen of it.
    """

    kind: DrillKind
    passed: bool | None
    sentence: str
    run: str | None = None
    job_id: str | None = None
    seen: Seen | None = None


def find_obstacle(kind: DrillKind, means: Means, world_size: int) -> str | None:
    """Why a drill can't be tried at all; None when it can."""
    if kind == "preempt" and means.preempt_with is None:
        return "needs a partition whose jobs preempt yours: --preempt-with PARTITION"
    if kind == "kill-node" and "{node}" not in (means.kill_node or ""):
        return "needs an administrator's command that kills the node {node}: --allow-kill-node 'COMMAND {node}'"
    if kind == "hang" and world_size == 1:
        return "needs two ranks: the one that is stopped can't notice it; --nodes 2"
    return None


def choose_options(kind: DrillKind, world_size: int) -> dict[str, Any]:
    """The options of a drill's job, weaker than those of its user."""
    options: dict[str, Any] = {
        "name": f"drill-{kind}",
        "epochs": 2,
        "batch_size": max(BATCH_SIZE, world_size),
        "checkpoint_every": "1s",
        "time": "15",
    }
    if kind == "hang":
        options["hang_timeout"] = "10s"
    if kind == "preempt":
        # What takes its nodes wants them whole, and must not meet another's job there.
        options["exclusive"] = True
    return options


def judge(kind: DrillKind, seen: Seen, *, hang_timeout_s: float) -> tuple[bool | None, str]:
    """Say whether a job, broken on purpose, did as it should; None when it was not put to the test."""
    if not seen.is_broken:
        if seen.cause.kind == "completed":
            return None, "the training was over before it could be broken: give it more --epochs"
        return None, f"it could not be broken: {seen.cause.sentence}"
    if not seen.is_over:
        return False, f"it was not over {seen.ended_s or 0:.0f} s after it was broken: {seen.cause.sentence}"
    if kind in MUST_FAIL:
        return _judge_failure(MUST_FAIL[kind], seen, QUICK_S + (hang_timeout_s if kind == "hang" else 0.0))
    return _judge_survival(kind, seen)


def _judge_failure(expected: CauseKind, seen: Seen, quick_s: float) -> tuple[bool, str]:
    ended_s = seen.ended_s or 0.0
    if seen.restarts:
        return False, f"it was started again {seen.restarts} time(s), which can't help"
    if seen.cause.kind != expected:
        return False, f"it ended as {seen.cause.kind}, not as {expected}: {seen.cause.sentence}"
    if ended_s > quick_s:
        return False, f"it took {ended_s:.0f} s to fail: {seen.cause.sentence}"
    return True, f"failed within {ended_s:.0f} s, as it should: {seen.cause.sentence}"


def _judge_survival(kind: DrillKind, seen: Seen) -> tuple[bool | None, str]:
    if seen.states[-1] != "COMPLETED":
        return False, f"it ended {seen.states[-1]}: {seen.cause.sentence}"
    if seen.restarts == 0:
        return None, "it was never interrupted"
    if seen.went_on_after is None:
        return False, "it completed, but began anew: all work was done again"
    if kind == "corrupt-checkpoint" and not seen.is_damage_noticed:
        return False, "it completed, but nobody noticed the damaged checkpoint"
    lost = "unknown work" if seen.lost_s is None else f"{seen.lost_s:.1f} s of work"
    return True, f"survived: went on after step {seen.went_on_after}, {lost} done again"


ADMIN_TIMEOUT_S = 120.0
# Ends by itself where nobody cancels it: it has done its work when it has started.
PREEMPTOR = ["--time=1", "--job-name=hpcdist-drill", "--output=/dev/null", "--wrap=sleep 5"]


def preempt(job_id: str, partition: str) -> str:
    """Submits a job that wants the whole nodes of a running one; returns its id.

    Raises:
        HpcdistError: Slurm refused it.
    """
    fields = parse_job_fields(commands.show_job(job_id))
    shape = [f"--partition={partition}", f"--nodes={fields['NumNodes']}", f"--nodelist={fields['NodeList']}"]
    if (account := fields.get("Account", "(null)")) != "(null)":
        shape.append(f"--account={account}")
    said = _run(["sbatch", "--parsable", "--exclusive", *shape, *PREEMPTOR])
    return said.strip().partition(";")[0]


def warn_of_time_limit(job_id: str) -> None:
    """Sends what Slurm sends before the time limit: USR2 to the job's steps, not to its script (man sbatch, --signal).

    Raises:
        HpcdistError: Slurm refused.
    """
    _run(["scancel", "--signal=USR2", job_id])


def signal_rank(job_id: str, rank: RankUsage, signal: str) -> None:
    """Sends a signal to a rank's program alone, from a step of its own on the rank's node.

    Raises:
        HpcdistError: Slurm refused the step, or the program is gone.
    """
    # The node by its place in the job: hosts need not be called what Slurm calls them.
    step = ["srun", f"--jobid={job_id}", "--overlap", "--nodes=1", "--ntasks=1", f"--relative={rank.node_rank}"]
    _run([*step, "kill", f"-{signal}", str(rank.pid)])


def kill_node(command: str, node: str) -> None:
    """Runs the administrator's command, with the node's name for `{node}`.

    Raises:
        HpcdistError: It failed.
    """
    words = [word.replace("{node}", node) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ADMIN_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HpcdistError(f"{words[0]}: {error}") from None
    if done.returncode != 0:
        raise HpcdistError(f"{words[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _run(arguments: Sequence[str]) -> str:
    return commands.run_command([*sbatch.outside_of_a_job(os.environ), *arguments])


POLL_INTERVAL_S = 0.5
# A job that Slurm requeues may show how its last attempt ended for a moment.
SETTLED_S = 30.0
WENT_ON = re.compile(r"^goes on after step (\d+) of ", re.MULTILINE)

Tell = Callable[[str], None]


def prepare_drill(kind: DrillKind, given: Mapping[str, Any], project: Project) -> PreparedJob:
    """The job of a drill: the built-in training with the site's defaults and the user's options.

    Raises:
        UsageError: An option can't be used.
    """
    plain = complete_job(given, project)
    if plain.array or plain.command:
        raise UsageError("a drill is one job of the built-in training", "leave out --array and the command")
    job = complete_job(merge_options(choose_options(kind, plain.layout.world_size), given), project)
    return prepare(job, project, backend="slurm", run=new_run_name(job))


def run_drill(kind: DrillKind, prepared: PreparedJob, means: Means, tell: Tell) -> Result:
    """Submit, break, follow and judge a job, and tell a person what happens; the job never outlives the drill.

    Raises:
        SubmitError: The scheduler refused the job.
    """
    if obstacle := find_obstacle(kind, means, prepared.spec.layout.world_size):
        return Result(kind=kind, passed=None, sentence=obstacle)
    job = Job(send(prepared))
    tell(f"job {job.id}, run {job.run.name}")
    drill = _Drill(kind, job, means, tell)
    try:
        seen = drill.run()
    finally:
        drill.clean_up()
    passed, sentence = judge(kind, seen, hang_timeout_s=parse_duration(prepared.spec.training.hang_timeout))
    return Result(kind=kind, passed=passed, sentence=sentence, run=job.run.name, job_id=job.id, seen=seen)


class _TimeoutError(Exception):
    """The drill is given up."""


class _Drill:
    """One job that is broken, and what was seen of it so far."""

    def __init__(self, kind: DrillKind, job: Job, means: Means, tell: Tell) -> None:
        self._kind = kind
        self._job = job
        self._means = means
        self._tell = tell
        self._began_at_s = time.time()
        self._broken_at_s: float | None = None
        self._back_at_s: float | None = None
        self._preemptor: str | None = None
        self._checkpoints = job.run.path / "checkpoints"
        self._taken_at_s: dict[int, float] = {}  # by step; the files are soon gone
        self._state = ""
        self._state_since_s = 0.0

    def run(self) -> Seen:
        """Breaks the job when it has trained a while, and waits for its end."""
        problem: str | None = None
        try:
            if self._wait_until(self._has_trained):
                self._broken_at_s = time.time()
                self._break()
                self._wait_until(lambda _: False)
        except _TimeoutError:
            problem = "it was given up"
        except HpcdistError as error:
            problem = error.message
            self._broken_at_s = None
        return self._sum_up(problem)

    def clean_up(self) -> None:
        """Ends what is left of the drill."""
        if not self._is_over():
            self._tell("cancelled")
            self._job.cancel()
        if self._preemptor:
            with contextlib.suppress(HpcdistError):
                commands.cancel(self._preemptor)

    def _wait_until(self, condition: Callable[[JobStatus], bool]) -> bool:
        """Waits until something holds; False when the job is over before."""
        while True:
            status = self._look()
            if condition(status):
                return True
            if self._is_over():
                return False
            if time.time() - self._began_at_s > self._means.timeout_s:
                raise _TimeoutError
            time.sleep(POLL_INTERVAL_S)

    def _look(self) -> JobStatus:
        """Where the job is; remembers what would be gone later."""
        status = self._job.status()
        if status.state != self._state:
            self._state, self._state_since_s = status.state, time.time()
            waits_for = status.reason if status.state == "PENDING" else None
            self._tell(f"{status.state}{f' ({waits_for})' if waits_for else ''}")
        for path in self._list_checkpoints():
            with contextlib.suppress(FileNotFoundError):
                self._taken_at_s[_step(path)] = path.stat().st_mtime
        if self._broken_at_s and self._back_at_s is None and self._has_trained_again():
            self._back_at_s = time.time()
            self._tell(f"trains again, {self._back_at_s - self._broken_at_s:.0f} s after it was broken")
        return status

    def _is_over(self) -> bool:
        over = JobStatus(job_id=None, state=self._state).is_over
        return over and (self._state not in CONTINUED_STATES or time.time() - self._state_since_s > SETTLED_S)

    def _has_trained(self, _: JobStatus) -> bool:
        progress = self._job.run.progress()
        return progress is not None and progress.step >= self._means.at_step and bool(self._list_checkpoints())

    def _has_trained_again(self) -> bool:
        first = next((rank for rank in self._job.run.ranks() if rank.rank == 0 and rank.restart_count), None)
        try:
            written_at_s = (self._job.run.path / "progress.json").stat().st_mtime
        except FileNotFoundError:
            return False
        return first is not None and written_at_s > first.started_at_s

    def _break(self) -> None:
        """Does it.

        Raises:
            HpcdistError: It can't be done.
        """
        job_id, last = self._job.id or "", self._job.run.ranks()[-1]
        if self._kind == "preempt":
            self._preemptor = preempt(job_id, self._means.preempt_with or "")
            self._tell(f"job {self._preemptor} in partition {self._means.preempt_with} wants its nodes")
        elif self._kind == "time-limit":
            warn_of_time_limit(job_id)
            self._tell("sent what Slurm sends before the time limit: scancel --signal=USR2")
        elif self._kind == "kill-node":
            kill_node(self._means.kill_node or "", last.host)
            self._tell(f"node {last.host} killed, under rank {last.rank}")
        elif self._kind == "corrupt-checkpoint":
            self._cut_checkpoint(job_id)
        else:
            self._signal(job_id, last, "KILL" if self._kind == "kill-rank" else "STOP")

    def _signal(self, job_id: str, rank: RankUsage, signal: str) -> None:
        signal_rank(job_id, rank, signal)
        self._tell(f"kill -{signal} {rank.pid}: rank {rank.rank} on {rank.host}")

    def _cut_checkpoint(self, job_id: str) -> None:
        """Requeues the job, and cuts its newest checkpoint in half before it starts again."""
        commands.requeue(job_id)
        self._wait_until(lambda status: status.state == "PENDING")
        newest = self._list_checkpoints()[-1]
        was = newest.stat()
        os.truncate(newest, was.st_size // 2)
        os.utime(newest, ns=(was.st_atime_ns, was.st_mtime_ns))  # it still tells when it was taken
        self._tell(f"requeued, and {newest.name} cut in half")

    def _list_checkpoints(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*.ckpt"))

    def _sum_up(self, problem: str | None) -> Seen:
        ended_at_s = time.time()
        restarts = max((rank.restart_count for rank in self._job.run.ranks()), default=0)
        verdict = self._settled_verdict(restarts)
        went_on_after = self._went_on_after(restarts)
        lost_s = self._lost_s(went_on_after)
        return Seen(
            states=(*(attempt.state for attempt in verdict.earlier), verdict.state),
            restarts=restarts,
            cause=Cause(kind="unknown", sentence=problem) if problem else verdict.cause,
            is_over=self._is_over(),
            is_broken=self._broken_at_s is not None,
            is_damage_noticed=any(self._checkpoints.glob("*.damaged")),
            went_on_after=went_on_after,
            lost_s=lost_s,
            lost_steps=self._count_steps(lost_s),
            back_s=self._since_break(self._back_at_s),
            ended_s=self._since_break(ended_at_s),
            took_s=ended_at_s - self._began_at_s,
        )

    def _settled_verdict(self, restarts: int) -> Diagnosis:
        """Why it ended, when accounting knows of every attempt, or does not learn of it."""
        deadline = time.monotonic() + ACCOUNTING_LAG_S
        while True:
            (verdict,) = self._job.why()
            if len(verdict.earlier) >= restarts or time.monotonic() > deadline:
                return verdict
            time.sleep(POLL_INTERVAL_S)

    def _went_on_after(self, restarts: int) -> int | None:
        """The step its last attempt went on from."""
        log = self._job.logs(0).rpartition(RESTART_LINE.format(restarts))[2]
        found = WENT_ON.search(log) if restarts else None
        return int(found[1]) if found else None

    def _lost_s(self, step: int | None) -> float | None:
        """Seconds from the checkpoint after a step to where the training had come: the break, or what it saved then."""
        first = next((rank for rank in self._job.run.ranks() if rank.rank == 0), None)
        if step is None or step not in self._taken_at_s or self._broken_at_s is None or first is None:
            return None
        saved_at_s = [taken for taken in self._taken_at_s.values() if taken < first.started_at_s]
        return max(self._broken_at_s, *saved_at_s) - self._taken_at_s[step] if saved_at_s else None

    def _count_steps(self, seconds: float | None) -> int | None:
        trained = next((rank.training for rank in self._job.run.ranks() if rank.training), None)
        if seconds is None or trained is None or not trained.step_time_s:
            return None
        return round(seconds / trained.step_time_s)

    def _since_break(self, moment_s: float | None) -> float | None:
        return None if moment_s is None or self._broken_at_s is None else moment_s - self._broken_at_s


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
