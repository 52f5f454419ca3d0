"""Where the steps of a job go, over its ranks; the figures are worked out by hand."""

import pytest

from hpcdist.records.ranks import (
    RankUsage,
    StepSplit,
    Straggler,
    TrainingMetrics,
    find_straggler,
    mean_split,
    waiting_s,
)


def split(data_ms, compute_ms, communication_ms, other_ms, steps=100):
    parts = (data_ms, compute_ms, communication_ms, other_ms)
    data_s, compute_s, communication_s, other_s = (part / 1000 for part in parts)
    return StepSplit(
        steps=steps,
        data_s=data_s,
        compute_s=compute_s,
        communication_s=communication_s,
        other_s=other_s,
        step_s=sum(parts) / 1000,
    )


def ranks(*splits):
    return [
        RankUsage(
            rank=at,
            local_rank=0,
            node_rank=at,
            world_size=len(splits),
            host=f"n{at + 1}",
            started_at_s=0.0,
            training=TrainingMetrics(split=one) if one else None,
        )
        for at, one in enumerate(splits)
    ]


# Rank 1 computes 6 ms longer; the other two wait for it.
UNEVEN = ranks(split(1, 10, 8, 1), split(1, 16, 2, 1), split(1, 12, 6, 1, steps=90))


class TestMean:
    def test_each_part_is_the_mean_over_ranks(self):
        mean = mean_split(UNEVEN)
        # (10 + 16 + 12) / 3 = 12.67 and (8 + 2 + 6) / 3 = 5.33 ms; all steps take 20 ms.
        assert mean.steps == 90
        assert mean.data_s == pytest.approx(1e-3)
        assert mean.compute_s == pytest.approx(38e-3 / 3)
        assert mean.communication_s == pytest.approx(16e-3 / 3)
        assert mean.other_s == pytest.approx(1e-3)
        assert mean.step_s == pytest.approx(20e-3)

    def test_ranks_without_a_split_are_left_out(self):
        assert mean_split(ranks(None, split(1, 2, 3, 4))) == split(1, 2, 3, 4)
        assert mean_split(ranks(None, None)) is None


class TestWaiting:
    def test_it_is_what_the_mean_exceeds_the_least_by(self):
        assert waiting_s(UNEVEN) == pytest.approx(16e-3 / 3 - 2e-3)

    def test_equal_ranks_do_not_wait(self):
        assert waiting_s(ranks(split(0, 9, 2, 1), split(0, 9, 2, 1))) == 0

    def test_of_one_rank_it_is_not_known(self):
        assert waiting_s(ranks(split(0, 9, 2, 1), None)) is None


class TestStraggler:
    def test_it_has_the_most_work_of_its_own(self):
        # Own work 12, 18 and 14 ms: 18 over the median of 12 and 14.
        assert find_straggler(UNEVEN) == Straggler(rank=1, host="n2", slowdown=pytest.approx(18 / 13))

    def test_of_two_ranks_it_is_compared_with_the_other(self):
        found = find_straggler(ranks(split(0, 9, 20, 1), split(15, 14, 1, 1)))
        assert found == Straggler(rank=1, host="n2", slowdown=pytest.approx(3.0))

    def test_a_rank_that_waits_long_is_not_slow(self):
        assert find_straggler(ranks(split(0, 9, 90, 1), split(0, 10, 1, 1))).rank == 1

    def test_equal_ranks_have_a_slowdown_of_1(self):
        assert find_straggler(ranks(split(0, 9, 2, 1), split(0, 9, 2, 1))).slowdown == 1

    def test_one_rank_has_no_straggler(self):
        assert find_straggler(ranks(split(0, 9, 0, 1))) is None
        assert find_straggler(ranks(split(0, 9, 0, 1), None)) is None
