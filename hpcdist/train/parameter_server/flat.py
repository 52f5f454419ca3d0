"""Many tensors as one message, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return all values in one row."""
    return torch.cat([one.detach().reshape(-1) for one in tensors])


def spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Put a row's values back into the tensors that it came from."""
    with torch.no_grad():
        for one, part in zip(tensors, torch.split(flat, [one.numel() for one in tensors]), strict=True):
            one.copy_(part.view(one.shape))


def list_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return what is trained."""
    return [one for one in network.parameters() if one.requires_grad]


def count_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the size of all tensors in memory."""
    return sum(one.numel() * one.element_size() for one in tensors)


def list_statistics(network: nn.Module) -> list[Tensor]:
    """Return what a network keeps of the data beside its weights: the means and variances of batch normalisation."""
    return [one for one in network.buffers() if one.is_floating_point()]


def take_gradients(weights: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradients in one row; afterwards there are none, so that an optimizer finds nothing to do."""
    flat = flatten([torch.zeros_like(one) if one.grad is None else one.grad for one in weights])
    for one in weights:
        one.grad = None
    return flat


def give_gradients(flat: Tensor, weights: Sequence[nn.Parameter]) -> None:
    """Set the gradients from one row."""
    for one, part in zip(weights, torch.split(flat, [one.numel() for one in weights]), strict=True):
        # As the weight lies in memory: fused optimizers want both alike.
        one.grad = torch.empty_like(one).copy_(part.view(one.shape))
