"""Causes that lie with the program: what the rank that failed first says of itself. Pure."""

from hpcdist.case import SHORT_TAIL_LINES, Case, describe_exit, format_ranks, name_rank
from hpcdist.cause import Cause
from hpcdist.evidence import KILLED, TERMINATED
from hpcdist.record import HANG_STATUS, LOST_PEER_STATUS, STOPPED_STATUS, RankUsage
from hpcdist.signs import (
    BAD_COMMAND,
    CUDA_OUT_OF_MEMORY,
    ERROR,
    FULL_DISK,
    HANG,
    HINT,
    LIGHTNING_LAYOUT,
    MISSING_FILE,
    MISSING_MODULE,
    NO_MEMORY,
    NOT_BEGUN,
    TASK_END,
    WAITING,
    find_barrier_ranks,
    find_line,
    find_time_out,
    is_lost_peer,
)

# A rank that failed so long before the job's end was not ended by what ended the job.
LONG_BEFORE_S = 60.0
_SIGNAL_HINTS = {
    KILLED: "somebody killed it, or the node ran out of memory: hpcdist seff shows how much it used",
    TERMINATED: "somebody outside ended it: a preemption that it did not wait out, scancel --signal, kill",
    6: "a library stopped the program: the last lines say which",
    7: "its memory went away: a file it maps is gone, or /dev/shm is full",
    11: "a library crashed: python -X faulthandler shows where",
}


def failed_long_before(case: Case) -> Cause | None:
    """A rank failed on its own, and what ended the job much later only ended the waiting."""
    first, ended_at_s = case.culprit, case.evidence.ending.ended_at_s
    if first is None or first.ended_at_s is None or ended_at_s is None:
        return None
    on_its_own = case.evidence.innocence(first) in (0, 1)
    return of_one_rank(case) if on_its_own and first.ended_at_s < ended_at_s - LONG_BEFORE_S else None


def of_one_rank(case: Case) -> Cause | None:
    """The first of the rules below that speaks."""
    return next((cause for rule in OF_ONE_RANK if (cause := rule(case))), None)


def preflight(case: Case) -> Cause | None:
    """The built-in training found a node that is not fit, before it began."""
    told = (rank.training.fault for rank in case.evidence.ranks if rank.training)
    fault = next((one for one in told if one), None)
    if fault is None:
        return None
    blamed = next((rank for rank in case.evidence.ranks if rank.rank == fault.rank), None)
    hint = case.rerun("exclude", fault.host) if fault.host else fault.hint
    return case.cause("preflight", f"the preflight failed: {fault.sentence}", hint, rank=blamed)


def stopped(case: Case) -> Cause | None:
    """A program that can go on saved its work and stopped, and nobody requeued it."""
    job = case.evidence.job
    codes = {rank.exit_code for rank in case.evidence.ranks} or {case.evidence.ending.exit_code}
    by_itself = case.culprit and case.culprit.exit_code != STOPPED_STATUS
    if job is None or not job.goes_on or STOPPED_STATUS not in codes or by_itself:
        return None
    return case.cause("stopped", "it saved its work and stopped unfinished, and was not requeued", case.go_on())


def hang(case: Case) -> Cause | None:
    """The built-in training saw that no step was made."""
    sign = case.said(HANG)
    if case.culprit is None or (case.culprit.exit_code != HANG_STATUS and not sign):
        return None
    made = f"made no step for {sign[1]} s" if sign else "made no step"
    blamed, sentence = case.culprit, f"{case.who} {made}"
    if _waited(case, blamed):
        silent = [rank for rank in case.evidence.ranks if rank.exit_code != 0 and not _waited(case, rank)]
        if len(silent) == 1:
            blamed, sentence = silent[0], f"{name_rank(silent[0])} {made}: {case.who} waited for it"
        elif silent:
            numbers = format_ranks([rank.rank for rank in silent])
            sentence = f"one of ranks {numbers} {made}: {case.who} waited for it"
        else:
            sentence = f"all ranks waited for each other: {case.who} {made}"
    hint = f"see what it was doing: hpcdist logs --rank {blamed.rank} {case.name}; py-spy dump shows it live"
    return case.cause("hang", sentence, hint, rank=blamed)


