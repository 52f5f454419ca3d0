"""`tb_logs/`: what `hpcdist seff` adds beside a run's curves in TensorBoard."""

import os
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from hpcdist.record import Efficiency, TrainingMetrics
from hpcdist.seff import format_seff

# TensorBoard takes any file with "tfevents" in its name; one fixed name per run is replaced, not added to.
EVENT_FILE = "events.out.tfevents.0.efficiency"


def find_folder(run_dir: Path, root: Path) -> Path | None:
    """The folder with a run's curves; None when it left none.

    Args:
        run_dir: The run's folder, or that of its array task.
        root: The project's folder.
    """
    relative = run_dir.relative_to(root / "jobs" / "runs").parts
    return next(iter(root.glob(f"tb_logs/*/*-{'-'.join(relative)}")), None)


def write_efficiency(folder: Path, efficiency: Efficiency, training: TrainingMetrics | None) -> None:
    """Writes a job's figures as scalars, and as a table for TensorBoard's text page.

    The file is a function of the figures alone, so writing twice changes nothing. Its time is the job's end, its
    step 0: these are figures of the whole job.
    """
    scalars = {
        "efficiency/cpu": efficiency.cpu_efficiency,
        "efficiency/memory": efficiency.memory_efficiency,
        "efficiency/gpu": efficiency.gpu_efficiency,
        "efficiency/memory_used_bytes": efficiency.memory_used_bytes,
        "efficiency/cpu_time_s": efficiency.cpu_time_s,
        "wall_time_s": efficiency.wall_time_s,
        "test_accuracy": training.accuracy if training else None,
    }
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items() if value is not None]
    values.append(_text("efficiency", format_seff(efficiency)))
    wall_time = efficiency.ended_at_s or 0.0
    events = [Event(wall_time=wall_time, file_version="brain.Event:2")]
    events.append(Event(wall_time=wall_time, step=0, summary=Summary(value=values)))
    temporary = folder / f".{EVENT_FILE}.{os.getpid()}"
    with temporary.open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
    temporary.replace(folder / EVENT_FILE)


def _text(tag: str, lines: str) -> Summary.Value:
    """A table for the text page; what comes from Slurm is code there, so that none of it is markup."""
    rows = (line.partition(": ") for line in lines.splitlines())
    table = ["| figure | value |", "| --- | --- |"]
    table += [f"| {key} | `{value.replace('`', '').replace('|', '/')}` |" for key, _, value in rows if value]
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=["\n".join(table).encode()])
    tensor.tensor_shape.dim.add(size=1)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
