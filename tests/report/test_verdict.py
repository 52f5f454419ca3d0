"""The verdict: each rule with a case where it fires and one where it must not."""

import pytest

from hpcdist.config.site import Prices
from tests.studies.finished_trials import codes, done, failed, probe, report, said, split, study, variant

ONE, TWO, NET, FOUR = (variant(name) for name in ("1x1", "1x2", "2x1", "2x2"))
QUICK = probe(0.2, 500.0)
# A link of 20 Mbit/s.
SLOW = probe(0.4, 2.4)


def thrice(of, *, wall=15.0, images=20_000.0, **fields):
    """Three repeats, 2 % apart."""
    return of, [done(of, wall=wall * k, images=images / k, **fields) for k in (0.99, 1.0, 1.01)]


def several(communication, compute=13.0, **parts):
    """Two ranks' splits."""
    return [split(compute=compute, communication=communication, **parts)] * 2


def test_the_fastest_layout_is_named_with_its_figures_and_its_gain():
    found = report(study(), [thrice(ONE, wall=30.0), thrice(TWO, wall=20.0, images=36_000.0)])
    assert said(found, "fastest").sentence == (
        "For the fastest result use 1x2: 20.0 s (19.8 to 20.2 s in 3 runs) from start to end, "
        "1.50 times as fast as 1x1."
    )
    assert said(found, "equal") is None
    assert codes(found)[0] == "fastest"


def test_of_layouts_called_equal_the_smaller_is_recommended():
    found = report(study(), [thrice(ONE, wall=15.1), thrice(TWO, wall=15.0)])
    assert said(found, "fastest").variant == "1x1"
    assert "1x2 is no faster beyond doubt: 15.0 s" in said(found, "fastest").sentence
    assert said(found, "equal").evidence == {"variants": "1x2, 1x1"}


def test_a_single_run_is_never_called_equal_and_its_caution_is_told():
    found = report(study(), [(ONE, [done(ONE, wall=15.1)]), (TWO, [done(TWO, wall=15.0)])])
    assert said(found, "equal") is None
    assert said(found, "fastest").variant == "1x1"
    assert said(found, "fastest").sentence.endswith("It ran once, so nobody knows its spread.")
    assert said(found, "single-run")
    assert said(report(study(), [thrice(ONE), thrice(TWO)]), "single-run") is None


def test_with_a_target_the_fastest_is_the_first_to_reach_it():
    slow_start = (ONE, [done(ONE, wall=20.0 * k, tests=((6.0 * k, 0.99),)) for k in (0.99, 1.0, 1.01)])
    quick_end = (TWO, [done(TWO, wall=15.0 * k, tests=((12.0 * k, 0.99),)) for k in (0.99, 1.0, 1.01)])
    found = report(study(target_accuracy=0.985), [slow_start, quick_end])
    assert said(found, "fastest").variant == "1x1"
    assert "6.0 s (5.9 to 6.1 s in 3 runs) to 98.50 % test accuracy" in said(found, "fastest").sentence
    assert said(found, "target-missed") is None


def test_a_target_that_nobody_reached_is_said_and_the_wall_clock_compared():
    found = report(study(target_accuracy=0.995), [thrice(ONE, tests=((6.0, 0.98),)), thrice(TWO, wall=10.0)])
    assert "98.90 %" in said(found, "target-missed").sentence
    assert "from start to end" in said(found, "fastest").sentence


def test_the_cheapest_is_by_price_where_there_is_one():
    # 40 s of one GPU against 25 s of two, 3.6 per GPU-hour: 0.04 and 0.05.
    jobs = [thrice(ONE, wall=40.0), thrice(TWO, wall=25.0)]
    found = report(study(prices=Prices(per_gpu_hour=3.6, currency="EUR")), jobs)
    assert said(found, "cheapest").variant == "1x1"
    assert "0.04 EUR" in said(found, "cheapest").sentence
    assert "the dearest takes 0.05 EUR" in said(found, "cheapest").sentence


def test_without_prices_the_cheapest_is_by_gpu_time():
    found = report(study(), [thrice(ONE, wall=40.0), thrice(TWO, wall=25.0)])
    assert "40 GPU-seconds" in said(found, "cheapest").sentence
    mixed = report(study(), [thrice(ONE), thrice(variant("1x0", tasks_per_node=2))])
    assert said(mixed, "cheapest") is None


