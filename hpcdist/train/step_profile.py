"""Measures where a step goes: waiting for data, computing, communicating, everything else."""

import time
from collections.abc import Callable, Iterator

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpcdist.train.data.batches import Batch
from hpcdist.train.environment import Slowdown
from hpcdist.train.module import ends_step
from hpcdist.train.outcome import Outcome
from hpcdist.train.step_count import rank_strategy
from hpcdist.train.step_timer import CudaTimer, HostTimer, Part, StepTimer

LEARNED_EVERY = 20


class StepProfiler(Callback):
    """Cuts each step where it passes from one kind of work to the next; the last of the callbacks.

    A step begins when all callbacks are done with the one before. "data" is what the loader takes, "compute" lasts
    from the network's first layer to the last gradient, "communication" from there until the backward pass returns:
    DDP waits in it for all-reduces that are not done yet. With a parameter server it is what sending gradients and
    getting weights takes. "other" is the rest: optimizer, schedule, logging, Lightning, and the ranks' agreement on
    stopping, twice a second. Left out are the first step, and steps during which the rank's clock was set to something
    else: a test or a checkpoint.

    Args:
        outcome: Where the split goes; its clock says which steps are steady.
        world_size: Ranks in all; one alone has no communication.
        slowdown: What is slowed down on purpose.
    """

    def __init__(
        self, outcome: Outcome, device: torch.device, *, rank: int, world_size: int, slowdown: Slowdown
    ) -> None:
        self._outcome, self._clock = outcome, outcome.clock
        self._timer: StepTimer = CudaTimer() if device.type == "cuda" else HostTimer()
        self._is_alone = world_size == 1
        self._data_delay_s, self._compute_delay_s = slowdown.data_s, slowdown.compute_s_of(rank)
        self._changes = -1  # of the clock's phase when the step began
        self._steps = 0
        self._hooks: list[RemovableHandle] = []
        self._search: list[RemovableHandle] = []  # for the parameter whose gradient comes last
        self._last: Tensor | None = None

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches; what making each of them takes is booked to the data."""
        while True:
            self._timer.end_part("other")
            if self._data_delay_s:
                time.sleep(self._data_delay_s)
            batch = next(batches, None)
            self._timer.end_part("data")
            if batch is None:
                return
            yield batch

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Hook itself into the network, and note what its gradients weigh."""
        network = module.network
        if not isinstance(network, nn.Module):
            raise TypeError(f"{type(network).__name__} is no network")
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._outcome.learn(bytes_per_step=rank_strategy(trainer).bytes_per_step(network))
        self._hooks = [network.register_forward_pre_hook(self._begin_computing)]
        if not self._is_alone:
            self._search = [_hook(one, self._note_last) for one in trained]

    def _begin_computing(self, network: nn.Module, _: object) -> None:
        self._timer.end_part("other")
        if self._compute_delay_s and network.training:
            time.sleep(self._compute_delay_s)

    def _note_last(self, parameter: Tensor) -> None:
        self._last = parameter

    def _end_computing(self, _: Tensor) -> None:
        # Before DDP's own hook for this parameter, which starts the last all-reduce.
        self._timer.end_part("compute")

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """The backward pass has returned; the first one showed which gradient comes last, the same in every step."""
        self._timer.end_part("compute" if self._is_alone else "communication")
        if self._search and self._last is not None:
            _remove(self._search)
            self._hooks.append(_hook(self._last, self._end_computing))

    def end_part(self, part: Part) -> None:
        """For a strategy that communicates after the backward pass."""
        self._timer.end_part(part)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """End the step, unless it was only a part of one."""
        if not ends_step(trainer):
            self._timer.end_part("other")
            return
        self._timer.end_step(steady=self._changes == self._clock.changes)
        self._changes = self._clock.changes
        self._steps += 1
        if self._steps % LEARNED_EVERY == 0:
            self._learn()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Write down what is known before something else may end the training."""
        self._learn()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop measuring."""
        self._learn()
        _remove(self._search)
        _remove(self._hooks)

    def _learn(self) -> None:
        self._outcome.learn(split=self._timer.split())


def _hook(parameter: Tensor, hear: Callable[[Tensor], None]) -> RemovableHandle:
    """Call it each time the parameter's gradient is there."""
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hear)  # type: ignore[no-untyped-call]
    return handle


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()
