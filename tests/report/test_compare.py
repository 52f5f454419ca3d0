"""A study's trials put together: rows, baselines, costs, time to target, what nobody measured."""

import time

import msgspec
import pytest

from hpcdist.config.site import Prices
from hpcdist.records.efficiency import Efficiency
from hpcdist.report.compare import compare
from hpcdist.report.model import Spread
from hpcdist.studies.study import Trial
from tests.studies.finished_trials import START_S, done, failed, probe, report, row, said, split, study, variant

ONE, TWO, NET = variant("1x1"), variant("1x2"), variant("2x1")


def test_a_row_has_the_median_and_the_spread_of_its_completed_jobs():
    found = report(study(), [(ONE, [done(ONE, wall=15.0), done(ONE, wall=14.0), failed(), done(ONE, wall=17.0)])])
    assert row(found, "1x1").wall_s == Spread(median=15.0, low=14.0, high=17.0, count=3)
    assert [trial.state for trial in row(found, "1x1").trials] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]


def test_speedup_is_of_images_per_second_and_efficiency_per_rank():
    # 36,000 over 20,000 with two ranks: 1.8 and 90 %; at worst 35,000 / 20,500, at best 37,000 / 19,500.
    jobs = [
        (ONE, [done(ONE, images=n) for n in (19_500.0, 20_000.0, 20_500.0)]),
        (TWO, [done(TWO, images=n) for n in (35_000.0, 36_000.0, 37_000.0)]),
    ]
    found = report(study(), jobs)
    two = row(found, "1x2")
    assert two.speedup == Spread(median=1.8, low=35_000 / 20_500, high=37_000 / 19_500, count=3)
    assert two.efficiency.median == pytest.approx(0.9)
    assert row(found, "1x1").speedup == Spread(median=1.0, low=1.0, high=1.0, count=3)
    assert row(found, "1x1").is_baseline
    assert not two.is_baseline


def test_without_images_per_second_speedups_are_by_wall_clock_for_all():
    third = variant("1x3")
    jobs = [
        (ONE, [done(ONE, wall=40.0)]),
        (TWO, [done(TWO, wall=25.0, images=None)]),
        (third, [done(third, wall=20.0, images=90_000.0)]),
    ]
    found = report(study(), jobs)
    assert row(found, "1x2").speedup.median == pytest.approx(1.6)
    assert row(found, "1x3").speedup.median == pytest.approx(2.0)


def test_efficiency_counts_the_ranks_that_worked_not_those_asked_for():
    four = variant("2x2")
    found = report(study(), [(ONE, [done(ONE)]), (four, [done(four, images=36_000.0, world=2)])])
    assert row(found, "2x2").ranks_worked == 2
    assert row(found, "2x2").efficiency.median == pytest.approx(0.9)


def test_torchrun_s_tasks_are_not_taken_for_its_ranks():
    of = variant("2x2", options={"launcher": "torchrun"})
    plain = variant("2x2")
    record = done(of, world=None, images=None)
    audit = msgspec.structs.replace(record.audit, world_size=None, ranks=2)
    record = msgspec.structs.replace(record, audit=audit)
    assert row(report(study(), [(of, [record])]), "2x2").ranks_worked is None
    assert row(report(study(), [(plain, [record])]), "2x2").ranks_worked == 2


def test_jobs_that_failed_or_were_never_sent_stay_with_their_reason():
    denied = failed(state="REFUSED", sentence="Slurm refused: invalid account", kind="refused")
    found = report(study(), [(ONE, [failed(), denied, None])])
    assert [(trial.state, trial.reason) for trial in row(found, "1x1").trials] == [
        ("FAILED", "rank 1 ran out of memory"),
        ("REFUSED", "Slurm refused: invalid account"),
        ("NOT SUBMITTED", "it was not submitted"),
    ]
    assert row(found, "1x1").wall_s is None
    assert found.not_measured == ("everything: no job of the study completed",)


def test_time_to_target_is_to_the_first_test_that_reached_it():
    tests = ((6.0, 0.95), (9.5, 0.981), (13.0, 0.979))
    found = report(study(target_accuracy=0.98), [(ONE, [done(ONE, tests=tests)])])
    assert row(found, "1x1").time_to_target_s.median == pytest.approx(9.5)
    assert row(report(study(target_accuracy=0.99), [(ONE, [done(ONE, tests=tests)])]), "1x1").time_to_target_s is None
    assert row(report(study(), [(ONE, [done(ONE, tests=tests)])]), "1x1").time_to_target_s is None


def earlier(started, wall):
    return Efficiency(job_id="7", started_at_s=START_S + started, wall_time_s=wall)


