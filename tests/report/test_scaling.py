"""Spreads, the laws of scaling, and when two figures are called different."""

import pytest

from hpcdist.report.model import Spread
from hpcdist.report.scaling import (
    compare_spreads,
    find_karp_flatt,
    fit_all,
    fit_amdahl,
    fit_usl,
    is_less,
    karp_flatt,
    ratio,
    scale,
    spread,
    student_t,
)


def of(*values):
    return spread(values)


def test_a_spread_leaves_out_the_repeats_that_did_not_measure():
    assert spread([3.0, None, 1.0, 2.5]) == Spread(median=2.5, low=1.0, high=3.0, count=3)
    assert spread([None]) is None


def test_a_ratio_has_the_worst_and_the_best_pairing_at_its_ends():
    # 2.0 x at the median; at worst 18 over 11, at best 22 over 9.
    found = ratio(of(18.0, 20.0, 22.0), of(9.0, 10.0, 11.0))
    assert found == Spread(median=2.0, low=18 / 11, high=22 / 9, count=3)


def test_a_ratio_over_nothing_or_zero_is_unknown():
    assert ratio(of(1.0), None) is None
    assert ratio(None, of(1.0)) is None
    assert ratio(of(1.0), of(0.0, 1.0)) is None


def test_scaling_a_spread_keeps_its_count():
    assert scale(of(2.0, 4.0), 0.5) == Spread(median=1.5, low=1.0, high=2.0, count=2)


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        ((1.0, 2.0), (1.9, 3.0), "equal"),
        ((1.0, 2.0), (2.0, 3.0), "equal"),
        ((1.0, 2.0), (2.1, 3.0), "different"),
        ((1.0,), (9.0, 10.0), "unknown"),
        ((1.0,), (1.0,), "unknown"),
    ],
)
def test_spreads_that_overlap_are_equal_and_a_single_repeat_tells_nothing(one, other, answer):
    assert compare_spreads(of(*one), of(*other)) == answer
    assert compare_spreads(of(*other), of(*one)) == answer


def test_figures_measured_once_differ_from_a_tenth_on():
    assert is_less(of(8.9), of(10.0))
    assert not is_less(of(9.1), of(10.0))
    assert is_less(of(9.8, 9.9), of(10.0, 10.1))
    assert not is_less(of(9.8, 10.0), of(10.0, 10.1))
    assert not is_less(of(10.0, 10.1), of(9.8, 9.9))


def amdahl(fraction, ranks):
    return 1 / (fraction + (1 - fraction) / ranks)


def test_exact_data_give_back_amdahl_s_fraction():
    fit = fit_amdahl([(p, amdahl(0.08, p)) for p in (1, 2, 4, 8)])
    assert fit.parameters["serial_fraction"] == pytest.approx(0.08)
    assert fit.note is None


def test_the_serial_fraction_stays_a_fraction():
    assert fit_amdahl([(1, 1.0), (2, 2.2), (4, 4.8)]).parameters["serial_fraction"] == 0.0
    assert fit_amdahl([(1, 1.0), (2, 0.5), (4, 0.3)]).parameters["serial_fraction"] == 1.0


def test_two_points_are_not_enough_for_amdahl_nor_layouts_with_as_many_ranks():
    assert fit_amdahl([(1, 1.0), (2, 1.8)]).note == "not enough points: 2 of 3 numbers of ranks"
    assert fit_amdahl([(1, 1.0), (2, 1.8), (2, 1.7)]).note == "not enough points: 2 of 3 numbers of ranks"
    assert fit_amdahl([(2, 1.0), (4, 1.8), (8, 3.0)]).note == "not enough points: none of a single rank"


# M. J. Quinn, "Parallel Programming in C with MPI and OpenMP" (2004), 7.5: two machines with 4.7 on 8 processors, the
# first held back by serial work, the second by overhead.
SERIAL = [1.0, 1.8, 2.5, 3.1, 3.6, 4.0, 4.4, 4.7]
OVERHEAD = [1.0, 1.9, 2.6, 3.2, 3.7, 4.1, 4.5, 4.7]


