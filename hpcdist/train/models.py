"""The built-in network and what trains it.

Letters in names give the axes: B batch, C channels, H height, W width, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASS_COUNT = 10


class SmallCnn(nn.Module):
    """Two convolutions and two dense layers; 56,970 parameters for 28 x 28 grey images of ten classes.

    The first convolution has stride 2, which quarters the work of everything after it. There is no batch
    normalisation, so the gradient of a batch is the same however it is cut over ranks.

    Args:
        shape: Channels, height and width of an image; 9 pixels each way at least.
        class_count: Classes.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), class_count: int = CLASS_COUNT) -> None:
        super().__init__()
        channels, *size = shape
        # What 5 by 5 with stride 2, 3 by 3 and the pooling leave of a side.
        height, width = (((side - 5) // 2 + 1 - 2) // 2 for side in size)
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=5, stride=2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3)
        self.hidden = nn.Linear(32 * height * width, 64)
        self.output = nn.Linear(64, class_count)
        # Pixels by channel in memory: a fifth faster on a CPU, most of it in the pooling.
        self.to(memory_format=torch.channels_last)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Class scores before softmax, `logits_BK`."""
        features_BCHW = functional.relu(self.conv1(images_BCHW))
        # The maximum of what relu leaves is what relu leaves of the maximum: pooling first is a quarter of the work.
        features_BCHW = functional.relu(functional.max_pool2d(self.conv2(features_BCHW), 2))
        logits_BK: Tensor = self.output(functional.relu(self.hidden(features_BCHW.flatten(1))))
        return logits_BK


def build_optimizer(name: str, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer of `Training.optimizer`, with its usual settings."""
    parameters = module.parameters()
    # fused: one call for all tensors; on a CPU the default makes a dozen small ones for each.
    match name:
        case "sgd":
            return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr, fused=True)
        case "adadelta":
            return torch.optim.Adadelta(parameters, lr)
        case _:
            return torch.optim.AdamW(parameters, lr, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, lr: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle over all steps: up to `lr` in the first third, then down to almost nothing."""
    has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
    return OneCycle(optimizer, lr, total_steps=steps, cycle_momentum=has_momentum)


class OneCycle(torch.optim.lr_scheduler.OneCycleLR):
    """One cycle that keeps its own length when it goes on from a checkpoint.

    torch's takes the length from there too, and raises in the first step of a longer training.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step, and stays as long as it was made."""
        length = {name: getattr(self, name) for name in ("total_steps", "_schedule_phases")}
        super().load_state_dict(state_dict | length)
