"""Where a job's time went: sums computed by hand."""

import pytest

from hpcdist.jobs.timeline import PARTS, build_timeline, find_disagreements
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.ranks import RankUsage, TrainingMetrics

PHASES = {
    "imports": 7.0,
    "process_group": 0.25,
    "preflight": 0.25,
    "data": 0.5,
    "other": 0.25,
    "first_step": 0.25,
    "steady": 20.0,
    "validation": 2.0,
    "checkpoint": 1.0,
}  # 31.5 s


def accounted(**figures):
    """A job of 40 s that waited for 10."""
    times = {"submitted_at_s": 990.0, "started_at_s": 1000.0, "ended_at_s": 1040.0, "wall_time_s": 40.0}
    return Efficiency(**{"job_id": "7", "source": "sacct", "state": "COMPLETED"} | times | figures)


def rank(number=0, *, phases=PHASES, started_at_s=1002.0, ended_at_s=1036.0, **figures):
    training = TrainingMetrics(phases_s=phases) if phases is not None else None
    identity = {"rank": number, "local_rank": 0, "node_rank": number, "world_size": 2, "host": f"n{number}"}
    times = {"started_at_s": started_at_s, "ended_at_s": ended_at_s, "exit_code": 0}
    return RankUsage(**identity | times | {"training": training} | figures)


def sum_parts(timeline):
    """Seconds of all known parts: queue to end."""
    return sum(getattr(timeline, f"{name}_s") or 0.0 for name in PARTS)


def test_the_parts_of_a_training_add_up_to_queue_and_wall_clock():
    timeline = build_timeline(accounted(), [rank(), rank(1)])
    assert timeline.queued_s == 10
    assert timeline.launch_s == 2
    assert timeline.preflight_s == 0.25
    assert timeline.starting_s == 2 + 7 + 0.25 + 0.25 + 0.5 + 0.25
    assert timeline.steady_s == 20
    assert timeline.shutdown_s == 40 - 2 - 31.5
    assert (timeline.lost_s, timeline.unsplit_s) == (0, None)
    assert sum_parts(timeline) == timeline.total_s == 50
    assert timeline.ettr == 20 / 50


def test_every_part_is_a_field():
    timeline = build_timeline(accounted(), [rank()])
    assert all(hasattr(timeline, f"{name}_s") for name in PARTS)


def test_a_phase_nobody_knows_of_counts_as_other():
    timeline = build_timeline(accounted(), [rank(phases={**PHASES, "tuning": 3.0})])
    assert timeline.other_s == 3.25
    assert sum_parts(timeline) == 50


def test_runs_that_were_requeued_are_lost_and_the_waits_between_are_queue():
    first = accounted(submitted_at_s=900.0, started_at_s=905.0, ended_at_s=935.0, wall_time_s=30.0, state="PREEMPTED")
    timeline = build_timeline(accounted(submitted_at_s=936.0, earlier_runs=(first,)), [rank()])
    assert timeline.lost_s == 30
    assert timeline.queued_s == 1000 - 900 - 30
    assert timeline.total_s == sum_parts(timeline) == 140
    assert timeline.ettr == pytest.approx(20 / 140)


def test_slurm_s_whole_seconds_are_taken_from_the_launch():
    """Slurm started the job at 1000.9 and says 1000; the rank ended at 1033.6, and Slurm says 1033."""
    timeline = build_timeline(accounted(ended_at_s=1033.0, wall_time_s=33.0), [rank(ended_at_s=1033.6)])
    assert timeline.launch_s == 1.5
    assert timeline.shutdown_s == 0
    assert sum_parts(timeline) == 43


def test_a_program_that_tells_no_phases_is_not_split_up():
    timeline = build_timeline(accounted(), [rank(phases=None)])
    assert (timeline.launch_s, timeline.unsplit_s, timeline.shutdown_s) == (2, 34, 4)
    assert (timeline.steady_s, timeline.starting_s, timeline.ettr) == (None, None, None)
    assert sum_parts(timeline) == 50


