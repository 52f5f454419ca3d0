"""What the scheduler says of how an attempt of a job ended. Pure values."""

import msgspec


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a job, as accounting has it.

    Attributes:
        name: What follows the dot in its id: "batch", "extern" or a number.
        state: Slurm's word for how it ended.
        exit_code: Its exit status; None when a signal ended it.
        signal: Number of that signal.
    """

    name: str
    state: str
    exit_code: int | None = None
    signal: int | None = None


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler says of one attempt; None is "not said".

    Attributes:
        state: Slurm's word for where it is.
        exit_code: Its exit status; None when a signal ended it.
        signal: Number of that signal.
        reason: Why it waits or ended, in Slurm's words.
        cancelled_by: Who cancelled it.
        nodes: Its nodes, in Slurm's short form.
        submitted_at_s: Submission or requeueing, seconds since the epoch.
        started_at_s: Start, seconds since the epoch; None when it never started.
        ended_at_s: End, seconds since the epoch.
        steps: Its steps.
    """

    state: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    cancelled_by: str | None = None
    nodes: str | None = None
    submitted_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None
    steps: tuple[Step, ...] = ()
