"""Whether the ranks of a job fit together: what each says of itself, compared. Pure."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from hpcdist.records.network import Fault

MOST_SKEW_S = 60.0

_SAME_CODE = "give all nodes the same installation, best on a shared disk"
_ALIKE = (
    ("code", "the hpcdist code", _SAME_CODE),
    ("python", "Python", _SAME_CODE),
    ("torch", "torch", _SAME_CODE),
    ("lightning", "Lightning", _SAME_CODE),
)
_NETWORK_HINT = "check that the nodes reach each other: network_interface in hpcdist.toml, firewalls, MTU"
_START_HINT = "check that every rank started, and that the nodes reach each other (network_interface in hpcdist.toml)"
_FOLDER_HINT = "put the project on a disk that all nodes share and may write to"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A rank among the others.

    Attributes:
        rank: Global rank.
        node_rank: Index of its node.
        host: Its node, as Slurm calls it.
    """

    rank: int
    node_rank: int
    host: str

    @property
    def name(self) -> str:
        """`rank 2 on n1`."""
        return f"rank {self.rank} on {self.host}"


class Facts(Member, frozen=True, kw_only=True):
    """What a rank says of itself.

    Attributes:
        gpu_trouble: Why it can't use its GPU; empty when it can.
        folder_trouble: What is wrong with the run's folder there; empty when nothing is.
        code: Hash of hpcdist's files.
        python: Version of Python.
        torch: Version of torch.
        lightning: Version of Lightning.
    """

    gpu_trouble: str = ""
    folder_trouble: str = ""
    code: str
    python: str
    torch: str
    lightning: str


def find_fault(facts: Sequence[Facts]) -> Fault | None:
    """The first thing that keeps these ranks from training together; None when nothing does."""
    without_gpu = [one for one in facts if one.gpu_trouble]
    # Where no rank can use its GPU, no node is to blame: each rank says it itself.
    if without_gpu and len(without_gpu) < len(facts):
        return _fault(without_gpu[0].gpu_trouble, "check the driver on that node", without_gpu, facts)
    for name, what, hint in _ALIKE:
        if fault := _find_difference(facts, name, what, hint):
            return fault
    cut_off = [one for one in facts if one.folder_trouble]
    return _fault(cut_off[0].folder_trouble, _FOLDER_HINT, cut_off, facts) if cut_off else None


def _find_difference(facts: Sequence[Facts], name: str, what: str, hint: str) -> Fault | None:
    """What most ranks have is expected; of two that come as often, what the lowest rank has."""
    expected = Counter(getattr(one, name) for one in facts).most_common(1)[0][0]
    odd = [one for one in facts if getattr(one, name) != expected]
    if not odd:
        return None
    like = next(one for one in facts if getattr(one, name) == expected)
    sentence = f"{odd[0].name} has {what} {getattr(odd[0], name)}, expected {expected} as {like.name} has"
    return _fault(sentence, hint, odd, facts, is_relative=True)


def find_skew(members: Sequence[Member], clocks_s: Sequence[float]) -> Fault | None:
    """A clock that is more than a minute off the median one.

    Args:
        members: The ranks.
        clocks_s: What their clocks said at one moment, seconds since the epoch.
    """
    median_s = statistics.median_low(clocks_s)
    odd = [one for one, clock_s in zip(members, clocks_s, strict=True) if abs(clock_s - median_s) > MOST_SKEW_S]
    if not odd:
        return None
    like = members[clocks_s.index(median_s)]
    skew_s = clocks_s[members.index(odd[0])] - median_s
    side = "ahead of" if skew_s > 0 else "behind"
    sentence = f"the clock of {odd[0].name} is {abs(skew_s):.0f} s {side} that of {like.name}"
    sentence += f", expected less than {MOST_SKEW_S:.0f} s"
    return _fault(sentence, "have the nodes' time synchronised", odd, members, is_relative=True)


def find_late(stage: str, waited_s: float, present: Sequence[int], members: Mapping[int, Member], size: int) -> Fault:
    """Who did not come, when what all ranks do together did not end in time.

    Args:
        stage: What they do.
        waited_s: For how long they were waited for.
        present: The ranks that began it.
        members: The ranks as far as they ever said where they are, by rank.
        size: Ranks in all.
    """
    late = sorted(set(range(size)) - set(present))
    if not late:
        sentence = f"all {size} ranks began {stage}, and it did not end within {waited_s:.0f} s"
        return Fault(sentence=sentence, hint=_NETWORK_HINT, rank=0)
    known = [members[rank] for rank in late if rank in members]
    name = members[late[0]].name if late[0] in members else f"rank {late[0]}"
    sentence = f"{name} did not come to {stage} within {waited_s:.0f} s, and {len(present)} of {size} ranks did"
    if len(known) < len(late):
        return Fault(sentence=sentence, hint=_START_HINT, rank=late[0])
    return _fault(sentence, _NETWORK_HINT, known, list(members.values()))


def _fault(
    sentence: str, hint: str, odd: Sequence[Member], everyone: Sequence[Member], *, is_relative: bool = False
) -> Fault:
    """The fault, with the node to blame where there is one.

    Args:
        sentence: What is odd about the first of the odd ones.
        hint: What to do where no node is to blame.
        odd: The ranks it was found on.
        everyone: All ranks.
        is_relative: Whether they are odd only beside the others: of two nodes that differ neither is to blame.
    """
    nodes = {one.node_rank for one in odd}
    fine = {one.node_rank for one in everyone} - nodes
    more = f" ({len(odd) - 1} more rank(s) likewise)" if len(odd) > 1 else ""
    first = odd[0]
    if len(nodes) > 1 or len(fine) < (2 if is_relative else 1):
        return Fault(sentence=sentence + more, hint=hint, rank=first.rank)
    hint = f"leave the node out with --exclude {first.host}; --replace-bad-node does so by itself"
    return Fault(sentence=sentence + more, hint=hint, rank=first.rank, host=first.host)
