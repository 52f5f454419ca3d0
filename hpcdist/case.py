"""One attempt under examination: its evidence with what the rules look at. Pure."""

import re
import signal
from collections.abc import Sequence

from hpcdist.advice import memory_text, raised_memory_bytes
from hpcdist.cause import Cause, Kind
from hpcdist.evidence import Evidence, Log
from hpcdist.observed import Pool
from hpcdist.record import RankUsage
from hpcdist.signs import Raised, find_line
from hpcdist.units import format_bytes

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


class Case:
    """The evidence, and the rank it speaks against.

    Attributes:
        evidence: All that is known.
        state: Slurm's word for how the attempt ended.
        culprit: The rank to blame; None where no rank failed.
        log: Its log, else the batch script's or the first rank's.
        lines: The log's lines.
        raised: The exception that ends it.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.state = evidence.ending.state
        self.culprit = evidence.culprit()
        self.log = self._choose_log()
        self.lines = self.log.lines if self.log else ()
        self.raised: Raised | None = evidence.exception_of(self.culprit) if self.culprit else None

    def _choose_log(self) -> Log | None:
        if self.culprit:
            return self.evidence.log_of(self.culprit)
        # A batch script that started the ranks has nothing more to say.
        told_first = sorted(self.evidence.logs, key=lambda log: (log.task is None) == bool(self.evidence.ranks))
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
        shown = (find_line(pattern, log.lines) for log in self.evidence.logs)
        return next((one for one in shown if one), None)

    def cause(
        self, kind: Kind, sentence: str, hint: str = "", *proofs: str | None, rank: RankUsage | None = None
    ) -> Cause:
        """The cause with all that goes with it.

        Args:
            kind: What it is.
            sentence: It in words.
            hint: What to do next.
            *proofs: What it rests on, beside what is always told.
            rank: The rank to blame where that is not the culprit.
        """
        blamed, ending = rank or (None if kind in _NOBODY_S else self.culprit), self.evidence.ending
        log = self.evidence.log_of(blamed) if blamed else self.log
        kept = TAIL_LINES if blamed or not self.evidence.ranks else SHORT_TAIL_LINES
        return Cause(
            kind=kind,
            sentence=sentence,
            hint=hint,
            evidence=tuple(dict.fromkeys(proof for proof in (*proofs, *self._facts()) if proof)),
            rank=blamed.rank if blamed else None,
            host=blamed.host if blamed else None,
            exit_code=blamed.exit_code if blamed else ending.exit_code,
            signal=blamed.signal if blamed else ending.signal,
            log=log.path if log else None,
            tail=log.lines[-kept:] if log else (),
        )

    def _facts(self) -> list[str]:
        """What is told with every cause: the scheduler's words and how each rank ended."""
        ending = self.evidence.ending
        code = describe_exit(ending.exit_code, ending.signal)
        words = [f"{ending.state}{f', {code}' if code else ''}{f', {ending.reason}' if ending.reason else ''}"]
        for step in ending.steps:
            code = describe_exit(step.exit_code, step.signal)
            words += (
                [f"step {step.name}: {step.state}{f', {code}' if code else ''}"] if step.state != "COMPLETED" else []
            )
        ends: dict[str, list[int]] = {}
        for rank in self.evidence.ranks:
            ends.setdefault(describe_exit(rank.exit_code, rank.signal) or "no end", []).append(rank.rank)
        words += [f"rank {format_ranks(ranks)}: {how}" for how, ranks in ends.items()]
        return words

    @property
    def pool(self) -> Pool | None:
        """What the attempt used and asked for."""
        return self.evidence.pool()

    @property
    def name(self) -> str:
        """What to call it on a command line."""
        return self.evidence.run or self.evidence.job_id or "JOB"

    def rerun(self, option: str, value: str) -> str:
        """The command that asks for something else."""
        if self.evidence.run:
            return f"hpcdist rerun {self.evidence.run} --set {option}={value}"
        return f"submit it again with --{option.replace('_', '-')}={value}"

    def go_on(self) -> str:
        """The command with which a run goes on from its checkpoints; of one that has none, that runs it again."""
        run, job = self.name, self.evidence.job
        if not (job and job.goes_on and self.evidence.ranks):
            return f"hpcdist rerun {run}" if self.evidence.run else ""
        if not job.command:
            return f"hpcdist rerun --resume {run}"
        # A program of the user's own looks for its checkpoints in its run's folder, and a new run has another.
        old, new = f"jobs/runs/{run}", f"jobs/runs/{run}-on"
        return f"mkdir -p -m 700 {new} && cp -r {old}/checkpoints {new}/ && hpcdist rerun --run {run}-on {run}"

    def more_memory(self) -> str:
        """What to do against too little memory, with the figure: what `advise` says of it too."""
        pool = self.pool
        asked, used = (pool.memory_asked_bytes(), pool.memory_bytes()) if pool else (None, None)
        if pool is None or not (asked or used):
            return "ask for more memory with --mem, or use less: smaller batches, fewer workers"
        needed = raised_memory_bytes(asked, used)
        if pool.is_memory_per_cpu():
            return self.rerun("mem_per_cpu", memory_text(needed / pool.cpus_per_node()))
        return self.rerun("mem", memory_text(needed))

    def memory_proof(self) -> str | None:
        """How much of its memory the fullest node used, as far as it is known."""
        pool = self.pool
        asked, used = (pool.memory_asked_bytes(), pool.memory_bytes()) if pool else (None, None)
        if not used:
            return f"{format_bytes(asked)} per node asked for" if asked else None
        return f"{format_bytes(used)} per node used{f' of {format_bytes(asked)}' if asked else ''}, the highest seen"

    def is_memory_short(self) -> bool:
        """Whether the fullest node used nearly all it was given."""
        pool = self.pool
        asked, used = (pool.memory_asked_bytes(), pool.memory_bytes()) if pool else (None, None)
        return bool(asked and used and used >= FULL_MEMORY_SHARE * asked)


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