def test_the_most_gpus_worth_asking_for_end_earlier_at_three_quarters_efficiency():
    jobs = [thrice(ONE, wall=40.0), thrice(TWO, wall=24.0, images=36_000.0), thrice(FOUR, wall=20.0, images=50_000.0)]
    most = said(report(study(), jobs), "most-ranks")
    assert most.variant == "1x2"
    assert most.sentence == (
        "The most worth asking for is 2 GPUs (1x2), at 90 % parallel efficiency; "
        "2x2 with 4 GPUs has 62 %, under the 75 % line."
    )


def test_gpus_that_are_efficient_but_end_no_earlier_are_not_worth_asking_for():
    most = said(report(study(), [thrice(ONE, wall=15.0), thrice(TWO, wall=14.9, images=36_000.0)]), "most-ranks")
    assert most.variant == "1x1"
    assert "does not end earlier beyond doubt" in most.sentence


def test_one_size_alone_has_no_most():
    assert said(report(study(), [thrice(TWO), thrice(variant("1x2", settings={"lr": 2}))]), "most-ranks") is None


def layouts(link, communication, net_images, net_wall):
    """One GPU, two in a node, two in two nodes."""
    return [
        thrice(ONE, wall=15.0, splits=[split(compute=26.0)]),
        thrice(TWO, wall=14.0, images=30_000.0, splits=several(2.0), link=probe(0.2, 1500.0)),
        thrice(NET, wall=net_wall, images=net_images, splits=several(communication), link=link),
    ]


def test_a_slow_network_is_named_with_its_share_and_one_node_recommended():
    one = said(report(study(), layouts(SLOW, 98.0, 4_500.0, 52.0)), "communication")
    assert one.variant == "2x1"
    assert one.sentence == (
        "2x1 is slower than 1 GPU (1x1), 4,500 against 20,000 images/s, 52.0 s against 15.0 s from start to end, "
        "because of communication: 88 % of each step, 98 ms of 112 ms, for 228 kB over a link of 2.4 MB/s."
    )
    # 98 ms to be a quarter of a step of 13 ms per 256 samples: 2 x 3 x 98 / 13 x 256 = 11,579, rounded up.
    assert one.advice.startswith("stay on one node (1x2). On several, a global batch of 16,384 or more")
    assert "gradient accumulation" in one.advice
    assert "bf16" in one.advice
    assert one.evidence["communication_share"] == pytest.approx(98 / 112)


def test_a_quick_network_is_not_named():
    assert said(report(study(), layouts(QUICK, 3.5, 27_000.0, 16.0)), "communication") is None


def test_communication_that_the_probe_does_not_explain_is_not_the_network_s():
    # A step shows 14 ms where the link takes 0.7: threads that wake up, no reason to leave a node.
    assert said(report(study(), layouts(QUICK, 14.0, 17_000.0, 20.0)), "communication") is None


def test_communication_in_a_layout_that_lost_to_nobody_is_not_named():
    assert said(report(study(), layouts(SLOW, 98.0, 40_000.0, 12.0)), "communication") is None


def test_a_study_on_one_node_is_never_told_to_stay_on_one():
    jobs = [
        thrice(ONE, splits=[split(compute=26.0)]),
        thrice(TWO, wall=52.0, images=4_500.0, splits=several(98.0), link=SLOW),
    ]
    found = report(study(), jobs)
    assert said(found, "communication").advice.startswith("communicate less: a global batch of")
    assert not any("one node" in (one.sentence + (one.advice or "")) for one in found.verdict)


def test_waiting_for_a_slow_rank_is_not_communication():
    # Each of two ranks in turn: 60 ms on the one that waits, 2 on the other; pure communication is 2.
    splits = [split(compute=20.0, communication=60.0), split(compute=78.0, communication=2.0)]
    found = report(study(), [thrice(ONE), thrice(NET, images=4_000.0, splits=splits, link=SLOW)])
    assert said(found, "communication") is None


def test_a_slowed_rank_is_named_with_its_host():
    splits = [split(compute=13.0, communication=14.0), split(compute=26.0, communication=1.0)]
    one = said(report(study(), [thrice(ONE), thrice(NET, splits=splits, link=QUICK)]), "straggler")
    assert one.evidence["host"] == "n2"
    assert "rank 1 on n2 holds the others up" in one.sentence
    assert one.advice.endswith("--exclude n2")


def test_ranks_alike_have_no_straggler_however_much_they_communicate():
    assert said(report(study(), layouts(SLOW, 98.0, 4_500.0, 52.0)), "straggler") is None


