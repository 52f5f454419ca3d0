"""How results look: JSON, tables, a job's efficiency and its record."""

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from hpcdist.jobs.job import Job
from hpcdist.records.efficiency import Efficiency, footnotes
from hpcdist.records.job import Audit, Cause, Disagreement, JobRecord, Timeline
from hpcdist.records.ranks import RankUsage, StepSplit, mean_split
from hpcdist.slurm.seff import format_seff
from hpcdist.text import clean, printable_line
from hpcdist.units import format_bytes


def print_json(value: Any) -> None:
    """Any of our values as indented JSON on standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def format_table(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Aligned columns; a dash where a figure is unknown; the last column is cut at the terminal's width."""
    cells = [list(header), *[[clean(cell) if cell else "-" for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    width = shutil.get_terminal_size((10_000, 24)).columns
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(line[:width] for line in lines)


def format_cause(name: str, cause: Cause, *, tail: bool = True) -> str:
    """Return the cause of what ended, with `tail` the end of its log and where that is, and what to do."""
    lines = [f"{name}: {cause.sentence}"]
    lines += [f"  | {line}" for line in cause.tail] if tail else []
    lines += [f"log: {cause.log}"] if cause.log and tail else []
    lines = [printable_line(line) for line in lines]
    if cause.hint:
        lines.append(click.style("hint: ", fg="cyan") + printable_line(cause.hint))
    return "\n".join(lines)


def format_efficiency(efficiency: Efficiency, ranks: Sequence[RankUsage]) -> str:
    """What `seff` prints, then the GPU, the accuracy and the throughput as far as they are known."""
    lines = [format_seff(efficiency).rstrip("\n")]
    if efficiency.gpus and efficiency.gpu_efficiency is None and efficiency.gpu_memory_used_bytes is None:
        lines.append(f"GPU Efficiency: - of {efficiency.gpus} GPU(s) (nobody measured their use)")
    elif efficiency.gpus:
        busy = "-" if efficiency.gpu_efficiency is None else f"{efficiency.gpu_efficiency:.2%}"
        used = efficiency.gpu_memory_used_bytes
        lines.append(f"GPU Efficiency: {busy} of {efficiency.gpus} GPU(s) (mean utilisation)")
        lines.append(f"GPU Memory Utilized: {'-' if used is None else format_bytes(used)}")
    training = next((rank.training for rank in ranks if rank.training), None)
    if training and training.accuracy is not None:
        lines.append(f"Test accuracy: {training.accuracy:.2%}")
    if training and training.images_per_s is not None:
        lines.append(f"Training throughput: {training.images_per_s:,.0f} images/s over {training.world_size} rank(s)")
    if efficiency.source == "ranks":
        lines.append("Source: what the ranks measured of themselves")
    if efficiency.live:
        lines.append("The job still runs: these are the figures so far.")
    lines += [f"Note: {note}" for note in footnotes(efficiency)]
    return "\n".join(lines)


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
        requested = "" if audit.ranks_asked in (None, audit.ranks) else f" of {audit.ranks_asked}"
        parts.append(f"{audit.ranks}{requested} rank(s)")
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


def write_boards(job: Job, efficiency: Efficiency | None, record: JobRecord | None = None) -> None:
    """Write a job's figures, where its time went, and what its ranks used over time; a run without curves gets none.

    Nothing is written without figures, or of a job that is not over. Without a record, one is joined from the figures.
    """
    if efficiency is None or efficiency.live or efficiency.state == "PENDING":
        return
    # Only here: TensorBoard's writer takes longer to import than everything else such a command does.
    from hpcdist.jobs import tensorboard

    folder = tensorboard.find_folder(job.folder.path, job.run.root)
    if folder is None:
        return
    record = record or job.join(efficiency)
    training = next((rank.training for rank in record.ranks if rank.training), None)
    tensorboard.write_efficiency(folder, efficiency, training)
    tensorboard.write_record(folder, record)
    tensorboard.write_usage(folder, job.folder.curves())
