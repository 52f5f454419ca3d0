"""What a drill is, what was seen of its job, and whether that is as it should be. Pure."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from hpcdist.records.job import Cause
from hpcdist.records.job import Kind as CauseKind

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
    """Whether a job did as it should; None when it was not put to the test.

    Args:
        kind: How it was broken.
        seen: What was seen of it.
        hang_timeout_s: Its `--hang-timeout`.
    """
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
