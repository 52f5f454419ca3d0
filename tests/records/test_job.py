"""The joined record as people see it: the block at a job's end, and TensorBoard's page."""

from hpcdist.cli.output import format_joined
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.job import Audit, AuditFinding, Disagreement, JobRecord, JobStatus, Timeline
from hpcdist.records.ranks import RankUsage, StepSplit, TrainingMetrics

TIMELINE = Timeline(
    queued_s=2.0,
    lost_s=0.0,
    starting_s=9.8,
    launch_s=0.6,
    imports_s=7.1,
    process_group_s=1.1,
    preflight_s=0.5,
    data_s=0.3,
    first_step_s=0.2,
    steady_s=17.0,
    validation_s=1.0,
    checkpoint_s=0.01,
    other_s=0.2,
    shutdown_s=4.0,
    wall_time_s=32.0,
    total_s=34.0,
    ettr=0.5,
)


def record(**fields):
    status = JobStatus(job_id="7", state="COMPLETED")
    return JobRecord(**{"status": status, "efficiency": Efficiency(job_id="7", ended_at_s=5.0)} | fields)


def test_the_block_has_the_parts_in_the_order_of_time():
    assert format_joined(record(timeline=TIMELINE)) == (
        "Time: queued 2.0 s  start-up 9.8 s (launch 0.6, imports 7.1, process group 1.1, preflight 0.5, data 0.3, "
        "first step 0.2)  training 17.0 s  validation 1.0 s  other 0.2 s  shutdown 4.0 s  productive 50 % of 34 s"
    )


def test_the_block_of_a_program_that_tells_no_phases():
    timeline = Timeline(queued_s=3.0, lost_s=4.0, launch_s=0.5, unsplit_s=7.5)
    assert format_joined(record(timeline=timeline)) == (
        "Time: queued 3.0 s  lost to requeues 4.0 s  launch 0.5 s  not split up 7.5 s"
    )


def test_the_block_has_where_a_step_goes():
    split = StepSplit(steps=9, data_s=1e-4, compute_s=9.8e-3, communication_s=2e-3, other_s=4e-4, step_s=12.3e-3)
    rank = RankUsage(
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=1,
        host="n1",
        started_at_s=0.0,
        training=TrainingMetrics(split=split),
    )
    assert format_joined(record(ranks=[rank])) == (
        "Step: 12.3 ms = data 0.1 + compute 9.8 + communication 2.0 + other 0.4"
    )


def test_what_ran_and_what_was_found():
    finding = AuditFinding(code="fewer-ranks", sentence="2 of 4 ranks ran\x1b[31m")
    audit = Audit(ranks_asked=4, ranks=2, gpus=4, cores=8, cores_busy=1.25, global_batch_size=512, findings=(finding,))
    disagreement = Disagreement(figure="cpu_time_s", slurm=16.0, ranks=32.0, reason="children")
    assert format_joined(record(audit=audit, disagreements=(disagreement,))).splitlines() == [
        "Ran: 2 of 4 rank(s), 4 GPU(s), use not measured, 1.2 of 8 core(s) busy, global batch 512",
        "Disagreement: CPU time: Slurm 16.0 s, ranks 32.0 s (children)",
        "Finding: 2 of 4 ranks ran?[31m",
    ]


def test_nothing_known_is_nothing_said():
    assert format_joined(record(timeline=Timeline(), audit=Audit())) == ""


def test_tensorboard_gets_the_parts_the_share_and_the_findings(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from hpcdist.jobs import tensorboard

    audit = Audit(findings=(AuditFinding(code="alone", sentence="each `of` | trained alone"),))
    tensorboard.write_record(tmp_path, record(timeline=TIMELINE, audit=audit))
    (path,) = tmp_path.iterdir()
    first = path.read_bytes()
    tensorboard.write_record(tmp_path, record(timeline=TIMELINE, audit=audit))
    assert path.read_bytes() == first
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [point.value for point in events.Scalars("timeline/steady_s")] == [17.0]
    assert [point.value for point in events.Scalars("efficiency/ettr")] == [0.5]
    assert "timeline/unsplit_s" not in events.Tags()["scalars"]
    text = events.Tensors("record")[0].tensor_proto.string_val[0].decode()
    assert "| productive share | `50.0% of 34 s` |" in text
    assert "| alone | `each of / trained alone` |" in text


def test_a_job_without_figures_leaves_nothing_in_tensorboard(tmp_path):
    from hpcdist.jobs import tensorboard

    tensorboard.write_record(tmp_path, record(efficiency=None))
    assert list(tmp_path.iterdir()) == []
