"""The post-mortem: which rank is blamed, and what is told with every cause."""

from hpcdist.config.job import JobSpec, Layout
from hpcdist.jobs.diagnosis.evidence import Evidence, Log, format_ranks
from hpcdist.jobs.diagnosis.rules import judge
from hpcdist.records.job import Ending, Step
from hpcdist.records.ranks import RankUsage
from tests.jobs.diagnosis.attempts import one_rank, rank, text, verdict


def test_a_rank_that_ended_by_itself_is_blamed_and_those_ended_after_it_are_not():
    cause = verdict(ranks=[rank(0, signal=15, ended=101), rank(1, 7, ended=100)], logs={1: ["no more"]})
    assert (cause.kind, cause.rank, cause.host, cause.exit_code) == ("unknown", 1, "n2", 7)
    assert cause.sentence == "rank 1 on n2 ended with exit code 7"
    assert cause.tail == ("no more",)
    assert cause.evidence == ("FAILED", "rank 0: signal 15 (SIGTERM)", "rank 1: exit code 7")


def test_of_two_that_failed_the_first_is_blamed():
    assert verdict(ranks=[rank(0, 1, ended=100.2), rank(1, 1, ended=100.1)]).rank == 1


def test_a_victim_is_not_blamed_even_when_it_ended_first():
    """The rank that lost its peer may be quicker to end than the one that broke."""
    ranks = [rank(0, 1, ended=100.0), rank(1, signal=11, ended=100.4)]
    cause = verdict(ranks=ranks, logs={0: "gloo-lost-peer"})
    assert (cause.kind, cause.rank, cause.signal) == ("killed", 1, 11)
    assert verdict(ranks=[rank(0, 69, ended=99), rank(1, 2)]).rank == 1


def test_a_rank_that_hangs_after_its_exception_is_blamed_not_the_one_that_waited_for_it():
    logs = {0: "gloo-time-out-0", 1: "user-exception"}
    cause = verdict(ranks=[rank(0, 1), rank(1, signal=15, ended=101)], logs=logs)
    assert (cause.kind, cause.rank) == ("user-exception", 1)


def test_an_exception_that_was_survived_is_not_blamed():
    """It was printed and the rank worked on until it was ended."""
    log = [*text("user-exception"), *(f"step {number}" for number in range(20))]
    cause = verdict(ranks=[rank(0, 7, ended=100.5), rank(1, signal=15, ended=101)], logs={1: log})
    assert cause.rank == 0


def test_under_torchrun_the_worker_s_exception_counts_and_each_rank_reads_its_own_lines():
    ranks = [rank(0, signal=15), rank(1, 1)]
    ranks = [RankUsage(**{f: getattr(r, f) for f in r.__struct_fields__} | {"node_rank": 0}) for r in ranks]
    log = ("[rank0]: ValueError: not mine", *text("torchrun-child"))
    spec = JobSpec(name="a", layout=Layout(gpus=2), launcher="torchrun", command=("python",))
    cause = judge(
        Evidence(ending=Ending(state="FAILED"), job=spec, ranks=tuple(ranks), logs=(Log(path="0", task=0, lines=log),))
    )
    assert (cause.kind, cause.rank) == ("user-exception", 1)
    assert "raised ValueError: bad batch at /home/ada/study/tr.py:2" in cause.sentence


def test_what_nobody_explains_is_unknown_with_all_that_is_known():
    steps = (Step(name="batch", state="FAILED", signal=53), Step(name="extern", state="COMPLETED", exit_code=0))
    cause = verdict(run=None, job=False, signal=53, reason="RaisedSignal:53(Real-time_signal_19)", steps=steps)
    assert cause.kind == "unknown"
    assert cause.sentence == "signal 53, RaisedSignal:53(Real-time_signal_19)"
    assert cause.evidence[1] == "step batch: FAILED, signal 53"
    assert len(cause.evidence) == 2
    assert verdict("UNKNOWN", run=None).sentence == "nobody says why"


def test_a_long_log_is_cut_and_that_of_a_job_no_rank_brought_down_more_so():
    lines = [f"line {number}" for number in range(50)]
    assert one_rank(lines, 7).tail == tuple(lines[-20:])
    cause = verdict("TIMEOUT", [rank(0, signal=15)], {0: lines})
    assert (cause.tail, cause.rank) == (tuple(lines[-5:]), None)


def test_ranks_that_follow_each_other_are_told_as_a_range():
    assert format_ranks([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert format_ranks([3]) == "3"
