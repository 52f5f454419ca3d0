"""Latency and bandwidth from all-reduces of several sizes; the figures are worked out by hand."""

import pytest

from hpcdist.probe import AllReduce, fit_alpha_beta


def probe(*points):
    """All-reduces by bytes and milliseconds."""
    return [
        AllReduce(size_bytes=size, latency_s=ms / 1000, bandwidth_bytes_per_s=1000 * size / ms) for size, ms in points
    ]


def test_points_on_a_line_give_its_latency_and_bandwidth():
    # 2 ms, and 1 ms per 100 kB: 100 MB/s.
    latency_s, bandwidth = fit_alpha_beta(probe((0, 2), (100_000, 3), (1_000_000, 12)))
    assert latency_s == pytest.approx(2e-3)
    assert bandwidth == pytest.approx(100e6)


def test_a_tenth_more_for_a_large_one_hardly_moves_the_latency():
    # On the line of 2 ms and 100 MB/s but for 4 MB, which took 46.2 in place of 42 ms. Plain least squares finds a
    # latency of 2.94 ms (numpy.polyfit), with relative errors 1.988 ms and 95.78 MB/s (polyfit with w=1/t).
    latency_s, bandwidth = fit_alpha_beta(probe((0, 2), (100_000, 3), (4_000_000, 46.2), (10_000_000, 102)))
    assert latency_s == pytest.approx(1.9884e-3, rel=1e-4)
    assert bandwidth == pytest.approx(95.777e6, rel=1e-4)


def test_relative_errors_are_least():
    # By hand: sizes 0, 1, 2 and times 1, 1, 2 with weights 1, 1, 1/4. Means 2/3 of size and 10/9 of time, slope
    # (sum of w·x·t - 9/4·2/3·10/9) / (sum of w·x² - 9/4·4/9) = (2 - 5/3) / (2 - 1) = 1/3, latency 10/9 - 2/9 = 8/9.
    latency_s, bandwidth = fit_alpha_beta(probe((0, 1000), (1, 1000), (2, 2000)))
    assert latency_s == pytest.approx(8 / 9)
    assert bandwidth == pytest.approx(3)


def test_a_latency_below_zero_is_zero():
    # Twice the size took four times as long. Through zero, with weights 1 and 1/16: (1 + 4/16) / (1 + 8/16) = 5/6.
    assert fit_alpha_beta(probe((1, 1000), (2, 4000))) == (0.0, pytest.approx(5 / 6))


@pytest.mark.parametrize("points", [(), ((4, 1),), ((4, 1), (4, 2)), ((4, 2), (4000, 1))])
def test_what_shows_no_bandwidth_gives_none(points):
    assert fit_alpha_beta(probe(*points)) is None
