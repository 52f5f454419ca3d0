"""Rules that find a failure's cause: what the scheduler knows, then what the rank that failed first says.

Each rule looks for one cause and says nothing where it is not sure; the first that speaks is right. What Slurm itself
decided comes first, then what the rank that failed first says of itself, then what is left.
"""

import re
from collections.abc import Callable

from hpcdist.jobs.advice import RAISE, time_text
from hpcdist.jobs.diagnosis.evidence import (
    KILLED,
    SHORT_TAIL_LINES,
    TERMINATED,
    Evidence,
    describe_exit,
    format_ranks,
    name_rank,
)
from hpcdist.jobs.diagnosis.log_patterns import (
    BAD_COMMAND,
    CANCELLED_FOR,
    CUDA_OUT_OF_MEMORY,
    ERROR,
    FULL_DISK,
    HANG,
    HINT,
    LIGHTNING_LAYOUT,
    MISSING_FILE,
    MISSING_MODULE,
    NO_MEMORY,
    NODE_FAILURE,
    NOT_BEGUN,
    OOM_KILL,
    TASK_END,
    WAITING,
    find_barrier_ranks,
    find_line,
    find_time_out,
    is_lost_peer,
)
from hpcdist.records.job import Cause
from hpcdist.records.ranks import HANG_STATUS, LOST_PEER_STATUS, STOPPED_STATUS, RankUsage
from hpcdist.units import format_duration

# A rank that failed so long before the job's end was not ended by what ended the job.
LONG_BEFORE_S = 60.0
_SIGNAL_HINTS = {
    KILLED: "somebody killed it, or the node ran out of memory: hpcdist seff shows how much it used",
    TERMINATED: "somebody outside ended it: a preemption that it did not wait out, scancel --signal, kill",
    6: "a library stopped the program: the last lines say which",
    7: "its memory went away: a file it maps is gone, or /dev/shm is full",
    11: "a library crashed: python -X faulthandler shows where",
}


def failed_long_before(evidence: Evidence) -> Cause | None:
    """A rank failed on its own, and what ended the job much later only ended the waiting."""
    first, ended_at_s = evidence.culprit, evidence.ending.ended_at_s
    if first is None or first.ended_at_s is None or ended_at_s is None:
        return None
    on_its_own = evidence.innocence(first) in (0, 1)
    if not on_its_own or first.ended_at_s >= ended_at_s - LONG_BEFORE_S:
        return None
    return next((cause for rule in OF_ONE_RANK if (cause := rule(evidence))), None)


def preflight(evidence: Evidence) -> Cause | None:
    """The built-in training found a node that is not fit, before it began."""
    told = (rank.training.fault for rank in evidence.ranks if rank.training)
    fault = next((one for one in told if one), None)
    if fault is None:
        return None
    blamed = next((rank for rank in evidence.ranks if rank.rank == fault.rank), None)
    hint = evidence.rerun("exclude", fault.host) if fault.host else fault.hint
    return evidence.cause("preflight", f"the preflight failed: {fault.sentence}", hint, rank=blamed)


def stopped(evidence: Evidence) -> Cause | None:
    """A program that can go on saved its work and stopped, and nobody requeued it."""
    job = evidence.job
    codes = {rank.exit_code for rank in evidence.ranks} or {evidence.ending.exit_code}
    by_itself = evidence.culprit and evidence.culprit.exit_code != STOPPED_STATUS
    if job is None or not job.goes_on or STOPPED_STATUS not in codes or by_itself:
        return None
    return evidence.cause("stopped", "it saved its work and stopped unfinished, and was not requeued", evidence.go_on())


def hang(evidence: Evidence) -> Cause | None:
    """The built-in training saw that no step was made."""
    sign = evidence.said(HANG)
    if evidence.culprit is None or (evidence.culprit.exit_code != HANG_STATUS and not sign):
        return None
    made = f"made no step for {sign[1]} s" if sign else "made no step"
    blamed, sentence = evidence.culprit, f"{evidence.who} {made}"
    if _waited(evidence, blamed):
        silent = [rank for rank in evidence.ranks if rank.exit_code != 0 and not _waited(evidence, rank)]
        if len(silent) == 1:
            blamed, sentence = silent[0], f"{name_rank(silent[0])} {made}: {evidence.who} waited for it"
        elif silent:
            numbers = format_ranks([rank.rank for rank in silent])
            sentence = f"one of ranks {numbers} {made}: {evidence.who} waited for it"
        else:
            sentence = f"all ranks waited for each other: {evidence.who} {made}"
    hint = f"see what it was doing: hpcdist logs --rank {blamed.rank} {evidence.name}; py-spy dump shows it live"
    return evidence.cause("hang", sentence, hint, rank=blamed)


