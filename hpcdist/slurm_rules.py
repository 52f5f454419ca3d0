"""Causes that the scheduler itself knows: it refused, waits, or ended the job. Pure."""

from hpcdist.advice import RAISE, time_text
from hpcdist.case import Case
from hpcdist.cause import Cause
from hpcdist.record import RankUsage
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


def refused(case: Case) -> Cause | None:
    """Slurm did not take the script."""
    if case.state != "REFUSED":
        return None
    words = case.evidence.ending.reason or "it did not say why"
    return case.cause("bad-script", f"Slurm refused the job: {words}", "mend the request and submit it again")


def lost(case: Case) -> Cause | None:
    """Slurm does not know it any more, and did not see it end: its controller came back without it."""
    if case.state != "LOST":
        return None
    words = case.evidence.ending.reason or "the controller has forgotten it"
    return case.cause("lost", f"Slurm lost the job: {words}", case.go_on(), "sacctmgr show runawayjobs lists such jobs")


def completed(case: Case) -> Cause | None:
    """Nothing went wrong."""
    return case.cause("completed", "it ended well") if case.state == "COMPLETED" else None


def waiting(case: Case) -> Cause | None:
    """The job waits, or was ended before it started."""
    ending = case.evidence.ending
    reason = ending.reason or ""
    found = next((hint for start, hint in WAITING_HINTS.items() if _begins(reason, start)), "")
    hint = found.format(job=case.evidence.job_id or "it")
    if case.state == "PENDING":
        return case.cause("never-started", f"it waits{f': {reason}' if reason else ''}", hint)
    never_ran = ending.nodes is None and not case.evidence.ranks and ending.submitted_at_s is not None
    if case.state not in ("CANCELLED", "DEADLINE", "BOOT_FAIL") or not never_ran:
        return None
    if case.state == "CANCELLED" and reason.startswith("DependencyNeverSatisfied"):
        return case.cause("never-started", "a job it depends on failed, so it was cancelled unstarted", hint)
    by = f" by {ending.cancelled_by}" if ending.cancelled_by else ""
    return case.cause("cancelled", f"it was cancelled{by} before it started") if case.state == "CANCELLED" else None


def is_held(state: str, reason: str | None) -> bool:
    """Whether a job waits until somebody releases it, although nobody but Slurm has held it."""
    return state == "PENDING" and any(_begins(reason or "", start) for start in HELD)


def has_launch_failed(state: str, reason: str | None) -> bool:
    """Whether a job is held because a node did not start it, as where a restarted controller starts it once more."""
    return state == "PENDING" and _begins(reason or "", LAUNCH_FAILED)


def _begins(reason: str, start: str) -> bool:
    return reason.replace(" ", "_").startswith(start.replace(" ", "_"))


def running(case: Case) -> Cause | None:
    """It is not over; a rank that failed already is told."""
    if case.state not in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "STOPPED", "RESIZING"):
        return None
    if case.culprit is None:
        return case.cause("running", "it runs")
    return case.cause("running", f"it runs still, but {case.who} failed", "if it does not end by itself, cancel it")


def out_of_memory(case: Case) -> Cause | None:
    """Slurm or the kernel ended it for wanting more memory than it was given."""
    killed = [step.name for step in case.evidence.ending.steps if step.state == "OUT_OF_MEMORY"]
    sign = case.found(OOM_KILL)
    if case.state == "COMPLETED" or not (case.state == "OUT_OF_MEMORY" or killed or sign):
        return None
    proof = sign.string if sign else None
    return case.cause(
        "out-of-memory",
        f"{case.who} used more memory than it was given",
        case.more_memory(),
        case.memory_proof(),
        proof,
    )


def node_failure(case: Case) -> Cause | None:
    """A node died, or did not boot."""
    said, seen = case.found(CANCELLED_FOR), case.found(NODE_FAILURE)
    by_log = seen is not None or (said is not None and said[1] == "NODE FAILURE")
    if case.state not in ("NODE_FAIL", "BOOT_FAIL") and not (by_log and case.state != "COMPLETED"):
        return None
    lost = _silent_rank(case)
    nodes = case.evidence.ending.nodes
    node = (
        seen[1] if seen else lost.host if lost else nodes if nodes and "[" not in nodes and "," not in nodes else None
    )
    hint = case.rerun("exclude", node) if node else "submit it again; sinfo -R tells which node is down"
    sentence = f"node {node} failed" if node else f"one of its nodes failed ({nodes or 'nobody says which'})"
    there = next((rank for rank in case.evidence.ranks if rank.host == node), lost)
    return case.cause("node-failure", sentence, hint, seen.string if seen else None, rank=there)


def _silent_rank(case: Case) -> RankUsage | None:
    """The only rank, or the first of the only node, whose end nobody wrote down while others ended."""
    open_ended = [rank for rank in case.evidence.ranks if rank.ended_at_s is None]
    alone = len({rank.host for rank in open_ended}) == 1 and len(open_ended) < len(case.evidence.ranks)
    return open_ended[0] if alone else None


def preempted(case: Case) -> Cause | None:
    """A job with a higher priority took its nodes."""
    said = case.found(CANCELLED_FOR)
    if case.state != "PREEMPTED" and not (said and said[1] == "PREEMPTION" and case.state in ("FAILED", "CANCELLED")):
        return None
    hint = "submit it again, with --sbatch requeue= where the site allows it, or in a partition that is not preempted"
    return case.cause("preempted", "a job of higher priority took its nodes", hint, said.string if said else None)


def time_limit(case: Case) -> Cause | None:
    """It ran into its time limit, or would have missed its deadline."""
    if case.state == "DEADLINE":
        return case.cause("time-limit", "it could not end before its deadline", "submit it with a later --deadline")
    said = case.found(CANCELLED_FOR)
    if case.state != "TIMEOUT" and not (said and said[1] == "TIME LIMIT" and case.state in ("FAILED", "CANCELLED")):
        return None
    limit_s = case.pool.time_limit_s() if case.pool else None
    of = f" of {format_duration(limit_s)}" if limit_s else ""
    hint = case.rerun("time", time_text(RAISE * limit_s)) if limit_s else "ask for more with --time"
    proof = f"{format_duration(case.pool.wall_time_s() or 0)} used" if case.pool and case.pool.wall_time_s() else None
    return case.cause("time-limit", f"it ran into its time limit{of}", hint, proof, said.string if said else None)


def cancelled(case: Case) -> Cause | None:
    """Somebody ended it."""
    if case.state not in ("CANCELLED", "REVOKED"):
        return None
    by = case.evidence.ending.cancelled_by
    hint = f"hpcdist rerun {case.evidence.run}" if case.evidence.run else ""
    return case.cause("cancelled", f"it was cancelled{f' by {by}' if by else ''}", hint)


def requeued(case: Case) -> Cause | None:
    """An earlier attempt that was put back into the queue on purpose."""
    return case.cause("requeued", "it was put back into the queue") if case.state == "REQUEUED" else None
