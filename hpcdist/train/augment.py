"""Random crops and mirror images for whole batches at once, on whatever device the images are.

The random numbers come from the seed, the epoch and the batch alone, and are drawn for the batch over all ranks: an
image is changed the same way in every layout, and in a training that goes on from a checkpoint.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hpcdist.datasets import Augmentation

PADDING = 4


class Moves(NamedTuple):
    """What is done to each image of a batch.

    Attributes:
        down_B: Rows that the crop begins below the padded image's top, 0 to 8.
        right_B: Columns likewise.
        mirrored_B: Whether it is mirrored.
    """

    down_B: Tensor
    right_B: Tensor
    mirrored_B: Tensor

    def cut(self, begin: int, end: int, device: torch.device) -> "Moves":
        """Those of a part of the batch."""
        return Moves(*(numbers_B[begin:end].to(device, non_blocking=True) for numbers_B in self))


def draw_moves(kind: Augmentation, count: int, seed: int, epoch: int, batch: int) -> Moves:
    """The moves of a batch of `count` images over all ranks."""
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + epoch) * 1_000_003 + batch) % (1 << 63))
    offsets_2B = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator)
    mirrored_B = torch.rand(count, generator=generator) < 0.5
    return Moves(offsets_2B[0], offsets_2B[1], mirrored_B if kind == "crop-flip" else torch.zeros_like(mirrored_B))


def move_images(images_BCHW: Tensor, moves: Moves) -> Tensor:
    """Crops of the images with a black border of 4 pixels around them, some mirrored; one indexing does it all."""
    _, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded = functional.pad(images_BCHW, (PADDING,) * 4)
    rows_BH = moves.down_B[:, None] + torch.arange(height, device=device)
    columns_W = torch.arange(width, device=device)
    columns_BW = torch.where(moves.mirrored_B[:, None], columns_W.flip(0), columns_W) + moves.right_B[:, None]
    image_B = torch.arange(len(images_BCHW), device=device)
    # Index tensors on both sides of a slice: their dimensions come first, so this is B H W C.
    moved_BHWC = padded[image_B[:, None, None], :, rows_BH[:, :, None], columns_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)