def test_a_requeued_job_pays_for_its_earlier_run_and_its_time_to_target_leaves_out_the_wait():
    # 40 s, a wait of 60 s, then 15 s of which 5 to the target: 45 s; 55 s are paid for by 2 GPUs.
    runs = (earlier(-100.0, 40.0),)
    record = done(NET, wall=15.0, tests=((5.0, 0.99),), earlier_runs=runs)
    found = report(study(target_accuracy=0.98), [(NET, [record])])
    assert row(found, "2x1").time_to_target_s.median == pytest.approx(45.0)
    assert row(found, "2x1").gpu_hours.median == pytest.approx(2 * 55 / 3600)
    reached_before = done(NET, wall=15.0, tests=((-70.0, 0.99),), earlier_runs=runs)
    found = report(study(target_accuracy=0.98), [(NET, [reached_before])])
    assert row(found, "2x1").time_to_target_s.median == pytest.approx(30.0)


def test_cost_by_hand():
    # Half an hour of 2 GPUs at 3 and 2 nodes at 1: 0.5 x (6 + 2).
    prices = Prices(per_gpu_hour=3.0, per_node_hour=1.0, node_types={"fat": 10.0}, currency="EUR")
    tests = ((900.0, 0.99),)
    found = report(study(prices=prices, target_accuracy=0.98), [(NET, [done(NET, wall=1800.0, tests=tests)])])
    assert row(found, "2x1").cost.median == pytest.approx(4.0)
    assert row(found, "2x1").cost_to_target.median == pytest.approx(2.0)
    assert row(found, "2x1").gpu_hours.median == pytest.approx(1.0)
    assert found.currency == "EUR"


def test_a_named_node_type_s_price_goes_before_that_of_any_node():
    prices = Prices(per_node_hour=1.0, node_types={"fat": 10.0})
    fat = variant("2x1", options={"constraint": "fat"})
    assert row(report(study(prices=prices), [(fat, [done(fat, wall=1800.0)])]), "2x1").cost.median == pytest.approx(
        10.0
    )


def test_without_prices_there_is_no_cost():
    found = report(study(), [(ONE, [done(ONE)])])
    assert row(found, "1x1").cost is None
    assert found.currency is None
    assert "cost: the study has no prices for these layouts" in found.not_measured


def test_a_cpu_layout_counts_rank_hours():
    cpu = variant("1x0", tasks_per_node=4)
    found = report(study(prices=Prices(per_gpu_hour=3.0)), [(cpu, [done(cpu, wall=3600.0)])])
    assert row(found, "1x0").gpu_hours.median == pytest.approx(4.0)
    assert row(found, "1x0").cost is None


def test_each_choice_of_settings_has_its_own_baseline():
    pairs = [variant(name, settings={"precision": kind}) for name in ("1x1", "1x2") for kind in ("32", "bf16-mixed")]
    images = [20_000.0, 40_000.0, 30_000.0, 80_000.0]
    found = report(study(), [(one, [done(one, images=n)]) for one, n in zip(pairs, images, strict=True)])
    assert [one.speedup.median for one in found.rows] == pytest.approx([1.0, 1.0, 1.5, 2.0])
    assert [one.is_baseline for one in found.rows] == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("cpus_per_task", (2, 4), None),
        ("env.WORKERS", ("1", "2"), lambda value: {"env": {"WORKERS": value, "A": "b"}}),
        ("args", (("-a",), ("-b",)), lambda value: {"command": ["run", *value]}),
    ],
)
def test_whatever_is_swept_a_layout_stays_the_same(name, values, options):
    pairs = []
    for shape in ("1x1", "1x2"):
        for value in values:
            layout = {name: value} if name == "cpus_per_task" else {}
            pairs.append(variant(shape, settings={name: value}, options=options and options(value), **layout))
    found = report(study(), [(one, [done(one)]) for one in pairs])
    assert [one.is_baseline for one in found.rows] == [True, True, False, False]


def test_one_layout_alone_is_compared_to_its_first_settings():
    few, many = (variant("1x1", settings={"batch_size": size}) for size in (64, 512))
    found = report(study(), [(few, [done(few, images=5_000.0)]), (many, [done(many, images=20_000.0)])])
    assert [one.speedup.median for one in found.rows] == pytest.approx([1.0, 4.0])


def test_the_study_may_name_another_baseline():
    found = report(study(baseline="1x2"), [(ONE, [done(ONE, images=10.0)]), (TWO, [done(TWO, images=16.0)])])
    assert [one.is_baseline for one in found.rows] == [False, True]
    # 10/16 as fast as two ranks, with one rank: an efficiency of 1.25 relative to theirs.
    assert row(found, "1x1").efficiency.median == pytest.approx(1.25)