def _waited(case: Case, rank: RankUsage) -> bool:
    log = case.evidence.log_of(rank)
    return log is not None and find_line(WAITING, log.lines) is not None


def cuda_out_of_memory(case: Case) -> Cause | None:
    """The GPU's memory is too small."""
    sign = case.said(CUDA_OUT_OF_MEMORY)
    if sign is None:
        return None
    hint = "use a smaller batch, more GPUs for the same global batch, gradient accumulation, or a GPU with more memory"
    return case.cause("cuda-out-of-memory", f"{case.who} ran out of GPU memory", hint, sign.string)


def out_of_memory(case: Case) -> Cause | None:
    """The program could not get memory, or was killed with its memory full."""
    sign = case.said(NO_MEMORY)
    no_memory = sign is not None or (case.raised is not None and case.raised.name == "MemoryError")
    killed = case.culprit is not None and case.culprit.signal == KILLED and case.is_memory_short()
    if not no_memory and not killed:
        return None
    what = "was killed with its memory full" if killed else "could not get the memory it wanted"
    proof = sign.string if sign else None
    return case.cause("out-of-memory", f"{case.who} {what}", case.more_memory(), case.memory_proof(), proof)


def full_disk(case: Case) -> Cause | None:
    """There was no room to write to."""
    sign = case.said(FULL_DISK)
    if sign is None:
        return None
    quota = "quota" in sign[0]
    what = "its quota is used up" if quota else "no space is left on the disk"
    hint = (
        "delete what is not needed (quota -s, du -sh *)"
        if quota
        else "free some space (df -h, du -sh *), or write elsewhere"
    )
    return case.cause("full-disk", f"{case.who} could not write: {what}", hint, sign.string)


def missing_module(case: Case) -> Cause | None:
    """A Python module is not installed for the interpreter that ran."""
    sign = case.said(MISSING_MODULE)
    if sign is None:
        return None
    hint = f"install {sign[1]} into the environment the job uses, or activate the right one with --setup"
    return case.cause("missing-module", f"{case.who} found no module {sign[1]!r}", hint, sign.string)


def bad_script(case: Case) -> Cause | None:
    """The shell or srun could not start a program."""
    code = case.culprit.exit_code if case.culprit else case.evidence.ending.exit_code
    sign = find_line(BAD_COMMAND, case.lines[-SHORT_TAIL_LINES:])
    if case.raised or code not in (1, 2, 126, 127) or (sign is None and code in (1, 2)):
        return None
    why = {126: "a program is not executable", 127: "a program was not found"}.get(code or 0, "a line of it failed")
    hint = "check the command and the --setup lines; what the login node has, the nodes may need a module for"
    where = f" ({case.who})" if case.culprit else ""
    return case.cause("bad-script", f"the script failed{where}: {sign[0] if sign else why}", hint)


def missing_data(case: Case) -> Cause | None:
    """A file that the program wanted is not there."""
    sign = case.said(MISSING_FILE)
    if sign is None:
        return None
    told = find_line(HINT, case.lines)
    hint = told[1] if told else "check the path from a compute node; relative paths start where the job was submitted"
    return case.cause("missing-data", f"{case.who} did not find its data: {sign[1] or sign[2]}", hint, sign.string)


def time_out(case: Case) -> Cause | None:
    """Ranks waited for others in vain: those others are to blame."""
    sign = find_time_out(case.lines)
    if case.culprit is None or sign is None:
        return None
    silent = _silent_ranks(case)
    missing = sorted(set(range(case.evidence.world_size)) - {rank.rank for rank in case.evidence.ranks})
    if len(silent) + len(missing) == 1:
        name = name_rank(silent[0]) if silent else f"rank {missing[0]}, which never started,"
        sentence = f"{name} did not join the others: {case.who} waited for it until its time-out"
    elif silent or missing:
        numbers = format_ranks(sorted([*missing, *(rank.rank for rank in silent)]))
        sentence = f"ranks {numbers} did not join the others: {case.who} waited for them until its time-out"
    else:
        sentence = f"all ranks waited for each other until the time-out of {case.who}"
    number = silent[0].rank if silent else case.culprit.rank
    hint = f"see what it was doing: hpcdist logs --rank {number} {case.name}"
    return case.cause("time-out", sentence, hint, sign, rank=silent[0] if silent else None)