def _waited(evidence: Evidence, rank: RankUsage) -> bool:
    log = evidence.log_of(rank)
    return log is not None and find_line(WAITING, log.lines) is not None


def cuda_out_of_memory(evidence: Evidence) -> Cause | None:
    """The GPU's memory is too small."""
    sign = evidence.said(CUDA_OUT_OF_MEMORY)
    if sign is None:
        return None
    hint = "use a smaller batch, more GPUs for the same global batch, gradient accumulation, or a GPU with more memory"
    return evidence.cause("cuda-out-of-memory", f"{evidence.who} ran out of GPU memory", hint, sign)


def out_of_memory(evidence: Evidence) -> Cause | None:
    """The program could not get memory, or was killed with its memory full."""
    sign = evidence.said(NO_MEMORY)
    no_memory = sign is not None or (evidence.raised is not None and evidence.raised.name == "MemoryError")
    killed = evidence.culprit is not None and evidence.culprit.signal == KILLED and evidence.is_memory_short()
    if not no_memory and not killed:
        return None
    what = "was killed with its memory full" if killed else "could not get the memory it wanted"
    proof = evidence.memory_proof()
    return evidence.cause("out-of-memory", f"{evidence.who} {what}", evidence.more_memory(), proof, sign)


def full_disk(evidence: Evidence) -> Cause | None:
    """There was no room to write to."""
    sign = evidence.said(FULL_DISK)
    if sign is None:
        return None
    what, hint = "no space is left on the disk", "free some space (df -h, du -sh *), or write elsewhere"
    if "quota" in sign[0]:
        what, hint = "its quota is used up", "delete what is not needed (quota -s, du -sh *)"
    return evidence.cause("full-disk", f"{evidence.who} could not write: {what}", hint, sign)


def missing_module(evidence: Evidence) -> Cause | None:
    """A Python module is not installed for the interpreter that ran."""
    sign = evidence.said(MISSING_MODULE)
    if sign is None:
        return None
    hint = f"install {sign[1]} into the environment the job uses, or activate the right one with --setup"
    return evidence.cause("missing-module", f"{evidence.who} found no module {sign[1]!r}", hint, sign)


def bad_script(evidence: Evidence) -> Cause | None:
    """The shell or srun could not start a program."""
    code = evidence.culprit.exit_code if evidence.culprit else evidence.ending.exit_code
    sign = find_line(BAD_COMMAND, evidence.lines[-SHORT_TAIL_LINES:])
    if evidence.raised or code not in (1, 2, 126, 127) or (sign is None and code in (1, 2)):
        return None
    why = {126: "a program is not executable", 127: "a program was not found"}.get(code or 0, "a line of it failed")
    hint = "check the command and the --setup lines; what the login node has, the nodes may need a module for"
    where = f" ({evidence.who})" if evidence.culprit else ""
    return evidence.cause("bad-script", f"the script failed{where}: {sign[0] if sign else why}", hint)


def missing_data(evidence: Evidence) -> Cause | None:
    """A file that the program wanted is not there."""
    sign = evidence.said(MISSING_FILE)
    if sign is None:
        return None
    told = find_line(HINT, evidence.lines)
    hint = told[1] if told else "check the path from a compute node; relative paths start where the job was submitted"
    sentence = f"{evidence.who} did not find its data: {sign[1] or sign[2]}"
    return evidence.cause("missing-data", sentence, hint, sign)


