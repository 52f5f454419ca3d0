"""The evidence about one attempt of a job, and which rank it speaks against."""

import math
import re
import signal
from collections.abc import Sequence
from functools import cached_property

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.jobs.advice import Observation, PeakUsage, memory_text, raised_memory_bytes
from hpcdist.jobs.diagnosis.log_patterns import Raised, find_exception, find_line, find_time_out, is_lost_peer
from hpcdist.records.job import Cause, Ending, Kind
from hpcdist.records.ranks import HANG_STATUS, LOST_PEER_STATUS, STOPPED_STATUS, RankUsage
from hpcdist.units import format_bytes

TERMINATED = 15
KILLED = 9
# What a shell makes of a TERM that its program handles.
_TERMINATED_STATUS = 128 + TERMINATED
_OTHER_RANK = re.compile(r"\[rank(\d+)\]:")
TAIL_LINES = 20
# Of a job that no rank brought down: enough to see where it was.
SHORT_TAIL_LINES = 5
# A sign further up was survived.
LAST_LINES = 40
# From here on a kill that nobody explains is put down to memory: samples lag behind what a program takes at once, and
# a training with nine tenths in use is an ordinary one.
FULL_MEMORY_SHARE = 0.95
# Causes for which no rank is to blame, whatever the ranks did when they were ended.
_NOBODY_S = frozenset({"cancelled", "completed", "node-failure", "preempted", "requeued", "stopped", "time-limit"})


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one log file.

    Attributes:
        path: The file.
        task: The task that wrote it, a rank unless torchrun starts the ranks; None for the batch script's.
        lines: Its last lines, safe to print.
    """

    path: str
    task: int | None
    lines: tuple[str, ...]


class Evidence(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What is known of one attempt.

    Attributes:
        ending: What the scheduler says.
        job_id: The job's id; None of a job that was refused.
        run: Name of the run; None for a job that hpcdist did not submit.
        job: What was asked for; None where nobody wrote it down.
        ranks: What its ranks wrote.
        logs: What they and the batch script printed last.
        usage: What it used; None where nobody says.
    """

    ending: Ending
    job_id: str | None = None
    run: str | None = None
    job: JobSpec | None = None
    ranks: tuple[RankUsage, ...] = ()
    logs: tuple[Log, ...] = ()
    usage: Observation | None = None

    @property
    def world_size(self) -> int:
        """Ranks there should be."""
        return self.job.layout.world_size if self.job else max((rank.world_size for rank in self.ranks), default=0)

    def log_of(self, rank: RankUsage) -> Log | None:
        """A rank's log, without what torch says of other ranks that share the file."""
        shared = self.job is not None and self.job.launcher == "torchrun"
        task = rank.node_rank if shared else rank.rank
        log = next((log for log in self.logs if log.task == task), None)
        if log is None or not shared:
            return log
        return msgspec.structs.replace(log, lines=tuple(line for line in log.lines if _is_of(line, rank.rank)))

    def exception_of(self, rank: RankUsage) -> Raised | None:
        """The exception that a rank printed last."""
        log = self.log_of(rank)
        return find_exception(log.lines) if log else None

    @property
    def pool(self) -> PeakUsage | None:
        """What it used and asked for, to reckon with."""
        return PeakUsage([self.usage]) if self.usage else None

    @cached_property
    def culprit(self) -> RankUsage | None:
        """The rank to blame: of those that failed on their own the first; victims only where there is nobody else."""
        guilty = [(self.innocence(rank), rank.ended_at_s or math.inf, rank.rank, rank) for rank in self.ranks]
        return min((one for one in guilty if one[0] is not None), default=(None,))[-1]

    def innocence(self, rank: RankUsage) -> int | None:
        """How little a rank is to blame; None of one that ended well or is not over.

        0 failed on its own, 1 waited in vain, 2 stopped or lost a peer, 3 was ended.
        """
        if rank.exit_code == 0:
            return None
        raised = self.exception_of(rank)
        if rank.signal == TERMINATED or rank.exit_code == _TERMINATED_STATUS or (raised and raised.is_interruption):
            ended = True
        else:
            ended = rank.exit_code is None and rank.signal is None
        # A rank whose exception is the last it said may hang in its exit until it is ended.
        if ended and not (raised and raised.is_last and not raised.is_interruption):
            return 3 if rank.ended_at_s is not None else None
        if rank.exit_code in (LOST_PEER_STATUS, STOPPED_STATUS) or (raised and is_lost_peer(raised.text)):
            return 2
        log = self.log_of(rank)
        if rank.exit_code == HANG_STATUS or (log and find_time_out(log.lines)):
            return 1
        return 0

    @property
    def state(self) -> str:
        """Slurm's word for how the attempt ended."""
        return self.ending.state

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the log that matters."""
        return self.log.lines if self.log else ()

    @cached_property
    def raised(self) -> Raised | None:
        """The exception that ends the culprit's log."""
        return self.exception_of(self.culprit) if self.culprit else None

    @cached_property
    def log(self) -> Log | None:
        """The log of the rank to blame, else the batch script's or the first rank's."""
        if self.culprit:
            return self.log_of(self.culprit)
        # A batch script that started the ranks has nothing more to say.
        told_first = sorted(self.logs, key=lambda log: (log.task is None) == bool(self.ranks))
        return next((log for log in told_first if log.lines), None)

    @property
    def who(self) -> str:
        """`rank 2 on n1`; the job where no rank is to blame."""
        return name_rank(self.culprit) if self.culprit else "the job"

    def said(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Where the exception that ended the culprit, else the end of its log, shows a sign."""
        return find_line(pattern, self.raised.text.split("\n") if self.raised else self.lines[-LAST_LINES:])

    def found(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Where any log shows a sign."""
        shown = (find_line(pattern, log.lines) for log in self.logs)
        return next((one for one in shown if one), None)

    def cause(
        self,
        kind: Kind,
        sentence: str,
        hint: str = "",
        *proofs: str | re.Match[str] | None,
        rank: RankUsage | None = None,
    ) -> Cause:
        """Return the cause with all that goes with it.

        It rests on `proofs` beside what is always told. A `rank` is to blame where that is not the culprit.
        """
        blamed, ending = rank or (None if kind in _NOBODY_S else self.culprit), self.ending
        log = self.log_of(blamed) if blamed else self.log
        words = [proof.string if isinstance(proof, re.Match) else proof for proof in proofs]
        kept = TAIL_LINES if blamed or not self.ranks else SHORT_TAIL_LINES
        return Cause(
            kind=kind,
            sentence=sentence,
            hint=hint,
            evidence=tuple(dict.fromkeys(proof for proof in (*words, *self._facts()) if proof)),
            rank=blamed.rank if blamed else None,
            host=blamed.host if blamed else None,
            exit_code=blamed.exit_code if blamed else ending.exit_code,
            signal=blamed.signal if blamed else ending.signal,
            log=log.path if log else None,
            tail=log.lines[-kept:] if log else (),
        )

    def _facts(self) -> list[str]:
        """What is told with every cause: the scheduler's words and how each rank ended."""
        ending = self.ending
        code = describe_exit(ending.exit_code, ending.signal)
        words = [f"{ending.state}{f', {code}' if code else ''}{f', {ending.reason}' if ending.reason else ''}"]
        for step in ending.steps:
            code = describe_exit(step.exit_code, step.signal)
            if step.state != "COMPLETED":
                words.append(f"step {step.name}: {step.state}{f', {code}' if code else ''}")
        ends: dict[str, list[int]] = {}
        for rank in self.ranks:
            ends.setdefault(describe_exit(rank.exit_code, rank.signal) or "no end", []).append(rank.rank)
        words += [f"rank {format_ranks(ranks)}: {how}" for how, ranks in ends.items()]
        return words

    @property
    def name(self) -> str:
        """What to call it on a command line."""
        return self.run or self.job_id or "JOB"

    def rerun(self, option: str, value: str) -> str:
        """The command that asks for something else."""
        if self.run:
            return f"hpcdist rerun {self.run} --set {option}={value}"
        return f"submit it again with --{option.replace('_', '-')}={value}"

    def go_on(self) -> str:
        """The command with which a run goes on from its checkpoints; of one that has none, that runs it again."""
        run, job = self.name, self.job
        if not (job and job.goes_on and self.ranks):
            return f"hpcdist rerun {run}" if self.run else ""
        if not job.command:
            return f"hpcdist rerun --resume {run}"
        # A program of the user's own looks for its checkpoints in its run's folder, and a new run has another.
        old, new = f"jobs/runs/{run}", f"jobs/runs/{run}-on"
        return f"mkdir -p -m 700 {new} && cp -r {old}/checkpoints {new}/ && hpcdist rerun --run {run}-on {run}"

    def _memory(self) -> tuple[int | None, float | None]:
        """Bytes per node that were asked for, and that the fullest used."""
        return (self.pool.memory_asked_bytes(), self.pool.memory_bytes()) if self.pool else (None, None)

    def more_memory(self) -> str:
        """What to do against too little memory, with the figure: what `advise` says of it too."""
        pool, (given, used) = self.pool, self._memory()
        if pool is None or not (given or used):
            return "ask for more memory with --mem, or use less: smaller batches, fewer workers"
        needed = raised_memory_bytes(given, used)
        if pool.is_memory_per_cpu():
            return self.rerun("mem_per_cpu", memory_text(needed / pool.cpus_per_node()))
        return self.rerun("mem", memory_text(needed))

    def memory_proof(self) -> str | None:
        """How much of its memory the fullest node used, as far as it is known."""
        given, used = self._memory()
        if not used:
            return f"{format_bytes(given)} per node asked for" if given else None
        return f"{format_bytes(used)} per node used{f' of {format_bytes(given)}' if given else ''}, the highest seen"

    def is_memory_short(self) -> bool:
        """Whether the fullest node used nearly all it was given."""
        given, used = self._memory()
        return bool(given and used and used >= FULL_MEMORY_SHARE * given)


def _is_of(line: str, rank: int) -> bool:
    named = _OTHER_RANK.match(line)
    return named is None or int(named[1]) == rank


def name_rank(rank: RankUsage) -> str:
    """`rank 2 on n1`."""
    return f"rank {rank.rank} on {rank.host}"


def format_ranks(ranks: Sequence[int]) -> str:
    """`0-2, 5`: ascending numbers, those that follow each other as a range."""
    spans: list[list[int]] = []
    for number in ranks:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(str(number) for number in span) for span in spans)


def describe_exit(exit_code: int | None, number: int | None) -> str | None:
    """`exit code 7` or `signal 9 (SIGKILL)`; None while there is no end."""
    if number:
        try:
            return f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"signal {number}"
    return None if exit_code is None else f"exit code {exit_code}"
