"""A training step in Lightning without what nobody here uses, which is most of what Lightning adds to a step.

Lightning calls each hook of each callback and of the module, whether anybody wrote it or not, between the context
managers of a profiler that does nothing; it asks in each step what the module's signatures are, whether it validates,
accumulates or clips, and keeps metrics that were never logged. `LeanStep` is what remains for the built-in network: the
batch, the hooks that were written, the strategy's forward, backward and optimizer step, the learning rate, the counts.
Validation is at the end of an epoch, so only there Lightning is asked whether it is due.
What it stands in for has no public name, so a test compares it with Lightning's own; other releases keep theirs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor

_KNOWN_RELEASES = "2.6."
# What Lightning calls once or more in each step, for nothing but what somebody wrote into them.
_STEP_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"),
    *("on_after_backward", "on_before_optimizer_step"),
)


class NoProfiler(PassThroughProfiler):
    """A profiler that does nothing, without a generator for each time it does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context without entry and exit."""
        return self._nothing


def take_lean_steps(trainer: Trainer, module: LightningModule) -> None:
    """Has the trainer's next fit take lean steps, where each batch is a step and Lightning's release is a known one.

    Args:
        trainer: With all its callbacks.
        module: Which logs nothing through Lightning, and whose gradients are not clipped.
    """
    if not version("pytorch-lightning").startswith(_KNOWN_RELEASES):
        return
    skip_unused_hooks(trainer, module)
    if trainer.accumulate_grad_batches == 1:
        step = LeanStep(trainer, module)
        trainer.fit_loop.epoch_loop.advance = step  # type: ignore[assignment]
        trainer.fit_loop.epoch_loop.on_advance_end = step.end  # type: ignore[assignment,method-assign]


def skip_unused_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Has Lightning skip the hooks of a step that nobody wrote: one that is None it leaves out."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name in _unwritten(callback, Callback):
            setattr(callback, name, None)
    for name in _unwritten(module, LightningModule):
        setattr(module, name, None)
    module.configure_gradient_clipping = None  # type: ignore[assignment,method-assign]


def _unwritten(owner: object, base: type) -> list[str]:
    return [name for name in _STEP_HOOKS if getattr(type(owner), name) is getattr(base, name)]


class LeanStep:
    """One training step; it takes the place of `_TrainingEpochLoop.advance`."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self._loop = trainer.fit_loop.epoch_loop
        self._lightnings, self._lightnings_end = self._loop.advance, self._loop.on_advance_end
        self._before = self._find_hooks("on_train_batch_start")
        self._after = self._find_hooks("on_train_batch_end")
        self._before_backward = self._find_hooks("on_before_backward")
        self._after_backward = self._find_hooks("on_after_backward")
        self._before_optimizer = self._find_hooks("on_before_optimizer_step")
        strategy = trainer.strategy
        # DDP's own step is that of the others, unless it averages models instead of gradients: nothing here does.
        self._is_plain = (
            type(strategy.precision_plugin) is Precision
            and type(strategy).backward is Strategy.backward
            and type(strategy).optimizer_step in (Strategy.optimizer_step, DDPStrategy.optimizer_step)
        )

    def _find_hooks(self, name: str) -> list[Callable[..., object]]:
        trainer, module = self._trainer, self._module
        written = [getattr(callback, name) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        hooks: list[Callable[..., object]] = [partial(hook, trainer, module) for hook in written if hook is not None]
        own = getattr(module, name)
        return hooks if own is None else [*hooks, own]

    def __call__(self, fetcher: Any) -> None:
        """Trains batches until Lightning has something to do between two of them."""
        if self._loop.restarting:  # from a checkpoint, where Lightning first finds out what was done
            self._lightnings(fetcher)
            self._trainer.strategy.optimizers[0].zero_grad()
            return
        self._train(fetcher)
        while not self._is_lightnings_turn():
            self._loop._batches_that_stepped += 1
            self._train(fetcher)

    def _is_lightnings_turn(self) -> bool:
        loop, trainer = self._loop, self._trainer
        done = loop.automatic_optimization.optim_progress.optimizer_steps
        is_last = loop.batch_progress.is_last_batch or done == loop.max_steps
        return bool(is_last or trainer.should_stop or loop._skip_next_val)

    def _train(self, fetcher: Any) -> None:
        loop = self._loop
        batch = next(fetcher)[0]
        progress = loop.batch_progress
        progress.is_last_batch = fetcher.done
        number = loop.batch_idx + 1
        progress.increment_ready()
        for hook in self._before:
            hook(batch, number)
        progress.increment_started()
        self._step(batch, number)
        progress.increment_processed()
        for config in self._trainer.lr_scheduler_configs:
            loop.scheduler_progress.increment_ready()
            config.scheduler.step()  # type: ignore[call-arg]
            loop.scheduler_progress.increment_completed()
        for hook in self._after:
            hook(None, batch, number)
        progress.increment_completed()

    def end(self, fetcher: Any) -> None:
        """What Lightning does between two steps."""
        if self._is_lightnings_turn():
            self._lightnings_end(fetcher)
        else:  # the first step after a checkpoint
            self._loop._batches_that_stepped += 1

    def _step(self, batch: Any, number: int) -> None:
        strategy, done = self._trainer.strategy, self._loop.automatic_optimization.optim_progress.optimizer
        optimizer = strategy.optimizers[0]
        is_wrapped = not self._is_plain or strategy.model is not self._module
        training_step = strategy.training_step if is_wrapped else self._module.training_step

        def train() -> Tensor:
            with torch.enable_grad():
                loss: Tensor = training_step(batch, number)  # type: ignore[assignment]
                if self._is_plain:
                    self._backward(strategy, loss)
                else:
                    strategy.backward(loss, optimizer)
            return loss

        done.step.increment_ready()
        if self._is_plain:
            train()
            for hook in self._before_optimizer:
                hook(optimizer)
            optimizer.step()
        else:
            strategy.optimizer_step(optimizer, train)
        done.step.increment_completed()
        # Now, not after the next forward pass as Lightning has it: what the optimizer touched is still in the caches.
        done.zero_grad.increment_ready()
        done.zero_grad.increment_started()
        optimizer.zero_grad()
        done.zero_grad.increment_completed()

    def _backward(self, strategy: Strategy, loss: Tensor) -> None:
        """As `Strategy.backward` in single precision."""
        strategy.pre_backward(loss)
        for hook in self._before_backward:
            hook(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        for hook in self._after_backward:
            hook()
        strategy.post_backward(loss)
