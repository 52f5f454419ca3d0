"""What `benchmarks.train` says of two ranks."""

import io

import pytest

from benchmarks.paced import CUT_SHORT, IN_STEP, Pace
from benchmarks.ranks import APART, TOGETHER, Run, describe_step
from hpcdist.records.network import AllReduce
from hpcdist.records.ranks import StepSplit, TrainingMetrics


def measured(compute_s, communication_s):
    split = StepSplit(
        steps=100, data_s=0.0, compute_s=compute_s, communication_s=communication_s, other_s=0.0, step_s=1.0
    )
    probe = tuple(
        AllReduce(size_bytes=size, latency_s=latency_s, bandwidth_bytes_per_s=size / latency_s)
        for size, latency_s in ((4, 0.0001), (228_000, 0.002), (4_000_000, 0.01))
    )
    return TrainingMetrics(split=split, probe=probe, bytes_per_step=227_880)


RUN = Run(
    step_s={TOGETHER: [0.010, 0.012], APART: [0.007, 0.009], IN_STEP: [0.008, 0.010]},
    metrics={
        TOGETHER: [measured(0.008, 0.0005), measured(0.009, 0.0015)],
        APART: [measured(0.006, 0.0), measured(0.008, 0.0)],
        IN_STEP: [measured(0.006, 0.0), measured(0.008, 0.0)],
    },
)


def test_a_row_has_the_means_of_both_ranks_what_is_hidden_and_the_bound():
    # Steps of 7 and 9 ms apart, 10 and 12 ms together; of an all-reduce of 2 ms 1 ms is exposed: half is hidden.
    # 8 ms of work and 2 ms that nothing hides: 8 / 10.
    cells = describe_step([RUN]).split()
    assert cells == ["8.00", "9.00", "11.00", "7.00", "8.50", "1.00", "2.00", "50", "%", "0.800"]


def test_a_kind_that_did_not_run_has_no_figure():
    run = Run({TOGETHER: RUN.step_s[TOGETHER], APART: RUN.step_s[APART]}, RUN.metrics)
    assert run.ratio(IN_STEP) is None
    assert describe_step([run]).split()[1] == "-"


def test_a_ratio_is_of_steps_per_second_of_both_ranks():
    # 100 and 83.3 steps per second together, 142.9 and 111.1 apart.
    assert RUN.ratio(TOGETHER) == pytest.approx((100 + 83.333) / (142.857 + 111.111), rel=1e-4)


class Lines(io.StringIO):
    """Of the turns: so many begin."""

    def __init__(self, turns):
        super().__init__()
        self.left = turns

    def readline(self):
        self.left -= 1
        return "go\n" if self.left >= 0 else ""


class TestPace:
    def test_a_turn_has_its_seconds_unless_the_end_of_the_epoch_cuts_it_short(self):
        lines = Lines(10)
        pace = Pace(lines, 3, None)
        for _ in range(2):  # epochs of 7 batches: two whole turns, and the first batch of a third
            assert list(pace.keep(iter(range(7)))) == list(range(7))
        said = lines.getvalue().split("\n")[:-1]
        assert [one == CUT_SHORT for one in said] == [False, False, True, False, False]
        assert all(float(one) >= 0 for one in said if one != CUT_SHORT)

    def test_when_the_turns_are_over_the_training_goes_on(self):
        lines = Lines(2)
        assert list(Pace(lines, 3, None).keep(iter(range(20)))) == list(range(20))
        assert len(lines.getvalue().splitlines()) == 2
