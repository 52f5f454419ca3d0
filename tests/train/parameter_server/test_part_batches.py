"""The parts that a rank trains at its own pace are those of ranks that go in step, of any data."""

import pytest
import torch

from hpcdist.train.data.batches import Split, TrainBatches
from hpcdist.train.parameter_server.part_batches import PartBatches


class Told:
    """Says which parts to train, in the strategy's place."""

    def __init__(self, parts):
        self.queue, self.images = parts, []

    def parts(self):
        return iter(self.queue)

    def note_images(self, count):
        self.images.append(count)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_have_the_images_and_moves_that_ranks_in_step_have(accumulate):
    # 22 images in batches of 8 over 3 ranks: parts of 2 or 3 images; the last batch of an epoch has 6.
    images = torch.randint(0, 256, (22, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(22), augmentation="crop-flip")
    told = Told([*range(9), 10])  # and one of the second epoch
    found = list(PartBatches(TrainBatches(split, 8, 1, 0, 3), told, 3, accumulate))
    expected = []
    for rank in range(3):
        ranks = TrainBatches(split, 8, 1, rank, 3, accumulate=accumulate)
        expected.append([])
        for epoch in range(2):
            ranks.epoch = epoch
            expected[rank] += list(ranks)
    for at, part in enumerate(told.queue):
        pieces = found[at * accumulate : (at + 1) * accumulate]
        number, rank = divmod(part, 3)
        same = expected[rank][number * accumulate : (number + 1) * accumulate]
        for piece, one in zip(pieces, same, strict=True):
            assert torch.equal(piece.images_BCHW, one.images_BCHW)
            assert torch.equal(piece.labels_B, one.labels_B)
        count = sum(len(one.labels_B) for one in same)
        # The mean is over the part and not over the batch.
        assert {piece.global_count for piece in pieces} == {count}
        assert told.images[at] == count
    assert sum(told.images[:9]) == 22
