"""Why a job ended as it did, or does not run. Pure values."""

from typing import Literal

import msgspec

Kind = Literal[
    "bad-script",
    "cancelled",
    "completed",
    "cuda-out-of-memory",
    "full-disk",
    "hang",
    "killed",
    "lost",
    "lost-peer",
    "missing-data",
    "missing-module",
    "never-started",
    "node-failure",
    "out-of-memory",
    "preempted",
    "preflight",
    "requeued",
    "running",
    "stopped",
    "time-limit",
    "time-out",
    "unknown",
    "user-exception",
]


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why one attempt of a job ended as it did.

    Attributes:
        kind: What kind of end it is; stays the same between releases.
        sentence: The cause for a person.
        hint: What to do next; empty when there is nothing to say.
        evidence: What the cause rests on, a line each.
        rank: The rank to blame: the one that failed first, or that the others waited for; None when no rank is.
        host: Its host, or the node that failed.
        exit_code: Its exit status, else the job's; None when a signal ended it.
        signal: Number of that signal.
        log: Its log file; the batch script's when no rank is known.
        tail: The log's last lines.
    """

    kind: Kind
    sentence: str
    hint: str = ""
    evidence: tuple[str, ...] = ()
    rank: int | None = None
    host: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    log: str | None = None
    tail: tuple[str, ...] = ()


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier attempt of a job that was requeued.

    Attributes:
        state: Slurm's word for how it ended.
        cause: Why.
    """

    state: str
    cause: Cause


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `hpcdist why` says of a job or array task.

    Attributes:
        job_id: Slurm job id (`123_4` for an array's task) or `local-N`; None of a job that was refused.
        run: Name of the run; None for a job that hpcdist did not submit.
        state: Slurm's word for where it is.
        cause: Why it ended so, of a requeued job the last attempt.
        earlier: The attempts before that one, oldest first.
    """

    job_id: str | None
    run: str | None
    state: str
    cause: Cause
    earlier: tuple[Attempt, ...] = ()
