"""What logs say of why a program ended: the marks that Python, torch, NCCL, gloo, bash and Slurm leave.

Each pattern is what the program really printed; tests/data/logs holds the texts and says where each is from.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

# "[rank0]: " is torch's, "rank 0 on n1: " the built-in training's, "0: " srun --label's.
_PREFIX = re.compile(r"(?:\[rank\d+\]:|rank \d+ on [^ :]+:|\d+:)(?: |$)")
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'  File "([^"]+)", line (\d+)(?:, in (.+))?')
_FINAL = re.compile(r"([A-Za-z_][\w.]*)(?:: ?(.*))?")
_SYNTAX = re.compile(r"(?:SyntaxError|IndentationError|TabError): ")
_LIBRARY = ("site-packages/", "dist-packages/", "<frozen ", "/lib/python3")
# What torchrun says of its workers, which is theirs to say.
_NOT_OWN = frozenset({"ChildFailedError"})
_INTERRUPTIONS = frozenset({"KeyboardInterrupt", "SIGTERMException", "SignalException"})
_MESSAGE_LINES = 6

_LOST_PEER = re.compile(
    r"Connection closed by (?:remote )?peer|Connection reset by peer|lost its connection to another rank"
    r"|remote process exited or there was a network error|ncclRemoteError"
)
_TIME_OUT = re.compile(
    r"Watchdog caught collective operation timeout|Timed out waiting [0-9]+ms for (?:recv|send) operation"
    r"|failed to pass monitoredBarrier|Timed out after [0-9]+ seconds waiting for clients"
    r"|The client socket has timed out after|wait timeout after [0-9]+ms|[Tt]imed out connecting"
)
CUDA_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|CUDA error: out of memory|CUDNN_STATUS_ALLOC_FAILED")
# The kernel's and Slurm's; the words changed with Slurm 23.11.
OOM_KILL = re.compile(
    r"slurmstepd.*: error: .*(?:oom[-_]kill|OOM Killed|Exceeded .*memory limit)|srun: error: .*: Out Of Memory"
)
NO_MEMORY = re.compile(r"DefaultCPUAllocator: (?:can't|not enough) .*memory|Cannot allocate memory")
# The last is a full disk to torch.save, which says nothing else of it.
FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|inline_container\.cc.*unexpected pos")
MISSING_MODULE = re.compile(r"No module named '?([\w.-]+)'?")
MISSING_FILE = re.compile(r"No such file or directory: (.+)|((?:Dataset|dataset \S+ is) not (?:found|in).*)")
BAD_COMMAND = re.compile(
    r"^\S*: line [0-9]+: .*(?:command not found|Permission denied|No such file or directory|syntax error.*"
    r"|unbound variable|cannot execute.*)$|^error: can't start .*|can't open file '.*': \[Errno 2\]"
    r"|execve\(\): .*: (?:No such file or directory|Permission denied)"
)
# Lightning's check of the Trainer against the job.
LIGHTNING_LAYOUT = re.compile(r"You set `(?:devices|num_nodes)=|You requested gpu: ")
WAITING = re.compile(r"no step for [0-9.]+ s, and it waits for the others")
HANG = re.compile(r"hang: no step for ([0-9.]+) s")
ERROR = re.compile(r"^error: (.+)")
HINT = re.compile(r"^hint: (.+)")
NODE_FAILURE = re.compile(r"(?:srun|salloc): error: Node failure on ([\w.-]+)")
NOT_BEGUN = re.compile(r"srun: error: (Unable to (?:create step|confirm allocation) for job .+)")
TASK_END = re.compile(r"srun: error: \S+: tasks? [0-9,-]+: .+")
# slurmstepd's last line of a job or step.
CANCELLED_FOR = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ DUE TO (TIME LIMIT|PREEMPTION|NODE FAILURE)")
_BARRIER_RANKS = re.compile(r"Ranks? ([0-9][0-9, ]*) failed to pass monitoredBarrier")


class Raised(NamedTuple):
    """An exception that Python printed.

    Attributes:
        name: Its class, without the modules.
        text: Its final line, and what of its message follows.
        where: File, line and function of the last frame outside libraries; None when no frame was printed.
        is_last: Whether hardly anything was printed after it.
    """

    name: str
    text: str
    where: str | None
    is_last: bool

    @property
    def is_interruption(self) -> bool:
        """Whether it only says that the program was ended from outside."""
        return self.name in _INTERRUPTIONS


def find_exception(lines: Sequence[str]) -> Raised | None:
    """The last exception in a log, other than torchrun's report of its workers."""
    if not any("Traceback" in line or "Error: " in line for line in lines):
        return None
    plain = [strip_prefix(line) for line in lines]
    for start in range(len(plain) - 1, -1, -1):
        if plain[start] == _TRACEBACK or _SYNTAX.match(plain[start]):
            found = _read_exception(plain, start)
            if found and found.name not in _NOT_OWN:
                return found
    return None


def _read_exception(lines: Sequence[str], start: int) -> Raised | None:
    """The exception whose traceback (or, of a syntax error, whose final line) starts there."""
    final = start
    if lines[start] == _TRACEBACK:
        final = next((at for at in range(start + 1, len(lines)) if lines[at][:1] not in (" ", "")), start)
    match = _FINAL.fullmatch(lines[final])
    if match is None or lines[final] == _TRACEBACK:
        return None
    end = final + 1
    while end < min(len(lines), final + _MESSAGE_LINES) and lines[end] and lines[end] != _TRACEBACK:
        end += 1
    frames = [_FRAME.fullmatch(line) for line in lines[start if start < final else max(0, start - 4) : final]]
    return Raised(
        name=match[1].rpartition(".")[2],
        text="\n".join(lines[final:end]),
        where=_where([frame for frame in frames if frame]),
        is_last=len(lines) - end <= _MESSAGE_LINES,
    )


def _where(frames: Sequence[re.Match[str]]) -> str | None:
    """`train.py:12 in main`: the innermost frame of the user's own code, or of any."""
    own = [frame for frame in frames if not any(mark in frame[1] for mark in _LIBRARY)] or list(frames)
    if not own:
        return None
    path, line, function = own[-1].groups()
    inside = f" in {function}" if function and function != "<module>" else ""
    return f"{path}:{line}{inside}"


def strip_prefix(line: str) -> str:
    """A line without the rank that torch, srun or the built-in training puts before it."""
    found = _PREFIX.match(line)
    return line[found.end() :] if found else line


def find_line(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    """The last line in which a pattern is found, without its prefix."""
    # All at once first: nearly every line of nearly every log says nothing.
    if "^" not in pattern.pattern and not pattern.search("\n".join(lines)):
        return None
    return next((found for line in reversed(lines) if (found := pattern.search(strip_prefix(line)))), None)


def is_lost_peer(text: str) -> bool:
    """Whether an exception says that a connection to another rank broke."""
    return _LOST_PEER.search(text) is not None


def find_time_out(lines: Sequence[str]) -> str | None:
    """The last line in which NCCL, gloo or torch's store says that it waited for other ranks in vain."""
    found = find_line(_TIME_OUT, lines)
    return found.string if found else None


def find_barrier_ranks(lines: Sequence[str]) -> set[int]:
    """The ranks that a monitored barrier names as missing."""
    found = find_line(_BARRIER_RANKS, lines)
    return {int(word) for word in re.findall("[0-9]+", found[1])} if found else set()
