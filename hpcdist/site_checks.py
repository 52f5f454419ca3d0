"""What a cluster says of itself, judged: partitions, accounting, its clock. Pure.

Source: `scontrol show config`, run with Slurm 22.05.8.
"""

from collections.abc import Sequence

from hpcdist.check import Check
from hpcdist.records.efficiency import Gathering
from hpcdist.slurm.cluster import Partition
from hpcdist.text import nearest

# munge refuses a credential that is older than five minutes (munged(8), --max-ttl is an hour, the default 300 s).
REFUSED_SKEW_S = 300.0
WARN_SKEW_S = 5.0


def choose_partition(asked: str | None, partitions: Sequence[Partition]) -> Partition | None:
    """The first of those asked for (`a,b`), else the default one; None where there is none of the name."""
    if asked:
        return next((one for name in asked.split(",") for one in partitions if one.name == name), None)
    return next((one for one in partitions if one.is_default), None)


def judge_partition(asked: str | None, partitions: Sequence[Partition]) -> Check:
    """Whether the partition that jobs go to exists, is up and has nodes."""
    names = [one.name for one in partitions]
    for name in (asked or "").split(",") if asked else ():
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near!r}? change partition in hpcdist.toml" if near else "sinfo lists them"
            sentence = f"there is no partition {name!r} that you can see, expected one of: {', '.join(names) or 'none'}"
            return Check(name="partition", status="error", sentence=sentence, hint=hint)
    chosen = choose_partition(asked, partitions)
    if chosen is None:
        sentence = "no partition is named in hpcdist.toml, and the cluster has no default one"
        hint = f'put partition = "{names[0]}" into hpcdist.toml' if names else "sinfo lists them"
        return Check(name="partition", status="error", sentence=sentence, hint=hint)
    count = sum(node.count for node in chosen.nodes)
    said = f"partition {chosen.name}: {chosen.usable_nodes} of {count} node(s) usable"
    said += ", with GPUs" if chosen.has_gpus else ", no GPUs"
    if not chosen.is_up or chosen.usable_nodes == 0:
        sentence = said if chosen.is_up else f"partition {chosen.name} is not up: it starts no jobs"
        return Check(name="partition", status="warning", sentence=sentence, hint=f"sinfo -p {chosen.name} -R says why")
    return Check(name="partition", status="ok", sentence=said)


def judge_accounting(gathering: Gathering, storage: str | None, trouble: str) -> Check:
    """Whether Slurm accounts for jobs, and what it gathers of them.

    Args:
        gathering: How it gathers usage.
        storage: Its setting `AccountingStorageType`.
        trouble: What sacct complained of; empty when it answered.
    """
    name = "accounting"
    if trouble:
        off = (storage or "").endswith(("none", "(null)"))
        rest = "it is off" if off else "it does not answer"
        sentence = f"{rest} ({trouble}): seff has only what the ranks measured, and ended jobs are soon forgotten"
        hint = "ask the administrators for accounting" if off else "sacct again later; jobs run without it"
        return Check(name=name, status="warning", sentence=sentence, hint=hint)
    if gathering.gathered == "nothing":
        sentence = "sacct answers, but memory and CPU of steps are not gathered (JobAcctGatherType is none)"
        return Check(name=name, status="warning", sentence=sentence, hint="hpcdist seff --source ranks has its own")
    if gathering.gathered == "cgroup-peak":
        return Check(name=name, status="ok", sentence="sacct answers; memory is the kernel's own peak")
    if gathering.gathered is None or gathering.every_s is None:
        return Check(name=name, status="ok", sentence="sacct answers; how memory is gathered is not known")
    every_s = gathering.every_s
    rest = "" if every_s <= 1 else ": shorter peaks are missed, and jobs shorter than that have no memory figure"
    return Check(name=name, status="ok", sentence=f"sacct answers; memory is sampled every {every_s:.0f} s{rest}")


def judge_clock(controller_s: float | None, before_s: float, after_s: float) -> Check:
    """This machine's clock against the controller's.

    Args:
        controller_s: The controller's, in whole seconds since the epoch; None where it is not known.
        before_s: This machine's before the controller was asked.
        after_s: And after it had answered.
    """
    if controller_s is None:
        return Check(name="clock", status="unknown", sentence="the controller does not say what time it is")
    # Whole seconds: the true time is up to one later than what was printed.
    ahead_s = max(0.0, before_s - (controller_s + 1), controller_s - after_s)
    if ahead_s <= WARN_SKEW_S:
        return Check(name="clock", status="ok", sentence="this machine and the controller agree on the time")
    side = "ahead of" if before_s > controller_s else "behind"
    sentence = f"this machine is {ahead_s:.0f} s {side} the controller"
    if ahead_s >= REFUSED_SKEW_S:
        sentence += ": from five minutes on munge refuses every command"
    status = "error" if ahead_s >= REFUSED_SKEW_S else "warning"
    hint = "have both set their time from one server (chronyc tracking, timedatectl)"
    return Check(name="clock", status=status, sentence=sentence, hint=hint)  # type: ignore[arg-type]
