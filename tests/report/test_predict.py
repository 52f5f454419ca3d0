"""What a layout would take, predicted from smaller ones and a probe; figures worked out by hand."""

import pytest

from hpcdist.report.predict import Link, all_reduce_s, carry_to_ranks, find_exposed_s, predict, predict_measured
from tests.studies.finished_trials import done, probe, report, split, study, variant

ONE, TWO, NET, FOUR = (variant(name) for name in ("1x1", "1x2", "2x1", "2x2"))
STEPS = 354
# In the node 0.2 ms and 1 GB/s; between nodes 0.4 ms and 2.4 MB/s.
INSIDE, BETWEEN = probe(0.2, 1000.0), probe(0.4, 2.4)


def runs(of, splits, *, wall, link=None, count=3, **fields):
    return of, [done(of, wall=wall, splits=splits, link=link, steps=STEPS, **fields) for _ in range(count)]


def calibration():
    return [
        runs(ONE, [split(compute=26.0)], wall=16.0),
        runs(TWO, [split(compute=13.0, communication=2.0)] * 2, wall=12.0, link=INSIDE),
    ]


def link(nodes=2, ranks=2, measured=BETWEEN):
    return Link(ranks=ranks, nodes=nodes, probe=measured)


def test_two_nodes_are_predicted_from_one_node_and_the_probe_between_two():
    # 228 kB: 0.4 + 95 ms between nodes, 0.2 + 0.228 ms inside; each of 354 steps takes the difference longer, and so
    # does the first copy of the parameters; the preflight's three sizes come three times each.
    longer_s = (0.0004 + 228e3 / 2.4e6) - (0.0002 + 228e3 / 1e9)
    sizes = 4 + 228_000 + 4_000_000
    preflight_s = 3 * (3 * 0.0002 + sizes * (1 / 2.4e6 - 1 / 1e9))
    found = predict(NET, calibration(), [link()])
    assert found.wall_s == pytest.approx(12.0 + (STEPS + 1) * longer_s + preflight_s, rel=1e-6)
    assert found.low_s < found.wall_s < found.high_s
    assert found.variant == "2x1"
    assert found.measured_s is None
    assert found.basis == ("1x2's step of 16.0 ms (3 runs) and an all-reduce of 228,000 bytes in 95.4 ms, 354 steps")


def test_a_network_as_quick_as_the_node_predicts_the_node_s_time():
    assert predict(NET, calibration(), [link(measured=INSIDE)]).wall_s == pytest.approx(12.0)


def test_the_range_has_the_repeats_spread_and_the_model_s_error():
    known = (TWO, [done(TWO, wall=w, splits=[split(compute=13.0)] * 2, link=INSIDE) for w in (11.0, 12.0, 14.0)])
    found = predict(NET, [known], [link(measured=INSIDE)])
    # 5 % of 12 s, and no communication.
    assert found.low_s == pytest.approx(12.0 - 1.0 - 0.6)
    assert found.high_s == pytest.approx(12.0 + 2.0 + 0.6)


def test_without_a_probe_between_nodes_there_is_no_prediction():
    assert predict(NET, calibration()) is None


def test_without_a_split_or_a_smaller_layout_of_several_ranks_there_is_no_prediction():
    assert predict(NET, calibration()[:1], [link()]) is None
    assert predict(NET, [runs(TWO, None, wall=12.0, link=INSIDE)], [link()]) is None


def test_other_settings_are_no_calibration():
    assert predict(variant("2x1", settings={"lr": 1}), calibration(), [link()]) is None


def test_a_job_that_lacked_ranks_is_no_calibration():
    known = [runs(TWO, [split(communication=2.0)] * 2, wall=12.0, link=INSIDE, world=1)]
    assert predict(NET, known, [link()]) is None


