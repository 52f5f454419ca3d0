"""Causes the scheduler knows: each is found where it is, and not where it only looks so."""

import pytest

from hpcdist.jobs.advice import Observation
from hpcdist.records.job import Step
from tests.jobs.diagnosis.attempts import rank, usage, verdict


@pytest.mark.parametrize("log", ["oom-kill-21.08", "oom-kill-23.11"])
def test_out_of_memory_in_slurm_s_words(log):
    cause = verdict(ranks=[rank(0, signal=9), rank(1, signal=15)], batch=log, used=usage(3.9))
    assert (cause.kind, cause.rank) == ("out-of-memory", 0)
    assert cause.hint == "hpcdist rerun r --set mem=6G"  # 1.5 x 4 GiB
    assert "3.90 GB per node used of 4.00 GB, the highest seen" in cause.evidence


@pytest.mark.parametrize(
    "ending", [{"state": "OUT_OF_MEMORY"}, {"state": "FAILED", "steps": (Step(name="0", state="OUT_OF_MEMORY"),)}]
)
def test_out_of_memory_in_accounting(ending):
    assert verdict(**ending).kind == "out-of-memory"
    assert "--mem" in verdict(**ending).hint


def test_memory_per_cpu_is_raised_per_cpu():
    """4 GiB asked for on 4 CPUs: 6 GiB are 1536 MiB each, 12 steps of 128."""
    cause = verdict("OUT_OF_MEMORY", used=Observation(efficiency=usage(cores=4, memory_per="core").efficiency))
    assert cause.hint == "hpcdist rerun r --set mem_per_cpu=1536M"


def test_the_time_limit():
    ranks = [rank(0, signal=15), rank(1, signal=15)]
    cause = verdict("TIMEOUT", ranks, {0: ["step 1", "step 2"]}, used=usage())
    assert (cause.kind, cause.sentence) == ("time-limit", "it ran into its time limit of 00:30:00")
    assert cause.hint == "hpcdist rerun r --set time=45"  # half as much again
    assert verdict("DEADLINE").kind == "time-limit"
    # As scontrol and the log have it where accounting is off.
    assert verdict("FAILED", batch="slurm-time-limit").kind == "time-limit"


def test_a_rank_that_failed_long_before_the_limit_is_the_cause_of_it():
    """Without --kill-on-bad-exit the others wait for it until the end."""
    ranks = [rank(0, signal=15, ended=1800), rank(1, 1, ended=200)]
    cause = verdict("TIMEOUT", ranks, {1: "user-exception"}, ended_at_s=1800.0)
    assert (cause.kind, cause.rank) == ("user-exception", 1)
    late = [rank(0, signal=15, ended=1800), rank(1, 1, ended=1799)]
    assert verdict("TIMEOUT", late, {1: "user-exception"}, ended_at_s=1800.0).kind == "time-limit"


def test_preempted():
    assert verdict("PREEMPTED").kind == "preempted"
    assert verdict("FAILED", batch="slurm-preemption").kind == "preempted"
    assert verdict("COMPLETED", batch="slurm-preemption").kind == "completed"


def test_a_node_failure_names_the_node():
    ranks = [rank(0, 69), rank(1)]
    cause = verdict("NODE_FAIL", ranks, nodes="n[1-2]")
    assert (cause.kind, cause.rank, cause.host) == ("node-failure", 1, "n2")
    assert (cause.sentence, cause.hint) == ("node n2 failed", "hpcdist rerun r --set exclude=n2")
    assert verdict("NODE_FAIL", nodes="n7").sentence == "node n7 failed"
    assert verdict("NODE_FAIL", nodes="n[1-2]").sentence == "one of its nodes failed (n[1-2])"
    assert verdict("FAILED", batch="slurm-node-failure").sentence == "node n2 failed"


def test_a_job_that_slurm_refused():
    cause = verdict("REFUSED", reason="sbatch: invalid partition specified: gpu2")
    assert (cause.kind, cause.sentence) == (
        "bad-script",
        "Slurm refused the job: sbatch: invalid partition specified: gpu2",
    )


def test_a_job_that_slurm_lost_goes_on_from_what_it_saved():
    reason = "the controller has forgotten it, and accounting has it as RUNNING for ever"
    cause = verdict("LOST", [rank(0), rank(1)], reason=reason)
    assert (cause.kind, cause.sentence) == ("lost", f"Slurm lost the job: {reason}")
    assert cause.hint == "hpcdist rerun --resume r"
    assert "sacctmgr show runawayjobs lists such jobs" in cause.evidence
    assert verdict("LOST", reason=reason).hint == "hpcdist rerun r"  # no rank began: it has saved nothing
    assert verdict("LOST", [rank(0)], reason=reason, command=("true",)).hint == "hpcdist rerun r"
    assert verdict("LOST", run=None, reason=reason).hint == ""


def test_cancelled_says_by_whom():
    assert verdict("CANCELLED", [rank(0, signal=15)], cancelled_by="ada").sentence == "it was cancelled by ada"
    unstarted = verdict("CANCELLED", cancelled_by="ada", submitted_at_s=1.0)
    assert unstarted.sentence == "it was cancelled by ada before it started"
    ranks = [rank(0, signal=15, ended=900), rank(1, 1, ended=100)]
    assert verdict("CANCELLED", ranks, {1: "user-exception"}, ended_at_s=900.0).kind == "user-exception"


def test_a_job_that_never_started():
    cause = verdict("PENDING", reason="DependencyNeverSatisfied")
    assert (cause.kind, cause.sentence) == ("never-started", "it waits: DependencyNeverSatisfied")
    assert "never start" in cause.hint
    assert "--time" in verdict("PENDING", reason="PartitionTimeLimit").hint
    assert verdict("PENDING").sentence == "it waits"
    reason = {"reason": "DependencyNeverSatisfied", "submitted_at_s": 1.0}
    assert verdict("CANCELLED", **reason).kind == "never-started"
    assert verdict("CANCELLED", [rank(0, signal=15)], **reason).kind == "cancelled"


def test_a_job_that_is_fine_or_runs():
    assert verdict("COMPLETED", [rank(0, 0), rank(1, 0)], exit_code=0).kind == "completed"
    assert verdict("RUNNING", [rank(0), rank(1)]).sentence == "it runs"
    assert verdict("RUNNING", [rank(0), rank(1, 3)]).sentence == "it runs still, but rank 1 on n2 failed"
    assert verdict("REQUEUED").kind == "requeued"
