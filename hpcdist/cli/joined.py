"""The joined record as a short block: where the time went, what really ran, which figures disagree."""

from collections.abc import Iterator

from hpcdist.records.job import Audit, Disagreement, JobRecord, Timeline
from hpcdist.records.ranks import StepSplit, mean_split
from hpcdist.text import clean
from hpcdist.units import format_bytes

_STARTING = ("launch", "imports", "process_group", "preflight", "data", "first_step")
_AFTER = ("validation", "checkpoint", "other", "unsplit", "shutdown")
_WORDS = {
    "process_group": "process group",
    "first_step": "first step",
    "steady": "training",
    "unsplit": "not split up",
    "lost": "lost to requeues",
}
# Parts shorter than this say nothing.
_SHORTEST_S = 0.05


def format_joined(record: JobRecord) -> str:
    """The block, without a line end; empty when nothing is known."""
    lines = []
    if record.timeline and (line := format_timeline(record.timeline)):
        lines.append(f"Time: {line}")
    if split := mean_split(record.ranks):
        lines.append(f"Step: {format_split(split)}")
    if record.audit and (line := format_audit(record.audit)):
        lines.append(f"Ran: {line}")
    lines += [f"Disagreement: {_format_disagreement(one)}" for one in record.disagreements]
    if record.audit:
        lines += [f"Finding: {clean(one.sentence)}" for one in record.audit.findings]
    return "\n".join(lines)


def format_timeline(timeline: Timeline) -> str:
    """`start-up 9.8 s (imports 7.1, ...)  training 6.2 s  ...  productive 18 % of 34 s`, in the order of time."""
    parts = list(_named(timeline, ("queued", "lost")))
    if timeline.starting_s is not None:
        split = ", ".join(text.removesuffix(" s") for text in _named(timeline, _STARTING))
        parts.append(f"start-up {timeline.starting_s:.1f} s ({split})")
    else:
        parts += _named(timeline, _STARTING)
    parts += _named(timeline, ("steady", *_AFTER))
    if timeline.ettr is not None:
        parts.append(f"productive {100 * timeline.ettr:.0f} % of {timeline.total_s:.0f} s")
    return "  ".join(parts)


def format_split(split: StepSplit) -> str:
    """`12.3 ms = data 0.1 + compute 9.8 + communication 2.0 + other 0.4`, where a step goes."""
    parts = ("data", "compute", "communication", "other")
    terms = " + ".join(f"{part} {1e3 * getattr(split, f'{part}_s'):.1f}" for part in parts)
    return f"{1e3 * split.step_s:.1f} ms = {terms}"


def _named(timeline: Timeline, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        seconds = getattr(timeline, f"{name}_s")
        if seconds is not None and (seconds >= _SHORTEST_S or name == "steady"):
            yield f"{_WORDS.get(name, name)} {seconds:.1f} s"


def format_audit(audit: Audit) -> str:
    """What really ran, as far as it is known."""
    parts = []
    if audit.ranks is not None:
        asked = "" if audit.ranks_asked in (None, audit.ranks) else f" of {audit.ranks_asked}"
        parts.append(f"{audit.ranks}{asked} rank(s)")
    if audit.world_size is not None and audit.world_size != audit.ranks:
        parts.append(f"world size {audit.world_size}")
    if audit.gpus:
        used = "use not measured" if audit.gpus_used is None else f"{audit.gpus_used} used"
        parts.append(f"{audit.gpus} GPU(s), {used}")
    if audit.cores and audit.cores_busy is not None:
        parts.append(f"{audit.cores_busy:.1f} of {audit.cores} core(s) busy")
    if audit.global_batch_size is not None:
        parts.append(f"global batch {audit.global_batch_size}")
    return ", ".join(parts)


def _format_disagreement(one: Disagreement) -> str:
    if one.figure == "memory_used_bytes":
        figures = f"memory: Slurm {format_bytes(one.slurm)}, ranks {format_bytes(one.ranks)}"
    else:
        figures = f"CPU time: Slurm {one.slurm:.1f} s, ranks {one.ranks:.1f} s"
    return f"{figures} ({one.reason})"
