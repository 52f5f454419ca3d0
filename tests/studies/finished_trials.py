"""Studies and what their jobs did, in few words, for the tests of reports."""

from hpcdist.config.job import JobSpec, Layout
from hpcdist.jobs.audit import audit_job
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Cause, JobRecord, JobStatus, Timeline
from hpcdist.records.network import AllReduce
from hpcdist.records.ranks import RankUsage, StepSplit, TestResult, TrainingMetrics
from hpcdist.report.compare import compare
from hpcdist.studies.study import Study, Trial, Variant

START_S = 1_000_000.0
GRADIENT_BYTES = 228_000


def variant(name="1x1", *, settings=None, options=None, **layout):
    """`2x1` is two nodes with one GPU each; CPU layouts are given by `gpus=0` and `tasks_per_node`."""
    nodes, gpus = (int(part) for part in name.split("x"))
    settings = settings or {}
    label = " ".join([name, *[f"{key}={value}" for key, value in settings.items()]])
    shape = Layout(**{"nodes": nodes, "gpus": gpus} | layout)
    return Variant(label=label, layout=shape, settings=settings, options={**(options or {}), **settings})


def split(data=0.0, compute=20.0, communication=0.0, other=1.0, *, step=None):
    """Milliseconds."""
    total = data + compute + communication + other if step is None else step
    return StepSplit(
        steps=100,
        data_s=data / 1e3,
        compute_s=compute / 1e3,
        communication_s=communication / 1e3,
        other_s=other / 1e3,
        step_s=total / 1e3,
    )


def probe(latency_ms=0.2, megabytes_per_s=500.0, sizes=(4, GRADIENT_BYTES, 4_000_000)):
    """All-reduces that take a latency and then so many bytes per second."""
    found = []
    for size_bytes in sizes:
        seconds = latency_ms / 1e3 + size_bytes / (megabytes_per_s * 1e6)
        found.append(AllReduce(size_bytes=size_bytes, latency_s=seconds, bandwidth_bytes_per_s=size_bytes / seconds))
    return tuple(found)


def done(
    of,
    *,
    wall=15.0,
    images=20_000.0,
    splits=None,
    link=None,
    batch=512,
    steps=354,
    accuracy=0.989,
    tests=(),
    starting=2.0,
    busy=0.5,
    gpus=None,
    world=None,
    hosts=None,
    **efficiency,
):
    """A completed job: `splits` are those of its ranks, `tests` are (seconds after the start, accuracy)."""
    layout, world = of.layout, of.layout.world_size if world is None else world
    splits = splits or [None] * layout.world_size
    cores = layout.world_size * layout.cpus_per_task
    ranks = [
        RankUsage(
            rank=number,
            local_rank=number % layout.ranks_per_node,
            node_rank=number // layout.ranks_per_node,
            world_size=layout.world_size,
            host=(hosts or [f"n{1 + at // layout.ranks_per_node}" for at in range(layout.world_size)])[number],
            started_at_s=START_S,
            training=TrainingMetrics(
                finished=True,
                accuracy=accuracy,
                steps=steps,
                global_batch_size=batch,
                world_size=world,
                images_per_s=images,
                probe=link or (),
                split=one,
                bytes_per_step=GRADIENT_BYTES if layout.world_size > 1 else 0,
                tests=tuple(TestResult(step=1, accuracy=share, at_s=START_S + after) for after, share in tests),
            ),
        )
        for number, one in enumerate(splits)
    ]
    accounting = Efficiency(
        **{
            "job_id": "7",
            "state": "COMPLETED",
            "nodes": layout.nodes,
            "cores": cores,
            "cpu_time_s": busy * cores * wall,
            "cpu_efficiency": busy,
            "core_walltime_s": cores * wall,
            "wall_time_s": wall,
            "gpus": layout.nodes * layout.gpus if gpus is None else gpus,
            "started_at_s": START_S,
            "ended_at_s": START_S + wall,
            "source": "sacct",
        }
        | efficiency
    )
    return JobRecord(
        status=JobStatus(job_id="7", state="COMPLETED", nodes="n1"),
        efficiency=accounting,
        ranks=ranks,
        timeline=Timeline(starting_s=starting, queued_s=1.0, wall_time_s=wall, ettr=0.5),
        audit=audit_job(accounting, ranks, JobSpec(name="mnist", layout=layout)),
    )


def failed(state="FAILED", sentence="rank 1 ran out of memory", kind="out-of-memory"):
    return JobRecord(
        status=JobStatus(job_id="9", state=state, reason="NonZeroExitCode"), failure=Cause(kind=kind, sentence=sentence)
    )


def study(**fields):
    return Study(**{"name": "mnist-layouts", "layouts": ({"nodes": 1, "gpus": 1},)} | fields)


def report(of, jobs, **fields):
    """The comparison of jobs given as {variant: [records]}, in that order."""
    trials = [
        (Trial(variant=one.label, repeat=number, run=f"{one.label}-{number}"), record)
        for one, records in jobs
        for number, record in enumerate(records, 1)
    ]
    return compare(of, [one for one, _ in jobs], trials, **{"made_at_s": 2_000_000.0} | fields)


def codes(comparison):
    return [statement.code for statement in comparison.verdict]


def said(comparison, code, variant=None):
    """The statement of that code; None where it was not made."""
    for statement in comparison.verdict:
        if statement.code == code and variant in (None, statement.variant):
            return statement
    return None


def row(comparison, label):
    return next(one for one in comparison.rows if one.label == label)