def time_out(evidence: Evidence) -> Cause | None:
    """Ranks waited for others in vain: those others are to blame."""
    sign = find_time_out(evidence.lines)
    if evidence.culprit is None or sign is None:
        return None
    silent = _silent_ranks(evidence)
    missing = sorted(set(range(evidence.world_size)) - {rank.rank for rank in evidence.ranks})
    if len(silent) + len(missing) == 1:
        name = name_rank(silent[0]) if silent else f"rank {missing[0]}, which never started,"
        sentence = f"{name} did not join the others: {evidence.who} waited for it until its time-out"
    elif silent or missing:
        numbers = format_ranks(sorted([*missing, *(rank.rank for rank in silent)]))
        sentence = f"ranks {numbers} did not join the others: {evidence.who} waited for them until its time-out"
    else:
        sentence = f"all ranks waited for each other until the time-out of {evidence.who}"
    number = silent[0].rank if silent else evidence.culprit.rank
    hint = f"see what it was doing: hpcdist logs --rank {number} {evidence.name}"
    return evidence.cause("time-out", sentence, hint, sign, rank=silent[0] if silent else None)


def _silent_ranks(evidence: Evidence) -> list[RankUsage]:
    """The ranks that no time-out message is from, or that a barrier names."""
    named = {number for log in evidence.logs for number in find_barrier_ranks(log.lines)}
    if named:
        return [rank for rank in evidence.ranks if rank.rank in named]
    logs = [(rank, evidence.log_of(rank)) for rank in evidence.ranks if rank.exit_code != 0]
    return [rank for rank, log in logs if not (log and find_time_out(log.lines))]


def lost_peer(evidence: Evidence) -> Cause | None:
    """A rank lost its connection to another that did not say why it went; the one that vanished is to blame."""
    said = evidence.raised is not None and is_lost_peer(evidence.raised.text)
    lost = evidence.culprit is not None and (said or evidence.culprit.exit_code == LOST_PEER_STATUS)
    # Slurm may end a rank before it notices that its connection broke.
    ended = evidence.culprit is not None and evidence.culprit.signal == TERMINATED
    gone = [rank for rank in evidence.ranks if rank.ended_at_s is None]
    proof = evidence.raised.text.split("\n")[0] if evidence.raised else None
    if len(gone) == 1 and (lost or ended):
        then = f"{evidence.who} lost its connection to it" if lost else f"{evidence.who} was ended after it"
        sentence = f"{name_rank(gone[0])} vanished without a word: {then}"
        hint = evidence.rerun("exclude", gone[0].host)
        return evidence.cause("lost-peer", sentence, hint, proof, evidence.found(TASK_END), rank=gone[0])
    if not lost:
        return None
    sentence = f"{evidence.who} lost its connection to another rank, and no rank says that it failed before"
    hint = "submit it again; a node or the network between them may be bad"
    return evidence.cause("lost-peer", sentence, hint, proof)


def user_exception(evidence: Evidence) -> Cause | None:
    """The program raised, or ended with an error of ours."""
    if evidence.raised is not None and not evidence.raised.is_interruption:
        where = f" at {evidence.raised.where}" if evidence.raised.where else ""
        hint = f"mend {evidence.raised.where}" if evidence.raised.where else "look at its log"
        if (job := evidence.job) and job.command and LIGHTNING_LAYOUT.search(evidence.raised.text):
            trainer = f"Trainer(devices={job.layout.ranks_per_node}, num_nodes={job.layout.nodes})"
            hint = f"a Lightning script needs {trainer}"
        sentence = f"{evidence.who} raised {evidence.raised.text.splitlines()[0]}{where}"
        return evidence.cause("user-exception", sentence, hint)
    error, told = find_line(ERROR, evidence.lines[-4:]), find_line(HINT, evidence.lines[-4:])
    if error is None or evidence.culprit is None:
        return None
    return evidence.cause("user-exception", f"{evidence.who} ended with an error: {error[1]}", told[1] if told else "")


def killed(evidence: Evidence) -> Cause | None:
    """A signal that none of the above explains."""
    if evidence.culprit is None or not evidence.culprit.signal:
        return None
    sentence = f"{evidence.who} ended with {describe_exit(None, evidence.culprit.signal)}"
    return evidence.cause("killed", sentence, _SIGNAL_HINTS.get(evidence.culprit.signal, ""), evidence.memory_proof())


OF_ONE_RANK = (
    preflight,
    stopped,
    hang,
    cuda_out_of_memory,
    out_of_memory,
    full_disk,
    missing_module,
    bad_script,
    missing_data,
    time_out,
    lost_peer,
    user_exception,
    killed,
)


