"""Causes that the scheduler itself knows: it refused, waits, or ended the job. Pure."""

from hpcdist.advice import RAISE, time_text
from hpcdist.evidence import Evidence
from hpcdist.records.job import Cause
from hpcdist.records.ranks import RankUsage
from hpcdist.signs import CANCELLED_FOR, NODE_FAILURE, OOM_KILL
from hpcdist.units import format_duration

# What Slurm itself holds a job for after it could not start it: such a job waits for ever. Some
# releases of squeue have blanks for the underscores.
LAUNCH_FAILED = "launch_failed_requeued_held"
HELD = (LAUNCH_FAILED, "job_requeued_in_held_state")  # the second is also what `scontrol requeuehold` leaves
# What to do about what squeue says of a job that waits (man squeue, JOB REASON CODES), by the reason's beginning.
WAITING_HINTS = {
    "DependencyNeverSatisfied": "a job it depends on failed, so it will never start: cancel it, mend that one first",
    "Dependency": "it starts when the jobs it depends on are over; scontrol show job tells which",
    "Resources": "it is next; a smaller or shorter request may start earlier",
    "Priority": "other jobs come first; a smaller or shorter request may start earlier",
    "BeginTime": "it waits for its begin time, or out the pause after a requeue",
    "JobHeldUser": "it is held: scontrol release {job}",
    "JobHeldAdmin": "an administrator holds it: ask them",
    "job_requeued_in_held_state": "it was requeued and held after a failed start: scontrol release {job}",
    LAUNCH_FAILED: "its start failed on a node, and it is held: scontrol release {job}",
    "PartitionTimeLimit": "it asks for more time than the partition gives, and will not start: lower --time",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives, and will not start: lower --nodes",
    "PartitionConfig": "the partition can't meet the request: choose another --partition",
    "BadConstraints": "no node has what it asks for: change --constraint or the request",
    "ReqNodeNotAvail": "nodes it needs are down or reserved: leave out --nodelist, or wait",
    "Reservation": "it waits for its reservation",
    "Job's account not permitted": "its partition is closed to your account, and it will not start: --partition NAME",
    "Job's QOS not permitted": "its partition is closed to its QOS, and it will not start: --qos NAME",
    "QOSMaxWallDurationPerJobLimit": "it asks for more time than its QOS gives, and will not start: lower --time",
    "QOS": "a limit of its QOS is reached: wait for your other jobs, or ask for less",
    "Assoc": "a limit of your account is reached: wait for your other jobs, or ask for less",
    "Licenses": "it waits for a licence",
    "NodeDown": "a node it needs is down",
}


def refused(attempt: Evidence) -> Cause | None:
    """Slurm did not take the script."""
    if attempt.state != "REFUSED":
        return None
    words = attempt.ending.reason or "it did not say why"
    return attempt.cause("bad-script", f"Slurm refused the job: {words}", "mend the request and submit it again")


def lost(attempt: Evidence) -> Cause | None:
    """Slurm does not know it any more, and did not see it end: its controller came back without it."""
    if attempt.state != "LOST":
        return None
    words = attempt.ending.reason or "the controller has forgotten it"
    return attempt.cause(
        "lost", f"Slurm lost the job: {words}", attempt.go_on(), "sacctmgr show runawayjobs lists such jobs"
    )


def completed(attempt: Evidence) -> Cause | None:
    """Nothing went wrong."""
    return attempt.cause("completed", "it ended well") if attempt.state == "COMPLETED" else None


def waiting(attempt: Evidence) -> Cause | None:
    """The job waits, or was ended before it started."""
    ending = attempt.ending
    reason = ending.reason or ""
    found = next((hint for start, hint in WAITING_HINTS.items() if _begins(reason, start)), "")
    hint = found.format(job=attempt.job_id or "it")
    if attempt.state == "PENDING":
        return attempt.cause("never-started", f"it waits{f': {reason}' if reason else ''}", hint)
    never_ran = ending.nodes is None and not attempt.ranks and ending.submitted_at_s is not None
    if attempt.state not in ("CANCELLED", "DEADLINE", "BOOT_FAIL") or not never_ran:
        return None
    if attempt.state == "CANCELLED" and reason.startswith("DependencyNeverSatisfied"):
        return attempt.cause("never-started", "a job it depends on failed, so it was cancelled unstarted", hint)
    by = f" by {ending.cancelled_by}" if ending.cancelled_by else ""
    return (
        attempt.cause("cancelled", f"it was cancelled{by} before it started") if attempt.state == "CANCELLED" else None
    )


def is_held(state: str, reason: str | None) -> bool:
    """Whether a job waits until somebody releases it, although nobody but Slurm has held it."""
    return state == "PENDING" and any(_begins(reason or "", start) for start in HELD)


