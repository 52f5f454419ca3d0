"""How the learning rate changes over a training, and with the global batch."""

import math

import msgspec
import torch

from hpcdist.config.training import Schedule
from hpcdist.train.networks import build_schedule

# The gradual warm-up of large batches lasts five epochs (Goyal et al. 2017, 2.2), here at most a fifth of a training.
WARM_UP_EPOCHS = 5
WARM_UP_SHARE = 0.2
STEP_AT = (0.5, 0.75)  # shares of a training after which "step" divides the rate by ten


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The learning rates of a training.

    Attributes:
        schedule: Name of the schedule.
        lr: The highest of them.
        start: Where a warm-up begins.
        steps: Optimizer steps in all.
        warm_up_steps: Steps from `start` to `lr`; the one-cycle schedule has a warm-up of its own.
    """

    schedule: Schedule = "one-cycle"
    lr: float
    start: float
    steps: int
    warm_up_steps: int = 0

    def factor(self, step: int) -> float:
        """Return the rate of a step, counted from 0, as a share of `lr`; not for the one-cycle schedule."""
        if step < self.warm_up_steps:
            begin = self.start / self.lr
            return begin + (1 - begin) * step / self.warm_up_steps
        progress = step / self.steps
        match self.schedule:
            case "cosine":
                after = (step - self.warm_up_steps) / max(1, self.steps - self.warm_up_steps)
                return (1 + math.cos(math.pi * min(1.0, after))) / 2
            case "step":
                return float(0.1 ** sum(progress >= share for share in STEP_AT))
            case _:
                return 1.0


def plan_rates(
    schedule: Schedule | None,
    lr: float,
    *,
    scale: bool,
    batch_size: int,
    lr_batch: int,
    steps: int,
    steps_per_epoch: int,
) -> Rates:
    """Return the rates for a global batch.

    Args:
        schedule: Name of the schedule; None is one-cycle.
        scale: Whether the rate grows with the batch (linear scaling, Goyal et al. 2017, 2.1).
        lr_batch: The global batch that `lr` is for.
    """
    schedule = schedule or "one-cycle"
    if not scale or batch_size == lr_batch:
        return Rates(schedule=schedule, lr=lr, start=lr, steps=steps)
    warm_up = min(WARM_UP_EPOCHS * steps_per_epoch, math.ceil(WARM_UP_SHARE * steps))
    # A batch that is smaller has a smaller rate, which needs no warming up.
    is_needed = batch_size > lr_batch and schedule != "one-cycle"
    return Rates(
        schedule=schedule,
        lr=lr * batch_size / lr_batch,
        start=lr,
        steps=steps,
        warm_up_steps=warm_up if is_needed else 0,
    )


def follow(optimizer: torch.optim.Optimizer, rates: Rates) -> torch.optim.lr_scheduler.LRScheduler:
    """Return what sets the optimizer's rate before each step."""
    if rates.schedule == "one-cycle":
        return build_schedule(optimizer, rates.lr, rates.steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rates.factor)


def describe_rates(rates: Rates, *, asked: float, batch_size: int, lr_batch: int, scaled: bool) -> str | None:
    """Return what to say where the batch is not the one that the learning rate is for."""
    if batch_size == lr_batch:
        return None
    if not scaled:
        return (
            f"learning rate {asked:g} as given, not scaled: it is for batch {lr_batch}, and this is {batch_size};"
            f" --scale-lr would make it {asked * batch_size / lr_batch:g}"
        )
    warm_up = f" after {rates.warm_up_steps} steps from {rates.start:g}" if rates.warm_up_steps else ""
    return (
        f"learning rate {rates.lr:g}{warm_up}, in one with the batch: {asked:g} is for {lr_batch}, this is {batch_size}"
    )