def ended_before_the_ranks(evidence: Evidence) -> Cause | None:
    """The script ended before any rank started, by itself or because Slurm could start none."""
    if evidence.ranks or evidence.run is None or not evidence.ending.exit_code:
        return None
    if said := evidence.found(NOT_BEGUN):
        hint = f"hpcdist rerun {evidence.run}; if Slurm says so again, ask the site's support"
        return evidence.cause("never-started", f"Slurm began no rank of it: {said[1]}", hint)
    sentence = f"the script ended with exit code {evidence.ending.exit_code} before any rank started"
    return evidence.cause("bad-script", sentence, "look at the --setup lines and the end of the batch script's log")


def unknown(evidence: Evidence) -> Cause:
    """All that is known, and no guess."""
    ending = evidence.ending
    if evidence.culprit is not None:
        code = describe_exit(evidence.culprit.exit_code, evidence.culprit.signal) or "an exception, and went on"
        return evidence.cause("unknown", f"{evidence.who} ended with {code}", "", evidence.memory_proof())
    words = describe_exit(ending.exit_code, ending.signal) or ""
    reason = ending.reason or ""
    sentence = ", ".join(word for word in (words, reason) if word) or "nobody says why"
    return evidence.cause("unknown", sentence, "", evidence.memory_proof())


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


def refused(evidence: Evidence) -> Cause | None:
    """Slurm did not take the script."""
    if evidence.state != "REFUSED":
        return None
    words = evidence.ending.reason or "it did not say why"
    return evidence.cause("bad-script", f"Slurm refused the job: {words}", "mend the request and submit it again")


def lost(evidence: Evidence) -> Cause | None:
    """Slurm does not know it any more, and did not see it end: its controller came back without it."""
    if evidence.state != "LOST":
        return None
    sentence = f"Slurm lost the job: {evidence.ending.reason or 'the controller has forgotten it'}"
    return evidence.cause("lost", sentence, evidence.go_on(), "sacctmgr show runawayjobs lists such jobs")


def completed(evidence: Evidence) -> Cause | None:
    """Nothing went wrong."""
    return evidence.cause("completed", "it ended well") if evidence.state == "COMPLETED" else None


def waiting(evidence: Evidence) -> Cause | None:
    """The job waits, or was ended before it started."""
    ending = evidence.ending
    reason = ending.reason or ""
    found = next((hint for start, hint in WAITING_HINTS.items() if _begins(reason, start)), "")
    hint = found.format(job=evidence.job_id or "it")
    if evidence.state == "PENDING":
        return evidence.cause("never-started", f"it waits{f': {reason}' if reason else ''}", hint)
    never_ran = ending.nodes is None and not evidence.ranks and ending.submitted_at_s is not None
    if evidence.state != "CANCELLED" or not never_ran:
        return None
    if reason.startswith("DependencyNeverSatisfied"):
        return evidence.cause("never-started", "a job it depends on failed, so it was cancelled unstarted", hint)
    by = f" by {ending.cancelled_by}" if ending.cancelled_by else ""
    return evidence.cause("cancelled", f"it was cancelled{by} before it started")


def is_held(state: str, reason: str | None) -> bool:
    """Whether a job waits until somebody releases it, although nobody but Slurm has held it."""
    return state == "PENDING" and any(_begins(reason or "", start) for start in HELD)


def has_launch_failed(state: str, reason: str | None) -> bool:
    """Whether a job is held because a node did not start it, as where a restarted controller starts it once more."""
    return state == "PENDING" and _begins(reason or "", LAUNCH_FAILED)


def _begins(reason: str, start: str) -> bool:
    return reason.replace(" ", "_").startswith(start.replace(" ", "_"))


def running(evidence: Evidence) -> Cause | None:
    """It is not over; a rank that failed already is told."""
    if evidence.state not in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "STOPPED", "RESIZING"):
        return None
    if evidence.culprit is None:
        return evidence.cause("running", "it runs")
    sentence = f"it runs still, but {evidence.who} failed"
    return evidence.cause("running", sentence, "if it does not end by itself, cancel it")


def killed_for_memory(evidence: Evidence) -> Cause | None:
    """Slurm or the kernel ended it for wanting more memory than it was given."""
    killed = [step.name for step in evidence.ending.steps if step.state == "OUT_OF_MEMORY"]
    sign = evidence.found(OOM_KILL)
    if evidence.state == "COMPLETED" or not (evidence.state == "OUT_OF_MEMORY" or killed or sign):
        return None
    sentence = f"{evidence.who} used more memory than it was given"
    return evidence.cause("out-of-memory", sentence, evidence.more_memory(), evidence.memory_proof(), sign)


