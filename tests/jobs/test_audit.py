"""What really ran: each finding fires where it should and nowhere else."""

from pathlib import Path

import pytest

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.training import Training
from hpcdist.jobs.audit import Claim, audit_job, find_inconsistent
from hpcdist.records.efficiency import Efficiency
from hpcdist.records.ranks import RankUsage, TrainingMetrics
from hpcdist.slurm.seff import parse_seff

SEFF = Path(__file__).parents[1] / "data" / "seff"


def job(*, accelerator="auto", **layout):
    return JobSpec(name="mnist", layout=Layout(**layout), training=Training(accelerator=accelerator))


def rank(number=0, *, busy=None, **training):
    return RankUsage(
        rank=number,
        local_rank=0,
        node_rank=number,
        world_size=2,
        host="n",
        started_at_s=0.0,
        gpu_utilization=busy,
        training=TrainingMetrics(**training) if training else None,
    )


def used(**figures):
    return Efficiency(**{"job_id": "7", "state": "COMPLETED", "wall_time_s": 100.0} | figures)


def codes(audit):
    return [finding.code for finding in audit.findings]


def test_a_sound_job_has_no_findings():
    ranks = [rank(n, busy=0.9, world_size=2, global_batch_size=512, steps=118, samples=30_000) for n in (0, 1)]
    efficiency = used(cores=4, gpus=2, cpu_time_s=120.0)
    audit = audit_job(efficiency, ranks, job(nodes=2, gpus=1))
    assert codes(audit) == []
    assert (audit.ranks_asked, audit.ranks, audit.world_size, audit.global_batch_size) == (2, 2, 2, 512)
    assert (audit.gpus, audit.gpus_used, audit.cores, audit.cores_busy) == (2, 2, 4, 1.2)


def test_fewer_ranks_than_asked():
    assert codes(audit_job(used(), [rank()], job(nodes=2))) == ["fewer-ranks"]
    assert codes(audit_job(used(state="FAILED"), [rank()], job(nodes=2))) == []


def test_ranks_that_each_say_they_are_alone():
    ranks = [rank(n, world_size=1, global_batch_size=64, steps=10, samples=640) for n in (0, 1)]
    assert codes(audit_job(used(), ranks, job(nodes=2))) == ["alone"]
    assert codes(audit_job(used(), ranks[:1], job(nodes=1))) == []


def test_ranks_that_each_trained_on_everything():
    """118 steps of 512 are 60,416 samples for both together; each computed all 60,000."""
    both = [rank(n, world_size=2, global_batch_size=512, steps=118, samples=60_000) for n in (0, 1)]
    audit = audit_job(used(), both, job(nodes=2))
    assert codes(audit) == ["same-work"]
    assert audit.findings[0].evidence == {"samples": 120_000, "samples_expected": 60_416, "ranks": 2}


def test_gpus_are_unknown_on_cpus_and_idle_below_a_hundredth():
    assert audit_job(used(gpus=2), [rank(), rank(1)], job(nodes=2)).gpus_used is None
    idle = audit_job(used(gpus=2), [rank(busy=0.8), rank(1, busy=0.0)], job(nodes=2))
    assert codes(idle) == ["idle-gpus"]
    assert idle.gpus_used == 1
    assert codes(audit_job(used(gpus=1), [rank(busy=0.3)], job())) == ["waiting-gpus"]


def test_gpus_of_a_training_on_cpus_are_unused():
    assert codes(audit_job(used(gpus=1), [rank()], job(accelerator="cpu"))) == ["unused-gpus"]
    assert codes(audit_job(used(gpus=0), [rank()], job(gpus=0, accelerator="cpu"))) == []


@pytest.mark.parametrize(
    ("gpus", "cores", "cpu_time_s", "expected"),
    [
        (0, 8, 200.0, ["idle-cores"]),  # 2 of 8 busy
        (0, 8, 700.0, []),  # 7 of 8: 87 %
        (0, 2, 110.0, []),  # 1.1 of 2: one would be too few
        (1, 8, 200.0, []),  # a GPU job is not blamed
        (1, 64, 200.0, ["idle-cores"]),  # but for cores it did not ask for
        (0, 8, None, []),
    ],
)
def test_idle_cores(gpus, cores, cpu_time_s, expected):
    efficiency = used(gpus=gpus or None, cores=cores, cpu_time_s=cpu_time_s)
    assert codes(audit_job(efficiency, [rank()], job(gpus=gpus, cpus_per_task=8))) == expected


def test_without_any_figures_nothing_is_said():
    audit = audit_job(None, [], None)
    assert (audit.ranks, audit.gpus, audit.cores_busy, audit.findings) == (None, None, None, ())


def study(claimed=(1, 2, 2)):
    """The MNIST study's three runs, from what seff printed of them."""
    names = ("mnist-1n1g", "mnist-1n2g", "mnist-2n4g")
    claims = []
    for name, ranks in zip(names, claimed, strict=True):
        (one,) = parse_seff((SEFF / f"24.11plus__{name}.txt").read_text())
        claims.append(
            Claim(
                name=name,
                ranks=ranks,
                wall_time_s=one.wall_time_s,
                memory_used_bytes=one.memory_used_bytes,
                cores=one.cores,
            )
        )
    return claims


def test_the_study_s_third_run_is_not_one_of_two_ranks():
    (finding,) = find_inconsistent(study())
    assert finding.code == "inconsistent"
    assert finding.sentence.startswith("mnist-2n4g is said to have had 2 rank(s), but its figures fit 4")
    assert finding.evidence["ranks_by_memory"] == 3.93  # 11.90 / 3.03
    assert finding.evidence["speedup"] == 2.8  # 199 / 71
    assert "128 cores are those of 4 too" in finding.sentence


def test_the_study_is_consistent_with_four_ranks():
    assert find_inconsistent(study((1, 2, 4))) == []


def test_memory_or_speed_alone_proves_nothing():
    one = Claim(name="a", ranks=1, wall_time_s=100.0, memory_used_bytes=1000)
    slow = Claim(name="b", ranks=2, wall_time_s=60.0, memory_used_bytes=4000)  # 1.7 times as fast: two may do that
    fast = Claim(name="c", ranks=2, wall_time_s=30.0, memory_used_bytes=2000)  # more than linear: a cache, say
    unknown = Claim(name="d", ranks=2, wall_time_s=30.0)
    assert find_inconsistent([one, slow, fast, unknown]) == []
    assert find_inconsistent([one]) == []


def test_a_run_of_fewer_ranks_than_claimed_is_found_too():
    one = Claim(name="a", ranks=1, wall_time_s=100.0, memory_used_bytes=1000)
    same = Claim(name="b", ranks=4, wall_time_s=98.0, memory_used_bytes=1020)
    assert [finding.evidence["ranks_by_memory"] for finding in find_inconsistent([one, same])] == [1.02]
