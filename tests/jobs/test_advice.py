"""The next request: each rule fires, and does not fire where it must not."""

import pytest

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.training import Training
from hpcdist.jobs.advice import Observation, advise
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.ranks import RankUsage
from hpcdist.units import parse_slurm_memory, parse_slurm_time

GIB = 1024**3


def observation(layout=None, *, accelerator="auto", ranks=(), foreign=False, **figures):
    """A CPU job of one node that used what it asked for: 1000 s, 4 of 4 CPUs, 3 of 4 GiB."""
    layout = {"gpus": 0, "cpus_per_task": 4, "mem": "4G", "time": "30", **(layout or {})}
    usual = {
        "job_id": "7",
        "source": "sacct",
        "state": "COMPLETED",
        "nodes": layout.get("nodes", 1),
        "cores": 4,
        "cpu_time_s": 4000.0,
        "wall_time_s": 1000.0,
        "memory_used_bytes": 3 * GIB,
        "memory_requested_bytes": 4 * GIB,
        "time_limit_s": 1800.0,
    }
    job = JobSpec(name="mnist", layout=Layout(**layout), training=Training(accelerator=accelerator))
    return Observation(efficiency=Efficiency(**usual | figures), job=None if foreign else job, ranks=tuple(ranks))


def rank(number=0, *, node=0, cpu_time_s=None, memory=None, busy=None):
    return RankUsage(
        rank=number,
        local_rank=0,
        node_rank=node,
        world_size=1,
        host="n",
        started_at_s=0.0,
        ended_at_s=1000.0,
        cpu_time_s=cpu_time_s,
        memory_peak_bytes=memory,
        gpu_utilization=busy,
    )


def changes(*observations):
    return advise(observations).changes()


def line(option, *observations):
    (found,) = [one for one in advise(observations).lines if one.option == option]
    return found


def test_a_job_that_used_what_it_asked_for_keeps_its_request():
    advice = advise([observation()])
    assert advice.changes() == {}
    assert [one.option for one in advice.lines] == ["cpus-per-task", "mem", "time"]


@pytest.mark.parametrize(
    ("cpu_time_s", "advised"),
    [(3200.0, "4"), (3190.0, "4"), (2900.0, "3"), (2100.0, "3"), (2003.0, "2"), (10.0, "1"), (0.0, "1")],
)
def test_a_cpu_job_under_80_percent_gets_the_cpus_that_were_busy(cpu_time_s, advised):
    assert line("cpus-per-task", observation(cpu_time_s=cpu_time_s)).advised == advised


def test_the_busiest_rank_counts_not_the_mean():
    ranks = [rank(0, cpu_time_s=2900.0), rank(1, node=1, cpu_time_s=100.0)]
    both = observation({"nodes": 2}, ranks=ranks, cpu_time_s=3000.0, cores=8, memory_used_bytes=6 * GIB)
    assert line("cpus-per-task", both).advised == "3"


@pytest.mark.parametrize(
    ("cpu_time_s", "gpu_efficiency", "advised"),
    [
        (2400.0, None, "4"),  # 60 % of a CPU job would be cut to 3
        (1000.0, None, "2"),  # one was busy: twice that stays
        (1000.0, 0.3, "4"),  # the GPU waits: perhaps for these
        (1000.0, 0.9, "2"),
    ],
)
def test_cpu_rules_do_not_blame_gpu_jobs(cpu_time_s, gpu_efficiency, advised):
    one = observation({"gpus": 1}, gpus=1, cpu_time_s=cpu_time_s, gpu_efficiency=gpu_efficiency)
    assert line("cpus-per-task", one).advised == advised


@pytest.mark.parametrize(
    ("used_gib", "advised"),
    [
        (1.0, "1280M"),  # 25 %: 1.2 GiB, up to the next 128 MiB
        (1.39, "1792M"),  # 34.75 %: 1.668 GiB
        (1.41, "4G"),  # 35.25 %
        (3.3, "4G"),  # 3.96 GiB needed
        (3.4, "4608M"),  # 4.08 GiB needed: no 20 % left
        (4.0, "5G"),
    ],
)
def test_memory_is_lowered_under_35_percent_and_raised_without_headroom(used_gib, advised):
    found = line("mem", observation(memory_used_bytes=int(used_gib * GIB)))
    assert found.advised == advised
    assert parse_slurm_memory(found.advised) >= 1.2 * used_gib * GIB


def test_the_higher_of_slurm_and_ranks_is_the_peak_and_the_fullest_node_counts():
    ranks = [rank(0, memory=1 * GIB), rank(1, memory=2 * GIB), rank(2, node=1, memory=1 * GIB)]
    two = observation({"nodes": 2, "tasks_per_node": 2}, ranks=ranks, memory_used_bytes=2 * GIB, cores=16)
    assert "peak 3.00 GB of 2.00 GB" in line("mem", two).evidence
    assert line("mem", two).advised == "4G"  # 3.6 GiB in steps of half a GiB


def test_memory_per_cpu_grows_as_cpus_shrink():
    """1 GiB was used of 4 x 1 GiB; one CPU must then have 1.2 GiB."""
    layout = {"mem": None, "mem_per_cpu": "1G"}
    one = observation(layout, cpu_time_s=900.0, memory_used_bytes=GIB)
    assert changes(one) == {"cpus-per-task": "1", "mem-per-cpu": "1280M"}


