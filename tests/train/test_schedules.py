"""Learning rates by step and by batch: worked out by hand."""

import pytest
import torch

from hpcdist.train.networks import SmallCnn, build_optimizer
from hpcdist.train.schedules import Rates, describe_rates, follow, plan_rates


def rates_of(schedule, steps, **other):
    rates = Rates(schedule=schedule, lr=0.1, start=other.pop("start", 0.1), steps=steps, **other)
    optimizer = build_optimizer("sgd", SmallCnn(), rates.lr)
    schedule = follow(optimizer, rates)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            schedule.step()
    return found


def test_constant_is_constant():
    assert rates_of("constant", 4) == [0.1] * 4


def test_step_divides_by_ten_after_half_and_three_quarters():
    assert rates_of("step", 8) == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_cosine_is_half_of_it_in_the_middle_and_nears_nothing():
    # (1 + cos(pi k / 8)) / 2 at k = 0, 4, 7: 1, 0.5, 0.03806.
    found = rates_of("cosine", 8)
    assert (found[0], found[4], found[7]) == pytest.approx((0.1, 0.05, 0.003806), rel=1e-3)


def test_a_warm_up_is_a_straight_line_from_the_rate_that_was_asked_for():
    # From 0.02 to 0.1 in four steps: 0.02 each.
    assert rates_of("constant", 6, start=0.02, warm_up_steps=4) == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_cosine_begins_where_the_warm_up_ends():
    found = rates_of("cosine", 12, start=0.02, warm_up_steps=4)
    assert max(found) == pytest.approx(0.1) == pytest.approx(found[4])
    assert found[8] == pytest.approx(0.05)


def plan(**other):
    given = {"scale": True, "batch_size": 1024, "lr_batch": 256, "steps": 1000, "steps_per_epoch": 10}
    return plan_rates("cosine", 0.1, **(given | other))


def test_four_times_the_batch_is_four_times_the_rate_after_five_epochs():
    assert plan() == Rates(schedule="cosine", lr=0.4, start=0.1, steps=1000, warm_up_steps=50)


def test_a_short_training_warms_up_for_a_fifth_of_it():
    assert plan(steps=100).warm_up_steps == 20


def test_a_smaller_batch_has_a_smaller_rate_and_no_warm_up():
    assert plan(batch_size=64) == Rates(schedule="cosine", lr=0.025, start=0.1, steps=1000)


@pytest.mark.parametrize("other", [{"scale": False}, {"batch_size": 256}])
def test_it_is_as_it_was_given_when_off_or_when_the_batch_is_its_own(other):
    assert plan(**other) == Rates(schedule="cosine", lr=0.1, start=0.1, steps=1000)


def test_the_log_says_that_scaling_is_off_and_nothing_when_the_batch_is_its_own():
    off = describe_rates(plan(scale=False), asked=0.1, batch_size=1024, lr_batch=256, scaled=False)
    assert "not scaled" in off
    assert "--scale-lr would make it 0.4" in off
    assert "0.4 after 50 steps from 0.1" in describe_rates(
        plan(), asked=0.1, batch_size=1024, lr_batch=256, scaled=True
    )
    assert describe_rates(plan(), asked=0.1, batch_size=256, lr_batch=256, scaled=False) is None


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "constant"])
def test_it_goes_on_where_it_was(schedule):
    rates = Rates(schedule=schedule, lr=0.1, start=0.05, steps=10, warm_up_steps=2)

    def advance(optimizer, chosen, steps):
        for _ in range(steps):
            optimizer.step()
            chosen.step()
        return optimizer.param_groups[0]["lr"]

    whole = build_optimizer("adamw", SmallCnn(), rates.lr)
    expected = advance(whole, follow(whole, rates), 6)
    begun = build_optimizer("adamw", SmallCnn(), rates.lr)
    schedule = follow(begun, rates)
    advance(begun, schedule, 3)
    resumed = build_optimizer("adamw", SmallCnn(), rates.lr)
    continued = follow(resumed, rates)
    state = torch.optim.Optimizer.state_dict(begun)
    resumed.load_state_dict(state)
    continued.load_state_dict(schedule.state_dict())
    assert advance(resumed, continued, 3) == pytest.approx(expected)