def test_more_ranks_are_carried_on_along_the_batch_per_rank_and_marked():
    # 26 ms for 512 samples and 13 for 256 are 6.5 for 128: 354 steps of 6.5 ms less than on two ranks, on a link
    # probed in that very shape that takes no longer.
    found = predict(FOUR, calibration(), [link(ranks=4, measured=INSIDE)])
    assert found.wall_s == pytest.approx(12.0 - STEPS * 0.0065, abs=0.01)
    assert found.basis.endswith("extrapolated from 2 to 4 ranks")
    near = predict(FOUR, calibration(), [link(ranks=2, measured=INSIDE)])
    assert near.basis.endswith("the network was probed in another shape")


def test_the_range_of_an_extrapolation_is_wider():
    known, same = calibration(), [link(measured=INSIDE)]
    near, far = predict(NET, known, same), predict(FOUR, known, [link(ranks=4, measured=INSIDE)])
    assert (far.high_s - far.low_s) / far.wall_s > (near.high_s - near.low_s) / near.wall_s


def test_more_ranks_need_a_second_layout_to_tell_the_batch_s_effect():
    assert predict(FOUR, calibration()[1:], [link(ranks=4)]) is None


def test_weak_scaling_keeps_the_step_and_takes_fewer_of_them():
    # Twice the ranks at the same batch each: half the steps.
    found = predict(FOUR, calibration(), [link(ranks=4, measured=INSIDE)], weak=True)
    assert found.wall_s == pytest.approx(12.0 - STEPS / 2 * 0.016, abs=0.01)


def test_what_was_predicted_stands_beside_what_was_measured():
    measured = runs(NET, [split(compute=13.0, communication=97.0)] * 2, wall=52.0, link=BETWEEN)
    (found,) = predict_measured([*calibration(), measured])
    assert found.variant == "2x1"
    assert found.measured_s == 52.0
    assert found.wall_s == predict(NET, calibration(), [link()]).wall_s
    assert report(study(), [*calibration(), measured]).predictions == (found,)


def test_the_prediction_does_not_look_at_what_the_layout_itself_took():
    quick, slow = (
        runs(NET, [split(compute=13.0, communication=97.0)] * 2, wall=wall, link=BETWEEN) for wall in (40.0, 90.0)
    )
    assert predict_measured([*calibration(), quick])[0].wall_s == predict_measured([*calibration(), slow])[0].wall_s


def test_an_all_reduce_lies_on_the_line_between_two_probed_sizes():
    points = probe(1.0, 100.0, sizes=(1_000_000, 3_000_000))
    assert all_reduce_s(points, 2_000_000) == pytest.approx(0.021)
    assert all_reduce_s(points, 5_000_000) == pytest.approx(0.051)
    assert all_reduce_s(points, 10) == pytest.approx(0.011)
    assert all_reduce_s(points[:1], 10) == pytest.approx(0.011)


def test_a_ring_of_more_ranks_sends_more_messages_and_little_more_bytes():
    # From 2 ranks to 4: latency x 3, bytes x (2 x 3/4) / (2 x 1/2) = 1.5.
    points = probe(1.0, 100.0, sizes=(4, 1_000_000))
    assert carry_to_ranks(points, 1_000_000, 2, 4) == pytest.approx(0.003 + 0.015, rel=1e-3)
    assert carry_to_ranks(points, 1_000_000, 2, 2) == pytest.approx(0.011)


LARGE = 100_000_000


@pytest.mark.parametrize(
    ("exposed_s", "before_s", "after_s", "backward_s", "size_bytes", "expected_s"),
    [
        (0.004, 0.001, 0.003, 1.0, LARGE, 0.006),  # more shows than the probe has: that stays
        (0.001, 0.004, 0.008, 1.0, LARGE, 0.002),  # three quarters are hidden, and will be
        (0.001, 0.004, 0.080, 0.010, LARGE, 0.070),  # but no more than the backward pass lasts
        (0.001, 0.004, 0.080, 1.0, 228_000, 0.077),  # one bucket is never hidden
        (0.001, 0.004, 0.002, 1.0, 228_000, 0.0),  # nor is it less than nothing
    ],
)
def test_how_much_of_another_all_reduce_a_step_will_show(
    exposed_s, before_s, after_s, backward_s, size_bytes, expected_s
):
    assert find_exposed_s(exposed_s, before_s, after_s, backward_s, size_bytes) == pytest.approx(expected_s)