def _silent_ranks(case: Case) -> list[RankUsage]:
    """The ranks that no time-out message is from, or that a barrier names."""
    named = {number for log in case.evidence.logs for number in find_barrier_ranks(log.lines)}
    if named:
        return [rank for rank in case.evidence.ranks if rank.rank in named]
    logs = [(rank, case.evidence.log_of(rank)) for rank in case.evidence.ranks if rank.exit_code != 0]
    return [rank for rank, log in logs if not (log and find_time_out(log.lines))]


def lost_peer(case: Case) -> Cause | None:
    """A rank lost its connection to another that did not say why it went; the one that vanished is to blame."""
    said = case.raised is not None and is_lost_peer(case.raised.text)
    lost = case.culprit is not None and (said or case.culprit.exit_code == LOST_PEER_STATUS)
    # Slurm may end a rank before it notices that its connection broke.
    ended = case.culprit is not None and case.culprit.signal == TERMINATED
    gone = [rank for rank in case.evidence.ranks if rank.ended_at_s is None]
    proof = case.raised.text.split("\n")[0] if case.raised else None
    if len(gone) == 1 and (lost or ended):
        then = f"{case.who} lost its connection to it" if lost else f"{case.who} was ended after it"
        sentence = f"{name_rank(gone[0])} vanished without a word: {then}"
        seen = case.found(TASK_END)
        words = (proof, seen.string if seen else None)
        return case.cause("lost-peer", sentence, case.rerun("exclude", gone[0].host), *words, rank=gone[0])
    if not lost:
        return None
    sentence = f"{case.who} lost its connection to another rank, and no rank says that it failed before"
    return case.cause("lost-peer", sentence, "submit it again; a node or the network between them may be bad", proof)


def user_exception(case: Case) -> Cause | None:
    """The program raised, or ended with an error of ours."""
    if case.raised is not None and not case.raised.is_interruption:
        where = f" at {case.raised.where}" if case.raised.where else ""
        hint = f"mend {case.raised.where}" if case.raised.where else "look at its log"
        if (job := case.evidence.job) and job.command and LIGHTNING_LAYOUT.search(case.raised.text):
            trainer = f"Trainer(devices={job.layout.ranks_per_node}, num_nodes={job.layout.nodes})"
            hint = f"a Lightning script needs {trainer}"
        return case.cause("user-exception", f"{case.who} raised {case.raised.text.splitlines()[0]}{where}", hint)
    error, told = find_line(ERROR, case.lines[-4:]), find_line(HINT, case.lines[-4:])
    if error is None or case.culprit is None:
        return None
    return case.cause("user-exception", f"{case.who} ended with an error: {error[1]}", told[1] if told else "")


def killed(case: Case) -> Cause | None:
    """A signal that none of the above explains."""
    if case.culprit is None or not case.culprit.signal:
        return None
    sentence = f"{case.who} ended with {describe_exit(None, case.culprit.signal)}"
    return case.cause("killed", sentence, _SIGNAL_HINTS.get(case.culprit.signal, ""), case.memory_proof())


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


def ended_before_the_ranks(case: Case) -> Cause | None:
    """The script ended before any rank started, by itself or because Slurm could start none."""
    if case.evidence.ranks or case.evidence.run is None or not case.evidence.ending.exit_code:
        return None
    if said := case.found(NOT_BEGUN):
        hint = f"hpcdist rerun {case.evidence.run}; if Slurm says so again, ask the site's support"
        return case.cause("never-started", f"Slurm began no rank of it: {said[1]}", hint)
    sentence = f"the script ended with exit code {case.evidence.ending.exit_code} before any rank started"
    return case.cause("bad-script", sentence, "look at the --setup lines and the end of the batch script's log")


def unknown(case: Case) -> Cause:
    """All that is known, and no guess."""
    ending = case.evidence.ending
    if case.culprit is not None:
        code = describe_exit(case.culprit.exit_code, case.culprit.signal) or "an exception, and went on"
        return case.cause("unknown", f"{case.who} ended with {code}", "", case.memory_proof())
    words = describe_exit(ending.exit_code, ending.signal) or ""
    reason = ending.reason or ""
    sentence = ", ".join(word for word in (words, reason) if word) or "nobody says why"
    return case.cause("unknown", sentence, "", case.memory_proof())
