"""`tb_logs/`: what hpcdist adds beside a run's curves in TensorBoard when the run is over."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from hpcdist.files import write_atomically
from hpcdist.jobs.timeline import PARTS
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import JobRecord
from hpcdist.records.ranks import TrainingMetrics
from hpcdist.records.usage_curve import FIGURES, UsageCurve
from hpcdist.slurm.seff import format_seff

# TensorBoard takes any file with "tfevents" in its name; fixed names per run are replaced, not added to.
EVENT_FILE = "events.out.tfevents.0.efficiency"
RECORD_FILE = "events.out.tfevents.0.record"
USAGE_FILE = "events.out.tfevents.0.usage"
PLOTS_FILE = "events.out.tfevents.0.plots"

# More ranks than this are no picture any more, and a file of many megabytes; the report and the run have all of them.
MOST_RANKS = 32

_RGBA = 4  # Summary.Image's colour space of a picture with an alpha channel


def find_folder(run_dir: Path, root: Path) -> Path | None:
    """Return the folder with the curves of a run's (or its array task's) folder; None when it left none."""
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
    rows = [line.partition(": ") for line in format_seff(efficiency).splitlines()]
    text = _text("efficiency", [(key, value) for key, _, value in rows])
    _write(folder / EVENT_FILE, efficiency.ended_at_s, scalars, text)


def write_record(folder: Path, record: JobRecord) -> None:
    """Writes where a job's time went and what the audit found, as scalars and as a table on the text page.

    Like `write_efficiency` a function of the figures alone. A job without a timeline gets none.
    """
    timeline = record.timeline
    if timeline is None or record.efficiency is None:
        return
    seconds = {name: getattr(timeline, f"{name}_s") for name in (*PARTS, "starting", "total")}
    scalars = {f"timeline/{name}_s": value for name, value in seconds.items()} | {"efficiency/ettr": timeline.ettr}
    rows = [(name, f"{value:.1f} s") for name, value in seconds.items() if value is not None]
    if timeline.ettr is not None:
        rows.insert(0, ("productive share", f"{timeline.ettr:.1%} of {timeline.total_s:.0f} s"))
    rows += [(finding.code, finding.sentence) for finding in (record.audit.findings if record.audit else ())]
    _write(folder / RECORD_FILE, record.efficiency.ended_at_s, scalars, _text("record", rows))


def write_usage(folder: Path, curves: Sequence[UsageCurve]) -> None:
    """Writes what each rank used over time, as scalars whose step is the second since the rank's start.

    Like `write_efficiency` a function of the figures alone.
    """
    events = []
    for curve in curves[:MOST_RANKS]:
        # A column that a release did not have yet is empty.
        columns = {f"usage/{name}/rank-{curve.rank}": getattr(curve, name) for name in FIGURES if getattr(curve, name)}
        for place, at_s in enumerate(curve.at_s):
            known = {tag: column[place] for tag, column in columns.items() if column[place] is not None}
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in known.items()]
            summary = Summary(value=values)
            events.append(Event(wall_time=curve.started_at_s + at_s, step=round(at_s), summary=summary))
    if events:
        _write_events(folder / USAGE_FILE, curves[0].started_at_s, events)


def write_plots(folder: Path, made_at_s: float, plots: Mapping[str, bytes]) -> None:
    """Write a study's plots, PNG by key, for TensorBoard's page of images; the folder is made.

    Like `write_efficiency` a function of the figures alone. A study of which nothing can be drawn gets no file.
    `made_at_s` is when the study was compared, seconds since the epoch.
    """
    values = []
    for key, png in plots.items():
        # Both stand at the same place in every PNG: the first chunk after the signature (PNG, 11.2.2).
        width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
        image = Summary.Image(height=height, width=width, colorspace=_RGBA, encoded_image_string=png)
        values.append(Summary.Value(tag=f"report/{key}", image=image))
    if values:
        folder.mkdir(parents=True, exist_ok=True)
        _write_values(folder / PLOTS_FILE, made_at_s, values)


def _write(path: Path, ended_at_s: float | None, scalars: Mapping[str, float | None], text: Summary.Value) -> None:
    """Replaces an event file by one with these figures at step 0; unknown ones are left out."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items() if value is not None]
    _write_values(path, ended_at_s or 0.0, [*values, text])


def _write_values(path: Path, wall_time: float, values: Sequence[Summary.Value]) -> None:
    _write_events(path, wall_time, [Event(wall_time=wall_time, step=0, summary=Summary(value=values))])


def _write_events(path: Path, wall_time: float, events: Sequence[Event]) -> None:
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in (Event(wall_time=wall_time, file_version="brain.Event:2"), *events):
        writer.write(event.SerializeToString())
    write_atomically(path, file.getvalue())


def _text(tag: str, rows: Sequence[tuple[str, str]]) -> Summary.Value:
    """A table for the text page; what comes from Slurm is code there, so that none of it is markup."""
    table = ["| figure | value |", "| --- | --- |"]
    table += [f"| {key} | `{value.replace('`', '').replace('|', '/')}` |" for key, value in rows if value]
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=["\n".join(table).encode()])
    tensor.tensor_shape.dim.add(size=1)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