def test_a_slower_rank_that_nobody_waits_for_is_no_straggler():
    splits = [split(compute=13.0, communication=1.0), split(compute=26.0, communication=1.0)]
    assert said(report(study(), [thrice(ONE), thrice(NET, splits=splits)]), "straggler") is None


def test_one_noisy_run_of_three_makes_no_straggler():
    slow = [split(compute=13.0, communication=14.0), split(compute=26.0, communication=1.0)]
    jobs = [done(NET, splits=several(1.0)), done(NET, splits=slow), done(NET, splits=several(1.0))]
    assert said(report(study(), [(NET, jobs)]), "straggler") is None


def test_a_slow_loader_is_named():
    one = said(report(study(), [thrice(ONE, splits=[split(data=30.0, compute=20.0)])]), "data")
    assert one.sentence == ("1x1 waits for data: 59 % of each step, 30 ms of 51 ms, passes before the batch is there.")
    assert "workers" in one.advice


def test_a_loader_that_keeps_up_is_not_named():
    assert said(report(study(), [thrice(ONE, splits=[split(data=3.0, compute=20.0)])]), "data") is None


def test_tiny_batches_are_named_with_one_that_would_do():
    # 8 samples per rank in 1 ms, 3 ms fixed: 2 ranks x 3 x 3 / 1 x 8 = 144, rounded up.
    splits = [split(compute=1.0, communication=2.0, other=1.0)] * 2
    jobs = [
        thrice(ONE, batch=16, images=9_000.0, splits=[split(compute=1.6, other=0.3)]),
        thrice(NET, batch=16, images=4_000.0, splits=splits, link=QUICK),
    ]
    found = report(study(), jobs)
    one = said(found, "small-batch", "2x1")
    assert one.evidence["batch_per_rank"] == 8
    assert "with 8 samples per rank 75 % of each step (3.0 ms of 4.0 ms)" in one.sentence
    assert one.advice.startswith("a global batch of 256 or more")
    assert said(found, "small-batch", "1x1") is None


def test_a_batch_whose_samples_cost_more_than_in_a_larger_one_is_named_on_one_rank_too():
    small, large = (variant("1x1", settings={"batch_size": size}) for size in (16, 512))
    jobs = [
        thrice(small, batch=16, images=6_000.0, splits=[split(compute=2.0, other=0.3)]),
        thrice(large, batch=512, images=20_000.0, splits=[split(compute=25.0, other=0.3)]),
    ]
    found = report(study(), jobs)
    # 2 / 16 over 25 / 512.
    assert said(found, "small-batch").variant == small.label
    assert said(found, "small-batch").evidence["sample_growth"] == pytest.approx(2.56)
    assert [one.variant for one in found.verdict if one.code == "small-batch"] == [small.label]


def test_an_ample_batch_is_not_named():
    assert said(report(study(), layouts(QUICK, 3.5, 27_000.0, 16.0)), "small-batch") is None


def test_what_the_network_explains_is_not_blamed_on_the_batch():
    assert said(report(study(), layouts(SLOW, 98.0, 4_500.0, 52.0)), "small-batch") is None


def crowded(busy):
    splits = [split(compute=26.0, communication=10.0)] * 4
    return [
        thrice(ONE, splits=[split(compute=26.0)], busy=0.9),
        thrice(FOUR, images=18_000.0, splits=splits, busy=busy, link=QUICK),
    ]


def test_ranks_without_cores_of_their_own_are_named():
    # 8 CPUs of 4 ranks a quarter busy are 2, as one rank's 2 at 90 % nearly are; 26 ms for 128 samples, not 512.
    one = said(report(study(), crowded(0.25)), "oversubscribed")
    assert one.variant == "2x2"
    assert one.evidence["compute_growth"] == pytest.approx(4.0)
    assert "keep 2.0 cores busy where 1 of 1x1 keep 1.8 busy" in one.sentence


def test_ranks_that_keep_more_cores_busy_share_none():
    assert said(report(study(), crowded(0.9)), "oversubscribed") is None


def test_start_up_that_is_most_of_a_short_job_is_named():
    one = said(report(study(), [thrice(ONE, starting=9.8), thrice(TWO, starting=2.0)]), "starting")
    assert one.sentence.startswith("Start-up takes 65 % of 1x1, 9.8 s of 15.0 s, and more GPUs do not shorten it")
    assert said(report(study(), [thrice(ONE, wall=600.0, starting=9.8)]), "starting") is None