def node_failure(evidence: Evidence) -> Cause | None:
    """A node died, or did not boot."""
    said, seen = evidence.found(CANCELLED_FOR), evidence.found(NODE_FAILURE)
    by_log = seen is not None or (said is not None and said[1] == "NODE FAILURE")
    if evidence.state not in ("NODE_FAIL", "BOOT_FAIL") and not (by_log and evidence.state != "COMPLETED"):
        return None
    lost = _silent_rank(evidence)
    nodes = evidence.ending.nodes
    only = nodes if nodes and "[" not in nodes and "," not in nodes else None
    node = seen[1] if seen else lost.host if lost else only
    hint = evidence.rerun("exclude", node) if node else "submit it again; sinfo -R tells which node is down"
    sentence = f"node {node} failed" if node else f"one of its nodes failed ({nodes or 'nobody says which'})"
    there = next((rank for rank in evidence.ranks if rank.host == node), lost)
    return evidence.cause("node-failure", sentence, hint, seen, rank=there)


def _silent_rank(evidence: Evidence) -> RankUsage | None:
    """The only rank, or the first of the only node, whose end nobody wrote down while others ended."""
    open_ended = [rank for rank in evidence.ranks if rank.ended_at_s is None]
    alone = len({rank.host for rank in open_ended}) == 1 and len(open_ended) < len(evidence.ranks)
    return open_ended[0] if alone else None


def preempted(evidence: Evidence) -> Cause | None:
    """A job with a higher priority took its nodes."""
    said = evidence.found(CANCELLED_FOR)
    if evidence.state != "PREEMPTED" and not _is_ended_for("PREEMPTION", said, evidence):
        return None
    hint = "submit it again, with --sbatch requeue= where the site allows it, or in a partition that is not preempted"
    return evidence.cause("preempted", "a job of higher priority took its nodes", hint, said)


def time_limit(evidence: Evidence) -> Cause | None:
    """It ran into its time limit, or would have missed its deadline."""
    if evidence.state == "DEADLINE":
        return evidence.cause("time-limit", "it could not end before its deadline", "submit it with a later --deadline")
    said = evidence.found(CANCELLED_FOR)
    if evidence.state != "TIMEOUT" and not _is_ended_for("TIME LIMIT", said, evidence):
        return None
    limit_s, used_s = (evidence.pool.time_limit_s(), evidence.pool.wall_time_s()) if evidence.pool else (None, None)
    of = f" of {format_duration(limit_s)}" if limit_s else ""
    hint = evidence.rerun("time", time_text(RAISE * limit_s)) if limit_s else "ask for more with --time"
    proof = f"{format_duration(used_s)} used" if used_s else None
    return evidence.cause("time-limit", f"it ran into its time limit{of}", hint, proof, said)


def _is_ended_for(why: str, said: re.Match[str] | None, evidence: Evidence) -> bool:
    """Say whether slurmstepd named the reason where Slurm's state does not."""
    return said is not None and said[1] == why and evidence.state in ("FAILED", "CANCELLED")


def cancelled(evidence: Evidence) -> Cause | None:
    """Somebody ended it."""
    if evidence.state not in ("CANCELLED", "REVOKED"):
        return None
    by = evidence.ending.cancelled_by
    hint = f"hpcdist rerun {evidence.run}" if evidence.run else ""
    return evidence.cause("cancelled", f"it was cancelled{f' by {by}' if by else ''}", hint)


def requeued(evidence: Evidence) -> Cause | None:
    """An earlier attempt that was put back into the queue on purpose."""
    return evidence.cause("requeued", "it was put back into the queue") if evidence.state == "REQUEUED" else None


Rule = Callable[[Evidence], Cause | None]

RULES: tuple[Rule, ...] = (
    refused,
    lost,
    completed,
    waiting,
    running,
    killed_for_memory,
    failed_long_before,
    node_failure,
    preempted,
    time_limit,
    cancelled,
    requeued,
    *OF_ONE_RANK,
    ended_before_the_ranks,
)


def judge(evidence: Evidence) -> Cause:
    """Why an attempt ended as it did, or does not run; of kind `unknown` with all that is known rather than a guess."""
    for rule in RULES:
        if cause := rule(evidence):
            return cause
    return unknown(evidence)
