"""Cutting the data: pure functions of counts, seed, epoch and rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdist.train.data.batches import (
    EVAL_BATCH_SIZE,
    MEAN,
    STANDARD_DEVIATION,
    EvalBatches,
    Split,
    TrainBatches,
    cut_shard,
    read_mnist,
    shuffle_indices,
)


def numbered_split(count: int) -> Split:
    return Split(torch.zeros(count, 2, 2, dtype=torch.uint8), torch.arange(count))


@settings(deadline=None)
@given(count=st.integers(1, 200), batch_size=st.integers(1, 64), world_size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_each_epoch_has_every_sample_once_and_ranks_share_none(count, batch_size, world_size, epoch):
    split = numbered_split(count)
    ranks = [TrainBatches(split, batch_size, seed=7, rank=rank, world_size=world_size) for rank in range(world_size)]
    for batches in ranks:
        batches.epoch = epoch
    seen = [torch.cat([batch.labels_B for batch in batches]) for batches in ranks]
    assert torch.cat(seen).sort().values.tolist() == list(range(count))
    assert all(len(batches) == len(list(batches)) for batches in ranks)


@settings(deadline=None)
@given(count=st.integers(1, 200), batch_size=st.integers(1, 64), world_size=st.integers(1, 9))
def test_a_step_has_the_same_samples_however_many_ranks_cut_it(count, batch_size, world_size):
    split = numbered_split(count)
    alone = TrainBatches(split, batch_size, seed=7, rank=0, world_size=1)
    ranks = [TrainBatches(split, batch_size, seed=7, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.cat([part.labels_B for part in parts]).tolist() == whole.labels_B.tolist()
        assert all(part.global_count == whole.global_count == len(whole.labels_B) for part in parts)


@given(count=st.integers(0, 10_000), world_size=st.integers(1, 64))
def test_shares_differ_by_at_most_one_sample(count, world_size):
    sizes = [end - begin for begin, end in (cut_shard(count, rank, world_size) for rank in range(world_size))]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    assert shuffle_indices(100, seed=1, epoch=0).tolist() == shuffle_indices(100, seed=1, epoch=0).tolist()
    assert shuffle_indices(100, seed=1, epoch=0).tolist() != shuffle_indices(100, seed=1, epoch=1).tolist()
    assert shuffle_indices(100, seed=1, epoch=0).tolist() != shuffle_indices(100, seed=2, epoch=0).tolist()
    # A seed from a clock in nanoseconds, times a million, is more than torch takes.
    assert sorted(shuffle_indices(100, seed=1_790_000_000_000_000_000, epoch=0).tolist()) == list(range(100))


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_test_set_is_cut_into_equally_many_batches_per_rank(world_size):
    count = 2 * EVAL_BATCH_SIZE + 5
    split = numbered_split(count)
    ranks = [list(EvalBatches(split, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert torch.cat([batch.labels_B for batches in ranks for batch in batches]).tolist() == list(range(count))


def test_pixels_are_normalised_as_usual():
    split = Split(torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.tensor([3]))
    images_BCHW = split.select(torch.tensor([0]), 1).images_BCHW
    assert images_BCHW.shape == (1, 1, 1, 2)
    expected = [-MEAN / STANDARD_DEVIATION, (1 - MEAN) / STANDARD_DEVIATION]
    assert images_BCHW.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_mnist_is_read_through_torchvision(mnist_dir):
    train = read_mnist(mnist_dir, torch.device("cpu"), train=True)
    test = read_mnist(mnist_dir, torch.device("cpu"), train=False)
    assert train.images_NHW.shape == (60_000, 28, 28)
    assert test.images_NHW.shape == (10_000, 28, 28)
    assert train.labels_N[:5].tolist() == [5, 0, 4, 1, 9]