def test_without_a_request_fewer_cpus_must_not_take_the_memory_along():
    assert changes(observation({"mem": None}, cpu_time_s=900.0)) == {"cpus-per-task": "1", "mem": "4G"}
    assert changes(observation({"mem": None})) == {}


def test_a_small_request_is_not_rounded_up():
    small = {"memory_used_bytes": 30 * 1024**2, "memory_requested_bytes": 100 * 1024**2}
    assert changes(observation({"mem": "100M"}, **small)) == {}


@pytest.mark.parametrize(
    ("wall_s", "advised"),
    [
        (359.0, "10"),  # under 20 % of 30 minutes: 9 minutes, in steps of 5
        (361.0, "30"),
        (1600.0, "30"),
        (1700.0, "45"),  # less than a tenth left: 42.5 minutes
    ],
)
def test_the_time_limit(wall_s, advised):
    found = line("time", observation(wall_time_s=wall_s, cpu_time_s=4 * wall_s))
    assert found.advised == advised
    assert parse_slurm_time(found.advised) > wall_s


def test_a_job_without_a_limit_gets_one():
    assert changes(observation({"time": None}, time_limit_s=None)) == {"time": "25"}


def test_long_limits_are_in_hours_and_days():
    day = observation({"time": "10-0"}, wall_time_s=100_000.0, cpu_time_s=4e5, time_limit_s=864_000.0)
    assert line("time", day).advised == "1-18:00:00"


def test_a_job_that_ran_out_of_time_or_memory_gets_half_as_much_again():
    late = observation(state="TIMEOUT", wall_time_s=1800.0, cpu_time_s=100.0, memory_used_bytes=GIB // 8)
    assert changes(late) == {"time": "45"}  # and nothing is lowered
    full = observation(state="OUT_OF_MEMORY", memory_used_bytes=3 * GIB, wall_time_s=5.0, cpu_time_s=1.0)
    assert changes(full) == {"mem": "6G"}
    over = observation(state="OUT_OF_MEMORY", memory_used_bytes=5 * GIB, wall_time_s=5.0, cpu_time_s=1.0)
    assert changes(over) == {"mem": "7680M"}  # 5 GiB were seen before it was ended: 7.5 GiB


def test_a_failed_or_running_job_lowers_nothing():
    little = {"wall_time_s": 60.0, "cpu_time_s": 6.0, "memory_used_bytes": GIB // 8}
    assert changes(observation(state="FAILED", **little)) == {}
    advice = advise([observation(state="RUNNING", live=True, **little)])
    assert advice.changes() == {}
    assert "still runs" in advice.notes[0]


def test_several_jobs_count_by_their_highest_use():
    low = observation(wall_time_s=100.0, cpu_time_s=100.0, memory_used_bytes=GIB)
    high = observation(wall_time_s=200.0, cpu_time_s=500.0, memory_used_bytes=GIB + GIB // 4)
    advice = advise([high, low])
    assert advice.changes() == {"cpus-per-task": "3", "mem": "1536M", "time": "5"}
    assert "2 jobs" in advice.lines[0].evidence
    assert not any("one job" in note for note in advice.notes)


def test_one_short_job_is_said_to_be_little():
    (first, *_) = advise([observation(wall_time_s=60.0)]).notes
    assert first.startswith("one job of 60 s, in which start-up weighs more")
    (first, *_) = advise([observation(wall_time_s=6000.0)]).notes
    assert first.startswith("one job is not much")


def test_gpus_are_cut_to_those_used():
    ranks = [rank(0, busy=0.9), rank(1, busy=0.0)]
    one = observation({"gpus": 2}, gpus=2, ranks=ranks)
    assert line("gpus", one).advised == "1"
    assert line("gpus", observation({"gpus": 2}, gpus=2, ranks=[rank(busy=0.9), rank(1, busy=0.2)])).advised == "2"


def test_unmeasured_gpus_are_kept():
    found = line("gpus", observation({"gpus": 1}, gpus=1, ranks=[rank()]))
    assert (found.advised, found.is_change) == ("1", False)


def test_gpus_of_a_training_on_cpus_are_given_back_with_the_same_ranks():
    one = observation({"gpus": 2, "cpus_per_task": 2}, gpus=2, accelerator="cpu")
    assert changes(one) == {"gpus": "0", "tasks-per-node": "2"}


def test_a_job_of_somebody_else_is_judged_by_its_accounting():
    advice = advise([observation(foreign=True, cpu_time_s=900.0, memory_used_bytes=GIB, wall_time_s=100.0)])
    assert advice.changes() == {"mem": "1280M", "time": "5"}  # nine CPUs' worth of time in 100 s: more than asked
    assert any("samples memory" in note for note in advice.notes)


def test_unmeasured_is_not_zero():
    blank = observation(cpu_time_s=None, memory_used_bytes=None)
    advice = advise([blank])
    assert [one.option for one in advice.lines] == ["time"]
    assert "nobody measured the memory" in advice.notes