def test_a_baseline_named_with_its_settings_is_that_of_all():
    pairs = [variant(name, settings={"precision": kind}) for name in ("1x1", "1x2") for kind in ("32", "bf16-mixed")]
    images = [20_000.0, 40_000.0, 30_000.0, 80_000.0]
    jobs = [(one, [done(one, images=n)]) for one, n in zip(pairs, images, strict=True)]
    found = report(study(baseline="1x1 precision=32"), jobs)
    assert [one.speedup.median for one in found.rows] == pytest.approx([1.0, 2.0, 1.5, 4.0])
    assert [one.is_baseline for one in found.rows] == [True, False, False, False]


def test_variants_whose_wall_clock_spreads_overlap_are_named_with_each_other():
    jobs = [
        (ONE, [done(ONE, wall=w) for w in (10.0, 12.0)]),
        (TWO, [done(TWO, wall=w) for w in (11.0, 13.0)]),
        (NET, [done(NET, wall=w) for w in (12.5, 14.0)]),
    ]
    found = report(study(), jobs)
    assert [one.same_as for one in found.rows] == [("1x2",), ("1x1", "2x1"), ("1x2",)]


def test_repeats_of_one_are_called_equal_to_nothing():
    found = report(study(), [(ONE, [done(ONE, wall=10.0)]), (TWO, [done(TWO, wall=10.0)])])
    assert [one.same_as for one in found.rows] == [(), ()]


def test_the_step_s_parts_waiting_and_link_are_medians():
    jobs = [
        done(TWO, splits=[split(communication=1.0), split(communication=3.0)], link=probe(0.2, 100.0)),
        done(TWO, splits=[split(communication=2.0), split(communication=4.0)], link=probe(0.4, 100.0)),
        done(TWO, splits=[split(communication=3.0), split(communication=9.0)], link=probe(0.3, 100.0)),
    ]
    two = row(report(study(), [(TWO, jobs)]), "1x2")
    assert two.split.communication_s == pytest.approx(3e-3)
    assert two.waiting_s == pytest.approx(1e-3)
    assert two.latency_s == pytest.approx(0.3e-3, rel=1e-3)
    assert two.bytes_per_step == 228_000


def test_what_nobody_measured_is_said():
    found = report(study(), [(ONE, [done(ONE, images=None)]), (TWO, [done(TWO, splits=[split()] * 2)])])
    assert "step-time split of 1x1" in found.not_measured
    assert "GPU efficiency" in found.not_measured
    assert "bandwidth and latency between the ranks" in found.not_measured
    assert "spread: everything ran once" in found.not_measured
    assert not any("bytes all-reduced" in clause for clause in found.not_measured)


def test_fits_are_of_each_choice_of_settings_with_several_ranks():
    rates = {"1x1": 20_000.0, "1x2": 32_000.0, "1x4": 44_000.0}
    found = report(study(), [(one := variant(name), [done(one, images=rate)]) for name, rate in rates.items()])
    assert [fit.law for fit in found.fits] == ["amdahl", "karp-flatt", "usl"]
    # (1/1.6 - 1/2) / (1 - 1/2) by hand.
    assert found.fits[1].parameters["e_2"] == pytest.approx(0.25)
    alone = report(study(), [(ONE, [done(ONE)])])
    assert alone.fits == ()


def test_a_trial_of_no_variant_of_the_study_is_left_out():
    found = compare(study(), [ONE], [(Trial(variant="9x9", repeat=1), done(ONE))], made_at_s=0.0)
    assert found.rows[0].trials == ()


def test_a_study_without_variants_has_an_empty_report():
    found = compare(study(), [], [], made_at_s=0.0)
    assert found.rows == ()
    assert said(found, "nothing-completed")


def test_a_thousand_jobs_take_less_than_a_second():
    record = done(TWO, splits=[split(communication=2.0)] * 2, link=probe())
    jobs = [(variant("1x2", settings={"lr": at}), [record] * 5) for at in range(200)]
    started = time.process_time()
    report(study(), jobs)
    assert time.process_time() - started < 2.0  # 0.2 s on an idle machine; a busy one gets ten times as long
    started = time.process_time()
    report(study(), [(TWO, [record] * 1000)])
    assert time.process_time() - started < 2.0


def test_what_the_loaders_took_is_a_share_of_the_cpus_allocated():
    one = variant("2x1", cpus_per_task=2)
    # Two ranks with two CPUs each for 10 s are 40 CPU-seconds; their loaders took 6 and 4 of them.
    record = done(one, wall=10.0)
    ranks = [
        msgspec.structs.replace(rank, children_cpu_time_s=spent)
        for rank, spent in zip(record.ranks, (6.0, 4.0), strict=True)
    ]
    found = report(study(), [(one, [msgspec.structs.replace(record, ranks=ranks)])])
    assert found.rows[0].loader_cpu_share.median == pytest.approx(0.25)
    unknown = report(study(), [(one, [record])])
    assert unknown.rows[0].loader_cpu_share is None