def test_karp_flatt_of_the_textbook_s_serial_machine_is_a_tenth_throughout():
    fit = find_karp_flatt(list(enumerate(SERIAL, 1)))
    assert fit.parameters["rises"] == 0
    for ranks in range(2, 9):
        assert fit.parameters[f"e_{ranks}"] == pytest.approx(0.1, abs=0.012)


def test_karp_flatt_of_the_textbook_s_machine_with_overhead_rises():
    fit = find_karp_flatt(list(enumerate(OVERHEAD, 1)))
    assert fit.parameters["rises"] == 1
    assert fit.parameters["e_8"] == pytest.approx(0.1, abs=0.001)


def test_karp_flatt_by_hand():
    # (1/1.6 - 1/2) / (1 - 1/2)
    assert karp_flatt(2, 1.6) == pytest.approx(0.25)


def test_karp_flatt_of_two_layouts_with_as_many_ranks_is_their_mean():
    fit = find_karp_flatt([(1, 1.0), (2, 1.6), (2, 2.0), (4, 2.0)])
    assert fit.parameters["e_2"] == pytest.approx(0.125)


# SPEC SDM91 on a SPARCcenter 2000, as in the R package usl 3.0 (README): its fit by nls() of the same seven points.
SPEC = [(1, 64.9), (18, 995.9), (36, 1652.4), (72, 1853.2), (108, 1828.9), (144, 1775.0), (216, 1702.2)]


def test_usl_agrees_with_the_r_package_on_its_published_example():
    fit = fit_usl(SPEC)
    assert fit.parameters["alpha"] == pytest.approx(0.0277285, abs=5e-8)
    assert fit.parameters["beta"] == pytest.approx(0.0001044, abs=5e-8)
    assert fit.parameters["gamma"] == pytest.approx(89.9952330, abs=5e-6)
    assert fit.parameters["peak_ranks"] == pytest.approx(96.52, abs=0.005)


def test_usl_s_intervals_are_those_of_the_published_standard_errors():
    # Standard errors 0.0091217 and 14.2134894 of the same table, 4 degrees of freedom: t = 2.7764.
    fit = fit_usl(SPEC)
    low, high = fit.intervals["alpha"]
    assert (high - low) / 2 == pytest.approx(2.7764 * 0.0091217, rel=1e-4)
    low, high = fit.intervals["gamma"]
    assert (high - low) / 2 == pytest.approx(2.7764 * 14.2134894, rel=1e-4)


def usl(ranks, alpha, beta, gamma=1.0):
    return gamma * ranks / (1 + alpha * (ranks - 1) + beta * ranks * (ranks - 1))


def test_exact_data_give_back_usl_s_parameters():
    fit = fit_usl([(n, usl(n, 0.05, 0.002, 0.97)) for n in (1, 2, 4, 8, 16)])
    assert fit.parameters["alpha"] == pytest.approx(0.05)
    assert fit.parameters["beta"] == pytest.approx(0.002)
    assert fit.parameters["gamma"] == pytest.approx(0.97)
    assert fit.parameters["peak_ranks"] == pytest.approx((0.95 / 0.002) ** 0.5)


def test_usl_without_coherency_cost_has_no_peak():
    assert "peak_ranks" not in fit_usl([(n, usl(n, 0.1, -0.001)) for n in (1, 2, 4, 8)]).parameters


def test_usl_needs_four_numbers_of_ranks():
    fit = fit_usl([(1, 1.0), (2, 1.9), (2, 1.8), (4, 3.0)])
    assert fit.note == "not enough points: 3 of 4 numbers of ranks"
    assert fit.parameters == {}


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (30, 2.0423)])
def test_student_s_t_is_that_of_the_tables(freedom, t):
    # Abramowitz and Stegun, table 26.10.
    assert student_t(freedom) == pytest.approx(t, abs=5e-5)


def test_weak_scaling_has_no_amdahl():
    points = [(n, float(n)) for n in (1, 2, 4, 8)]
    amdahl_fit, karp, universal = fit_all(points, {"workers": 2}, weak=True)
    assert amdahl_fit.note == karp.note == "not for weak scaling: the law is about a problem of fixed size"
    assert universal.parameters["gamma"] == pytest.approx(1.0)
    assert universal.settings == {"workers": 2}
    assert universal.ranks == (1, 2, 4, 8)
