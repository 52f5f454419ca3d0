"""How results look: JSON, tables, and a job's efficiency."""

import shutil
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from hpcdist.records.efficiency import Efficiency, footnotes
from hpcdist.records.job import Cause
from hpcdist.records.ranks import RankUsage
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
    """The cause first, then the end of the log, where that is, and what to do.

    Args:
        name: What ended and how.
        cause: Why.
        tail: Whether to show the end of the log.
    """
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
    if training:
        if training.accuracy is not None:
            lines.append(f"Test accuracy: {training.accuracy:.2%}")
        if training.images_per_s is not None:
            lines.append(
                f"Training throughput: {training.images_per_s:,.0f} images/s over {training.world_size} rank(s)"
            )
    if efficiency.source == "ranks":
        lines.append("Source: what the ranks measured of themselves")
    if efficiency.live:
        lines.append("The job still runs: these are the figures so far.")
    lines += [f"Note: {note}" for note in footnotes(efficiency)]
    return "\n".join(lines)
