"""What Lightning does in every step and this training has no use for, left out: half of what it adds to a step.

Lightning calls each hook of each callback and of the module, whether anybody wrote it or not, between two context
managers of a profiler that does nothing. A hook that is None it skips (`pytorch_lightning/trainer/call.py`).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.profilers import PassThroughProfiler

# Called once or more in each step, for nothing but what somebody writes into them.
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


def skip_unused_hooks(module: LightningModule, callbacks: Iterable[Callback]) -> None:
    """Has Lightning skip the hooks of a step that neither of them wrote."""
    for owner, base in ((module, LightningModule), *((callback, Callback) for callback in callbacks)):
        # The module's own looks whether gradients are to be clipped, which nothing here asks for.
        for name in (*_STEP_HOOKS, "configure_gradient_clipping") if base is LightningModule else _STEP_HOOKS:
            if getattr(type(owner), name) is getattr(base, name):
                setattr(owner, name, None)