def has_launch_failed(state: str, reason: str | None) -> bool:
    """Whether a job is held because a node did not start it, as where a restarted controller starts it once more."""
    return state == "PENDING" and _begins(reason or "", LAUNCH_FAILED)


def _begins(reason: str, start: str) -> bool:
    return reason.replace(" ", "_").startswith(start.replace(" ", "_"))


def running(attempt: Evidence) -> Cause | None:
    """It is not over; a rank that failed already is told."""
    if attempt.state not in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "STOPPED", "RESIZING"):
        return None
    if attempt.culprit is None:
        return attempt.cause("running", "it runs")
    return attempt.cause(
        "running", f"it runs still, but {attempt.who} failed", "if it does not end by itself, cancel it"
    )


def out_of_memory(attempt: Evidence) -> Cause | None:
    """Slurm or the kernel ended it for wanting more memory than it was given."""
    killed = [step.name for step in attempt.ending.steps if step.state == "OUT_OF_MEMORY"]
    sign = attempt.found(OOM_KILL)
    if attempt.state == "COMPLETED" or not (attempt.state == "OUT_OF_MEMORY" or killed or sign):
        return None
    proof = sign.string if sign else None
    return attempt.cause(
        "out-of-memory",
        f"{attempt.who} used more memory than it was given",
        attempt.more_memory(),
        attempt.memory_proof(),
        proof,
    )


def node_failure(attempt: Evidence) -> Cause | None:
    """A node died, or did not boot."""
    said, seen = attempt.found(CANCELLED_FOR), attempt.found(NODE_FAILURE)
    by_log = seen is not None or (said is not None and said[1] == "NODE FAILURE")
    if attempt.state not in ("NODE_FAIL", "BOOT_FAIL") and not (by_log and attempt.state != "COMPLETED"):
        return None
    lost = _silent_rank(attempt)
    nodes = attempt.ending.nodes
    node = (
        seen[1] if seen else lost.host if lost else nodes if nodes and "[" not in nodes and "," not in nodes else None
    )
    hint = attempt.rerun("exclude", node) if node else "submit it again; sinfo -R tells which node is down"
    sentence = f"node {node} failed" if node else f"one of its nodes failed ({nodes or 'nobody says which'})"
    there = next((rank for rank in attempt.ranks if rank.host == node), lost)
    return attempt.cause("node-failure", sentence, hint, seen.string if seen else None, rank=there)


def _silent_rank(attempt: Evidence) -> RankUsage | None:
    """The only rank, or the first of the only node, whose end nobody wrote down while others ended."""
    open_ended = [rank for rank in attempt.ranks if rank.ended_at_s is None]
    alone = len({rank.host for rank in open_ended}) == 1 and len(open_ended) < len(attempt.ranks)
    return open_ended[0] if alone else None


def preempted(attempt: Evidence) -> Cause | None:
    """A job with a higher priority took its nodes."""
    said = attempt.found(CANCELLED_FOR)
    if attempt.state != "PREEMPTED" and not (
        said and said[1] == "PREEMPTION" and attempt.state in ("FAILED", "CANCELLED")
    ):
        return None
    hint = "submit it again, with --sbatch requeue= where the site allows it, or in a partition that is not preempted"
    return attempt.cause("preempted", "a job of higher priority took its nodes", hint, said.string if said else None)


def time_limit(attempt: Evidence) -> Cause | None:
    """It ran into its time limit, or would have missed its deadline."""
    if attempt.state == "DEADLINE":
        return attempt.cause("time-limit", "it could not end before its deadline", "submit it with a later --deadline")
    said = attempt.found(CANCELLED_FOR)
    if attempt.state != "TIMEOUT" and not (
        said and said[1] == "TIME LIMIT" and attempt.state in ("FAILED", "CANCELLED")
    ):
        return None
    limit_s = attempt.pool.time_limit_s() if attempt.pool else None
    of = f" of {format_duration(limit_s)}" if limit_s else ""
    hint = attempt.rerun("time", time_text(RAISE * limit_s)) if limit_s else "ask for more with --time"
    proof = (
        f"{format_duration(attempt.pool.wall_time_s() or 0)} used"
        if attempt.pool and attempt.pool.wall_time_s()
        else None
    )
    return attempt.cause("time-limit", f"it ran into its time limit{of}", hint, proof, said.string if said else None)


def cancelled(attempt: Evidence) -> Cause | None:
    """Somebody ended it."""
    if attempt.state not in ("CANCELLED", "REVOKED"):
        return None
    by = attempt.ending.cancelled_by
    hint = f"hpcdist rerun {attempt.run}" if attempt.run else ""
    return attempt.cause("cancelled", f"it was cancelled{f' by {by}' if by else ''}", hint)


def requeued(attempt: Evidence) -> Cause | None:
    """An earlier attempt that was put back into the queue on purpose."""
    return attempt.cause("requeued", "it was put back into the queue") if attempt.state == "REQUEUED" else None
