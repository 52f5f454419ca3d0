"""What `benchmarks.train` says of two ranks."""

from benchmarks.ranks import Pair, describe_step
from hpcdist.probe import AllReduce
from hpcdist.record import StepSplit, TrainingMetrics


def measured(step_s, compute_s, communication_s):
    split = StepSplit(
        steps=100, data_s=0.0, compute_s=compute_s, communication_s=communication_s, other_s=0.0, step_s=step_s
    )
    probe = tuple(
        AllReduce(size_bytes=size, latency_s=latency_s, bandwidth_bytes_per_s=size / latency_s)
        for size, latency_s in ((4, 0.0001), (228_000, 0.002), (4_000_000, 0.01))
    )
    return TrainingMetrics(split=split, probe=probe, bytes_per_step=227_880)


def test_a_row_has_the_means_of_both_ranks_what_is_hidden_and_the_bound():
    # Steps of 7 and 9 ms apart, 10 and 12 ms together; of an all-reduce of 2 ms 1 ms is exposed: half is hidden.
    # 8 ms of work and 2 ms that nothing hides: 8 / 10.
    pair = Pair(
        together=[measured(0.010, 0.008, 0.0005), measured(0.012, 0.009, 0.0015)],
        apart=[measured(0.007, 0.006, 0.0), measured(0.009, 0.008, 0.0)],
    )
    cells = describe_step([pair]).split()
    assert cells == ["8.00", "11.00", "7.00", "8.50", "1.00", "2.00", "50", "%", "0.800"]
