"""What kind each figure is, and what has to be said beneath it."""

import pytest

from hpcdist.config.job import Layout
from hpcdist.jobs.efficiency import from_ranks
from hpcdist.records.efficiency import Efficiency, Gathering, footnotes, parse_gathering, with_gathering
from hpcdist.records.ranks import RankUsage
from hpcdist.slurm.sacct import parse_sacct
from hpcdist.slurm.seff import parse_seff
from tests.slurm.test_sacct import row, step

SAMPLED = {"SLURM_VERSION": "23.02.7", "JobAcctGatherType": "jobacct_gather/linux"}


def job(*steps: str, every_s: float | None = None, **cells: str) -> Efficiency:
    (found,) = parse_sacct([row(**cells), *steps])
    return with_gathering(found, Gathering(gathered="sampled", every_s=every_s)) if every_s else found


@pytest.mark.parametrize(
    ("frequency", "every_s"),
    [("30", 30), ("task=1", 1), ("energy=5,task=15,network=30", 15), ("0", None), ("task=0", None), ("energy=5", 30)],
)
def test_the_interval_is_the_tasks(frequency: str, every_s: float | None) -> None:
    found = parse_gathering(SAMPLED | {"JobAcctGatherFrequency": frequency})
    assert found == Gathering(gathered="sampled", every_s=every_s, slurm_version="23.02.7")


@pytest.mark.parametrize(
    ("version", "plugin", "gathered"),
    [
        ("24.05.8", "jobacct_gather/cgroup", "sampled"),
        ("24.11.0", "jobacct_gather/cgroup", "cgroup-peak"),
        ("26.05.1", "jobacct_gather/cgroup", "cgroup-peak"),
        ("26.05.1", "jobacct_gather/linux", "sampled"),
        ("26.05.1", "jobacct_gather/none", "nothing"),
        ("22.05.8", "(null)", "nothing"),
    ],
)
def test_the_kernel_s_peak_is_read_since_24_11(version: str, plugin: str, gathered: str) -> None:
    assert parse_gathering({"SLURM_VERSION": version, "JobAcctGatherType": plugin}).gathered == gathered


def test_a_cluster_that_does_not_answer_is_unknown() -> None:
    assert parse_gathering({}) == Gathering()


def test_what_is_unknown_has_no_kind() -> None:
    assert job().kinds.keys() == {"cpu_time_s"}
    assert job(TotalCPU="00:00:00").kinds == {}


def test_each_source_names_itself() -> None:
    text = "Job ID: 1\nState: COMPLETED\nCPU Utilized: 00:00:09\nMemory Utilized: 3.00 GB (estimated maximum)\n"
    (printed,) = parse_seff(text)
    assert {(kind.kind, kind.source) for kind in printed.kinds.values()} == {("total", "seff"), ("estimate", "seff")}
    rank = RankUsage(rank=0, local_rank=0, node_rank=0, world_size=1, host="h", started_at_s=0.0, ended_at_s=9.0)
    measured = from_ranks("local-1", Layout(gpus=0, cpus_per_task=1), [rank_of(rank, cpu=2.0, memory=5, gpu=0.5)])
    assert {name: (kind.kind, kind.every_s, kind.source) for name, kind in measured.kinds.items()} == {
        "cpu_time_s": ("total", None, "ranks"),
        "memory_used_bytes": ("peak", 1.0, "ranks"),
        "gpu_efficiency": ("mean", 1.0, "ranks"),
    }


def rank_of(rank: RankUsage, *, cpu: float, memory: int, gpu: float) -> RankUsage:
    values = {name: getattr(rank, name) for name in rank.__struct_fields__}
    return RankUsage(
        **values | {"exit_code": 0, "cpu_time_s": cpu, "memory_peak_bytes": memory, "gpu_utilization": gpu}
    )


def test_earlier_runs_are_of_the_same_cluster() -> None:
    runs = [row(State="REQUEUED", ElapsedRaw="3"), step(TRESUsageInTot="mem=4M"), row(Submit="300"), step(MaxRSS="1M")]
    (found,) = parse_sacct(runs)
    found = with_gathering(found, Gathering(gathered="sampled", every_s=30.0))
    assert found.earlier_runs[0].kinds["memory_used_bytes"].every_s == 30
    assert found.kinds["memory_used_bytes"].every_s == 30


# Footnotes


def test_nothing_is_said_of_figures_that_are_as_they_look() -> None:
    assert footnotes(job(step(TRESUsageInTot="mem=4M"), every_s=1)) == []
    assert footnotes(job(step(TRESUsageInTot="mem=4M"), every_s=30, ElapsedRaw="900")) == []
    assert footnotes(job()) == []


def test_a_short_job_between_rare_samples() -> None:
    (note,) = footnotes(job(step(TRESUsageInTot="mem=4M"), every_s=30, ElapsedRaw="60"))
    assert "every 30 s" in note
    assert "60 s" in note
    (note,) = footnotes(job(step(), every_s=30, ElapsedRaw="20"))
    assert note.startswith("Memory: unknown")


def test_children_of_what_was_killed_may_be_missing_from_cpu_time() -> None:
    killed = {"State": "TIMEOUT", "ElapsedRaw": "120", "TotalCPU": "01:00.000"}
    (note,) = footnotes(job(step(TRESUsageInTot="mem=4M"), every_s=30, **killed))
    assert note.startswith("CPU: the job was killed")
    assert footnotes(job(step(TRESUsageInTot="mem=4M"), every_s=1, **killed)) == []
    assert footnotes(job(step(TRESUsageInTot="mem=4M"), every_s=30, **killed | {"ElapsedRaw": "9000"})) == []


def test_an_estimate_is_called_one() -> None:
    (note,) = footnotes(job(step(MaxRSS="1M", NTasks="4")))
    assert "largest task times the number of tasks" in note


def test_page_cache_is_mentioned_where_it_is_counted() -> None:
    found = with_gathering(job(step(TRESUsageInTot="mem=4M")), Gathering(gathered="cgroup-peak"))
    (note,) = footnotes(found)
    assert "cache" in note
    assert found.kinds["memory_used_bytes"].every_s is None


def test_a_cluster_that_gathers_nothing_says_so() -> None:
    found = with_gathering(job(step(), TotalCPU="00:00:00"), Gathering(gathered="nothing"))
    (note,) = footnotes(found)
    assert "JobAcctGatherType=none" in note


def test_a_gpu_peak_is_explained() -> None:
    (note,) = footnotes(job(step(TRESUsageInTot="gres/gpuutil=180,mem=1M")))
    assert "no efficiency" in note


def test_requeued_runs_are_summed_up() -> None:
    (found,) = parse_sacct([row(State="PREEMPTED", ElapsedRaw="7"), row(Submit="300", ElapsedRaw="5")])
    (note,) = footnotes(found)
    assert "PREEMPTED after 7 s" in note
    assert "12 s over all" in note