def test_a_global_batch_that_grows_with_the_layout_is_weak_scaling():
    jobs = [thrice(ONE, batch=512), thrice(TWO, batch=1024)]
    one = said(report(study(scaling="weak"), jobs), "changed-batch")
    assert "as weak scaling means it to: 1x1 512, 1x2 1,024 samples per step" in one.sentence
    assert "although the study is to keep it" in said(report(study(), jobs), "changed-batch").sentence


def test_a_batch_that_is_swept_did_not_change_with_the_layout():
    sizes = [variant("1x1", settings={"batch_size": size}) for size in (64, 512)]
    found = report(study(), [thrice(one, batch=one.settings["batch_size"]) for one in sizes])
    assert said(found, "changed-batch") is None


def trained(of, batch, accuracies):
    return of, [done(of, batch=batch, accuracy=accuracy) for accuracy in accuracies]


def test_accuracy_lost_to_a_larger_batch_beyond_the_spread_is_named():
    small, large = (variant("1x1", settings={"batch_size": size}) for size in (64, 4096))
    found = report(study(), [trained(small, 64, (0.990, 0.991)), trained(large, 4096, (0.971, 0.974))])
    assert said(found, "accuracy").sentence == (
        "1x1 batch_size=4096 ends less accurate: 97.25 % with a global batch of 4,096, 99.05 % with 64 in "
        "1x1 batch_size=64."
    )


def test_accuracies_that_overlap_or_hardly_differ_are_not_lost():
    small, large = (variant("1x1", settings={"batch_size": size}) for size in (64, 4096))
    overlapping = [trained(small, 64, (0.97, 0.99)), trained(large, 4096, (0.96, 0.975))]
    assert said(report(study(), overlapping), "accuracy") is None
    hardly = [trained(small, 64, (0.9900, 0.9901)), trained(large, 4096, (0.9894, 0.9895))]
    assert said(report(study(), hardly), "accuracy") is None
    once = [trained(small, 64, (0.990,)), trained(large, 4096, (0.985,))]
    assert said(report(study(), once), "accuracy") is None


def test_accuracy_that_differs_at_the_same_batch_is_no_batch_s_fault():
    found = report(study(), [trained(ONE, 512, (0.99, 0.99)), trained(TWO, 512, (0.95, 0.95))])
    assert said(found, "accuracy") is None


def test_fewer_ranks_than_asked_for_are_named():
    found = report(study(), [thrice(ONE), thrice(FOUR, world=2)])
    assert said(found, "fewer-ranks").evidence == {"ranks_asked": 4, "ranks_worked": 2}
    assert said(report(study(), [thrice(ONE), thrice(FOUR)]), "fewer-ranks") is None


def test_jobs_that_failed_are_counted_with_their_reason():
    found = report(study(), [(ONE, [done(ONE), failed()]), (TWO, [done(TWO)])])
    assert said(found, "failed").sentence == (
        "1 of 3 jobs did not complete (1x1 run 2 FAILED: rank 1 ran out of memory); the figures are of the others."
    )
    assert said(found, "unfinished") is None


def test_jobs_that_wait_or_were_not_sent_are_no_failures():
    found = report(study(), [(ONE, [done(ONE), None])])
    assert said(found, "failed") is None
    assert said(found, "unfinished").evidence == {"unfinished": 1, "jobs": 2}
    assert said(report(study(), [thrice(ONE)]), "unfinished") is None


def test_runs_too_different_to_show_anything_are_named():
    found = report(study(), [(ONE, [done(ONE, wall=wall) for wall in (10.0, 12.0, 15.0)])])
    assert said(found, "wide-spread").evidence["spread_share"] == pytest.approx(5 / 12)
    assert said(report(study(), [thrice(ONE)]), "wide-spread") is None


def test_a_loss_without_a_cause_shows_where_the_steps_go():
    splits = several(3.5, compute=20.0)
    found = report(study(), [thrice(ONE), thrice(TWO, images=22_000.0, splits=splits, link=QUICK)])
    assert said(found, "unexplained").sentence == (
        "1x2 has 55 % efficiency with 2 GPUs, and no single cause stands out: of each step of 24 ms compute 20 ms, "
        "communication 3.5 ms, data 0.0 ms, other 1.0 ms."
    )
    assert said(report(study(), layouts(SLOW, 98.0, 4_500.0, 52.0)), "unexplained") is None


