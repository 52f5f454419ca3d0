"""Networks by name: the built-in one, or a classifier of torchvision, made fit for the images and the classes.

Letters in names give the axes: B batch, C channels, H height, W width, K classes.

Small images (64 pixels or less) would be one pixel wide halfway through a network made for 224. What makes them small
at its beginning is therefore taken out: the stem's stride and its pooling, as is usual for CIFAR.
"""

from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcdist.errors import UsageError
from hpcdist.text import suggest

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
        """Return class scores before softmax, `logits_BK`."""
        features_BCHW = functional.relu(self.conv1(images_BCHW))
        # The maximum of what relu leaves is what relu leaves of the maximum: pooling first is a quarter of the work.
        features_BCHW = functional.relu(functional.max_pool2d(self.conv2(features_BCHW), 2))
        logits_BK: Tensor = self.output(functional.relu(self.hidden(features_BCHW.flatten(1))))
        return logits_BK


def build_optimizer(name: str, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer of `Training.optimizer`, with its usual settings."""
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
        """Take up the step, and stay as long as it was made."""
        length = {name: getattr(self, name) for name in ("total_steps", "_schedule_phases")}
        super().load_state_dict(state_dict | length)


Shape = tuple[int, int, int]
SMALL_SIDE = 64
ALIASES = {
    "vgg": "vgg16_bn",
    "mobilenet": "mobilenet_v2",
    "shufflenet": "shufflenet_v2_x1_0",
    "densenet": "densenet121",
}
# What builders take beside the number of classes: without it these have two more outputs in training.
_EXTRA: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}

# What becomes of a stem's layers for small images, by the network's class.
_SMALL_STEMS = {
    "ResNet": {"conv1": "3 x 3", "maxpool": "none"},
    "DenseNet": {"features.conv0": "3 x 3", "features.pool0": "none"},
    "ShuffleNetV2": {"conv1.0": "stride 1", "maxpool": "none"},
    "MobileNetV2": {"features.0.0": "stride 1", "features.2.conv.1.0": "stride 1"},
    "MobileNetV3": {"features.0.0": "stride 1"},
    "EfficientNet": {"features.0.0": "stride 1"},
}


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a network is.

    Attributes:
        parameters: Trained numbers.
        flops: Of the forward pass of one image: multiplications and additions, each counted (torch.utils.flop_counter
            counts matrix products and convolutions, and nothing else). The backward pass takes about twice as many.
    """

    parameters: int
    flops: int


def build_network(name: str | None, shape: Shape, class_count: int) -> nn.Module:
    """Return the network for images of `shape` (channels, height, width).

    Raises:
        UsageError: There is no network of this name, or it can't take such images.
    """
    if name in (None, "cnn"):
        if min(shape[1:]) < 9:
            raise UsageError(f"model cnn needs images of 9 x 9 or more, and these are {_format(shape)}", "take larger")
        return SmallCnn(shape, class_count)
    try:
        network = _build_torchvision(str(name), shape, class_count)
        # One image, so that a network that can't take it is not found out by a traceback in the first step.
        _forward_one(network, shape, torch.device("cpu"))
    except (RuntimeError, ValueError, AssertionError) as error:  # torch and torchvision raise any of these
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model {name} can't take images of {_format(shape)}: {reason}", "take another model, or larger images"
        ) from None
    return network.to(memory_format=torch.channels_last)


def _build_torchvision(name: str, shape: Shape, class_count: int) -> nn.Module:
    from torchvision import models

    full_name = ALIASES.get(name, name)
    known = models.list_models(module=models)
    if full_name not in known:
        hint = suggest(name, ["cnn", *ALIASES, *known], "torchvision.models.list_models() has the names")
        raise UsageError(f"model: no network is called {name!r}", hint)
    extra = dict(_EXTRA.get(full_name, {}))
    if full_name.startswith("vit_"):
        extra["image_size"] = shape[1]
    is_small = max(shape[1:]) <= SMALL_SIDE
    if full_name.startswith("vgg") and is_small:
        return _build_small_vgg(full_name, shape, class_count)
    network: nn.Module = models.get_model(full_name, weights=None, num_classes=class_count, **extra)
    if is_small:
        for layer_name, change in _SMALL_STEMS.get(type(network).__name__, {}).items():
            _change(network, layer_name, change)
    _set_channels(network, shape[0])
    return network


def _set_channels(network: nn.Module, channels: int) -> None:
    """Make the first convolution take images of so many channels."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels:
                _replace(network, name, _like(layer, in_channels=channels))
            return


def _change(network: nn.Module, name: str, change: str) -> None:
    layer: Any = network.get_submodule(name)
    match change:
        case "stride 1":
            layer.stride = (1, 1)
        case "3 x 3":
            _replace(network, name, _like(layer, kernel_size=3, stride=1, padding=1))
        case "none":
            _replace(network, name, nn.Identity())


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


def _like(layer: nn.Conv2d, **changes: Any) -> nn.Conv2d:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return nn.Conv2d(**{name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None} | changes)


def _build_small_vgg(name: str, shape: Shape, class_count: int) -> nn.Module:
    """As many poolings as the image has halvings in it, and one dense layer in place of 120 million numbers."""
    from torchvision import models

    with torch.device("meta"):  # those numbers would take seconds to draw
        network: Any = models.get_model(name, weights=None, num_classes=class_count, init_weights=False)
    side, channels = min(shape[1:]), 0
    for number, layer in enumerate(network.features):
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        elif isinstance(layer, nn.MaxPool2d):
            if side < 2:
                network.features[number] = nn.Identity()
            side //= 2
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(channels, class_count)
    _set_channels(network, shape[0])
    built: nn.Module = network.to_empty(device="cpu")
    for layer in built.modules():
        _draw_as_vgg(layer)
    return built


def _draw_as_vgg(layer: nn.Module) -> None:
    """The first weights of a layer, as torchvision's VGG has them."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, 0, 0.01)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_parameters()
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _forward_one(network: nn.Module, shape: Shape, device: torch.device) -> None:
    was_training = network.training
    network.eval()  # running means and random numbers stay as they are
    with torch.no_grad():
        network(torch.zeros(1, *shape, device=device))
    network.train(was_training)


def measure_size(network: nn.Module, shape: Shape, device: torch.device) -> Size:
    """Count parameters and operations."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _forward_one(network, shape, device)
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return Size(parameters=trained, flops=counter.get_total_flops())


def _format(shape: Shape) -> str:
    return " x ".join(map(str, shape))
