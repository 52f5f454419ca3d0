"""sstat's rows, as Slurm 22.05.8 printed them, added to what sacct knows of a running job."""

import pytest

from hpcdist.slurm.sacct import parse_sacct
from hpcdist.slurm.sstat import LiveUsage, parse_sstat, sstat_arguments, with_live_usage
from tests.slurm.test_sacct import row, step

# Two tasks of an array on a real cluster.
ROWS = """\
4254.batch|1|11071488|00:00:00|cpu=00:00:00,energy=0,fs/disk=27522,mem=11071488,pages=6,vmem=224600064
4254.0|2|53727232|00:00:02|cpu=00:00:05,energy=0,fs/disk=3371662,mem=87281664,pages=0,vmem=93933568
4253.batch|1|11272192|00:00:00|cpu=00:00:00,energy=0,fs/disk=27522,mem=11272192,pages=0,vmem=224600064
4253.0|2|53706752|00:00:02|cpu=00:00:05,energy=0,fs/disk=3371662,mem=87502848,pages=0,vmem=93933568
"""
# One task that held 100 MB, freed it, and sleeps.
FREED = "4279.0|1|108548096|00:00:00|cpu=00:00:00,energy=0,fs/disk=363228,mem=8560640,pages=0,vmem=11653120\n"


def running(**cells):
    (found,) = parse_sacct([row(**{"JobIDRaw": "4254", "State": "RUNNING", "End": "Unknown", "TotalCPU": ""} | cells)])
    return found


def test_usage_by_the_job_s_own_id():
    found = parse_sstat(ROWS.split("\n"))
    assert found["4254"] == LiveUsage(cpu_time_s=5, memory_bytes=2 * 53727232, memory_is_estimate=True)
    assert found.keys() == {"4253", "4254"}


def test_memory_is_the_peak_so_far_not_what_is_in_use():
    assert parse_sstat([FREED])["4279"].memory_bytes == 108548096


def test_a_running_job_gets_figures_and_says_whose_they_are():
    job = with_live_usage(running(ElapsedRaw="10", AllocCPUS="2"), parse_sstat(ROWS.split("\n"))["4254"])
    assert (job.live, job.source, job.cpu_time_s, job.cpu_efficiency) == (True, "sstat", 5, 0.25)
    assert (job.memory_used_bytes, job.memory_is_estimate) == (107454464, True)
    assert {kind.source for kind in job.kinds.values()} == {"sstat"}


def test_ended_steps_count_too():
    (before,) = parse_sacct(
        [row(State="RUNNING", End="Unknown", TotalCPU="00:30.000"), step(TRESUsageInTot="mem=500M")]
    )
    job = with_live_usage(before, LiveUsage(cpu_time_s=5, memory_bytes=1000))
    assert (job.cpu_time_s, job.memory_used_bytes) == (35, 500 * 1024**2)


@pytest.mark.parametrize("usage", [None, *parse_sstat(["", "sstat: error: couldn't get steps", "5.0|1|100"]).values()])
def test_without_usage_figures_stay_unknown(usage):
    job = with_live_usage(running(), usage)
    assert (job.cpu_time_s, job.memory_used_bytes, job.source) == (None, None, "sacct")


def test_a_job_that_is_over_is_left_alone():
    (over,) = parse_sacct([row()])
    assert with_live_usage(over, LiveUsage(cpu_time_s=5)) is over


def test_rows_that_are_none_are_left_out():
    rows = [
        f"7.{number}|{cells}" for number, cells in enumerate(["1|much||", "1||ages|", "x|||", "1|1K||cpu=00:00:01"])
    ]
    assert parse_sstat(rows) == {"7": LiveUsage(cpu_time_s=1, memory_bytes=1024)}


def test_arguments():
    assert sstat_arguments(["1", "2"])[-1] == "--jobs=1,2"