def test_what_a_failed_rank_did_after_its_last_words_is_not_called_shutdown():
    timeline = build_timeline(accounted(state="FAILED"), [rank(exit_code=1, phases={"imports": 10.0})])
    assert (timeline.imports_s, timeline.unsplit_s, timeline.shutdown_s) == (10, 24, 4)


def test_a_killed_rank_leaves_the_rest_open():
    timeline = build_timeline(accounted(state="TIMEOUT"), [rank(ended_at_s=None, exit_code=None, phases=None)])
    assert (timeline.launch_s, timeline.unsplit_s, timeline.shutdown_s) == (2, 38, None)


def test_without_ranks_only_the_queue_is_known():
    timeline = build_timeline(accounted(), [])
    assert (timeline.queued_s, timeline.unsplit_s, timeline.launch_s) == (10, 40, None)


def test_seff_has_no_points_in_time():
    timeline = build_timeline(Efficiency(job_id="7", wall_time_s=40.0), [rank()])
    assert (timeline.queued_s, timeline.lost_s, timeline.total_s, timeline.ettr) == (None, None, None, None)
    assert timeline.unsplit_s == 40


def test_a_running_job_has_no_parts_yet():
    timeline = build_timeline(accounted(live=True, ended_at_s=None), [rank()])
    assert (timeline.queued_s, timeline.total_s, timeline.unsplit_s) == (10, None, None)


def test_a_local_run_was_submitted_when_its_record_was_made():
    local = accounted(submitted_at_s=None, source="ranks")
    assert build_timeline(local, [rank()], submitted_at_s=999.5).queued_s == 0.5
    assert build_timeline(local, [rank()]).queued_s is None


GIB = 1024**3


def test_figures_that_agree_within_a_tenth_are_not_mentioned():
    one = accounted(cpu_time_s=100.0, memory_used_bytes=10 * GIB)
    assert not find_disagreements(one, [rank(cpu_time_s=45.5, memory_peak_bytes=int(4.55 * GIB)) for _ in "12"])


def test_what_the_programs_around_a_rank_take_is_no_disagreement():
    """Of a rank that sleeps: 0.4 s and 25 MB by Slurm, next to nothing and 16 MB by itself."""
    one = accounted(cpu_time_s=0.4, memory_used_bytes=25_000_000)
    assert not find_disagreements(one, [rank(cpu_time_s=0.01, memory_peak_bytes=16_000_000)])


def test_a_disagreement_has_both_figures_and_a_reason():
    one = accounted(cpu_time_s=50.0, memory_used_bytes=2 * GIB)
    cpu, memory = find_disagreements(one, [rank(cpu_time_s=40.0, memory_peak_bytes=GIB // 2) for _ in "12"])
    assert (cpu.figure, cpu.slurm, cpu.ranks) == ("cpu_time_s", 50, 80)
    assert "child processes" in cpu.reason
    assert (memory.figure, memory.slurm, memory.ranks) == ("memory_used_bytes", 2 * GIB, GIB)
    assert "page cache" in memory.reason


@pytest.mark.parametrize(("count", "reason"), [(1, "samples missed"), (2, "different moments")])
def test_more_memory_in_the_ranks_than_in_slurm_is_explained(count, reason):
    one = accounted(memory_used_bytes=GIB)
    (found,) = find_disagreements(one, [rank(memory_peak_bytes=2 * GIB) for _ in range(count)])
    assert reason in found.reason


def test_nothing_is_compared_with_a_rank_that_did_not_report():
    one = accounted(cpu_time_s=50.0, memory_used_bytes=GIB)
    assert not find_disagreements(one, [rank(cpu_time_s=5.0, memory_peak_bytes=5), rank(1)])
    assert not find_disagreements(accounted(source="ranks", cpu_time_s=1.0), [rank(cpu_time_s=50.0)])