def test_a_rule_that_fires_everywhere_is_cut_short():
    many = [variant("1x1", settings={"lr": at}) for at in range(7)]
    found = report(study(), [thrice(one, splits=[split(data=30.0)]) for one in many])
    data = [one for one in found.verdict if one.code == "data"]
    assert len(data) == 3
    assert data[-1].sentence.endswith("(4 more variants likewise.)")


def test_a_study_of_which_nothing_completed_says_so():
    assert codes(report(study(), [(ONE, [failed()])]))[0] == "nothing-completed"


def shared(strategy, images, mode=None, slow=True, reached_s=None):
    """Two nodes with a way of sharing gradients, one of them slow or not; seconds until a test had 98 %."""
    settings = {"strategy": strategy} | ({"ps_mode": mode} if mode else {})
    settings |= {"env.HPCDIST_DRILL_SLOW_RANK": "1:0.02"} if slow else {}
    of, records = variant("2x1", settings=settings), []
    for k in (0.99, 1.0, 1.01):
        tests = [(reached_s * k, 0.985)] if reached_s else ()
        records.append(done(of, wall=15.0 * k, images=images / k, tests=tests))
    return of, records


def test_the_strategy_that_wins_beside_a_slow_rank_is_named():
    jobs = [shared("ddp", 1000.0), shared("parameter-server", 990.0), shared("parameter-server", 3000.0, "async")]
    found = said(report(study(), jobs), "strategy")
    # 3000 / 1000, each with accuracy 0.989 as `done` has it.
    assert found.sentence == (
        "On 2x1 with env.HPCDIST_DRILL_SLOW_RANK=1:0.02 parameter-server async is fastest, 3.00 times ddp "
        "(parameter-server async 3,000 images/s, accuracy 98.90 %; ddp 1,000 images/s, accuracy 98.90 %; "
        "parameter-server sync 990 images/s, accuracy 98.90 %)."
    )


def test_strategies_that_cannot_be_told_apart_are_called_equal():
    found = said(report(study(), [shared("ddp", 1000.0), shared("ddp-bf16", 1010.0)]), "strategy")
    assert "no strategy is fastest beyond doubt: ddp-bf16, ddp are called equal" in found.sentence


TO_98 = {"target_accuracy": 0.98}


def test_with_a_target_the_strategy_that_is_there_first_is_named_also_where_another_is_faster():
    jobs = [shared("ddp", 1000.0, reached_s=8.0), shared("parameter-server", 3000.0, "async", reached_s=12.0)]
    found = said(report(study(**TO_98), jobs), "strategy")
    assert found.sentence == (
        "On 2x1 with env.HPCDIST_DRILL_SLOW_RANK=1:0.02 ddp is first at 98.00 % test accuracy, after 8.0 s, and "
        "parameter-server async after 12.0 s; by images/s, however, parameter-server async is fastest, 3.00 times ddp "
        "(parameter-server async 3,000 images/s, 12.0 s to the target, accuracy 98.90 %; "
        "ddp 1,000 images/s, 8.0 s to the target, accuracy 98.90 %)."
    )
    assert found.evidence == {
        "ddp seconds to target": 8.0,
        "parameter-server async seconds to target": 12.0,
        "parameter-server async images per s": 3000.0,
        "ddp images per s": 1000.0,
    }
    assert found.variant.startswith("2x1 strategy=ddp")


def test_strategies_that_are_there_at_the_same_time_are_called_equal():
    jobs = [shared("ddp", 1000.0, reached_s=8.0), shared("parameter-server", 3000.0, "async", reached_s=8.01)]
    found = said(report(study(**TO_98), jobs), "strategy")
    assert (
        "no strategy is first at 98.00 % test accuracy beyond doubt: ddp, parameter-server async are" in found.sentence
    )
    assert "; by images/s parameter-server async is fastest" in found.sentence


def test_a_target_that_a_strategy_missed_compares_none_by_time():
    jobs = [shared("ddp", 1000.0, reached_s=8.0), shared("parameter-server", 3000.0, "async")]
    found = said(report(study(**TO_98), jobs), "strategy")
    assert "parameter-server async is fastest, 3.00 times ddp" in found.sentence
    assert "is first at" not in found.sentence


def test_strategies_of_other_machines_are_not_compared():
    jobs = [shared("ddp", 1000.0, slow=False), shared("parameter-server", 3000.0, "async")]
    assert said(report(study(), jobs), "strategy") is None
