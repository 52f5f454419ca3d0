"""Samples put together into a curve."""

import pytest

from hpcdist.records.usage_curve import CurveBuilder, Moment, UsageCurve, build_curve, merge


def sample(at_s, span_s=1.0, **figures):
    return Moment(at_s, span_s, **figures)


def test_two_moments_are_their_mean_by_time_and_their_peak_of_memory():
    both = merge(
        sample(1.0, 1.0, cpu_cores=1.0, memory_bytes=300, gpu_utilization=None),
        sample(4.0, 3.0, cpu_cores=2.0, memory_bytes=200, gpu_utilization=0.5),
    )
    # By hand: (1 x 1 + 2 x 3) / 4.
    assert (both.at_s, both.span_s, both.cpu_cores, both.memory_bytes) == (4.0, 4.0, 1.75, 300)
    assert (both.gpu_utilization, both.disk_read_bytes_per_s) == (0.5, None)


def test_the_short_first_samples_make_one_point_and_the_last_one_counts():
    builder = CurveBuilder(1.0)
    for at_s, span_s in ((0.1, 0.1), (0.3, 0.2), (0.7, 0.4), (1.5, 0.8), (2.5, 1.0), (2.9, 0.4)):
        builder.add(sample(at_s, span_s, cpu_cores=1.0))
    assert [moment.at_s for moment in builder.moments()] == [1.5, 2.5, 2.9]


def test_a_long_run_has_a_bounded_number_of_coarser_points_and_the_same_mean():
    builder = CurveBuilder(1.0, most=8)
    values = [float(number % 7) for number in range(100)]
    for number, value in enumerate(values, 1):
        builder.add(sample(float(number), cpu_cores=value, memory_bytes=value))
    moments = builder.moments()
    assert builder.every_s == 16.0
    assert len(moments) <= 8
    assert sum(moment.span_s for moment in moments) == 100
    mean = sum(moment.cpu_cores * moment.span_s for moment in moments) / 100
    assert mean == pytest.approx(sum(values) / 100)
    assert max(moment.memory_bytes for moment in moments) == 6.0


def test_the_mean_of_a_window_is_of_the_points_inside_it():
    curve = UsageCurve(
        rank=0, host="n1", started_at_s=0.0, every_s=1.0, at_s=(1.0, 2.0, 4.0, 5.0), cpu_cores=(9.0, 1.0, 2.0, None)
    )
    # The points from 1 to 2 s and from 2 to 4 s: (1 x 1 + 2 x 2) / 3.
    assert curve.mean("cpu_cores", 0.5, 5.0) == pytest.approx(5 / 3)
    assert curve.mean("cpu_cores", 4.0, 5.0) is None
    assert curve.mean("gpu_utilization", 0.0, 5.0) is None


def test_what_nobody_measured_stays_unknown_in_the_curve():
    builder = CurveBuilder(1.0)
    builder.add(sample(1.0, cpu_cores=0.12345, memory_bytes=1e6))
    curve = build_curve(builder, rank=3, host="n1", started_at_s=7.0)
    assert (curve.rank, curve.at_s, curve.cpu_cores, curve.memory_bytes) == (3, (1.0,), (0.123,), (1_000_000,))
    assert curve.gpu_utilization == (None,)
