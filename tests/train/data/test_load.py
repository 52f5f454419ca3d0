"""Datasets read through torchvision from files of the real formats, made-up ones, and augmentation."""

import pickle
import sys
from pathlib import Path

import numpy
import pytest
import scipy.io
import torch
import torchvision

from hpcdist.datasets import find_dataset, parse_synthetic
from hpcdist.errors import NotReadyError
from hpcdist.train.data import batches
from hpcdist.train.data.batches import CropFlip, Split, TrainBatches, crop_and_flip, draw_crop_flips
from hpcdist.train.data.load import make_split, read_split

CPU = torch.device("cpu")


def write_idx(path: Path, values) -> None:
    """An IDX file by its description (MNIST's page): magic, sizes, bytes."""
    values = numpy.asarray(values, dtype=numpy.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


def numbered_images(count: int) -> numpy.ndarray:
    """`count` images of 3 x 32 x 32 whose every channel, row and column differs, as CIFAR's rows of 3,072 bytes."""
    return (numpy.arange(count * 3072) % 251).astype(numpy.uint8).reshape(count, 3072)


@pytest.fixture
def unchecked(monkeypatch):
    """torchvision takes files that are not the published ones."""
    for kind in (torchvision.datasets.CIFAR10, torchvision.datasets.SVHN):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    for part, count in (("train", 3), ("t10k", 2)):
        write_idx(raw / f"{part}-images-idx3-ubyte", numpy.full((count, 28, 28), 7))
        write_idx(raw / f"{part}-labels-idx1-ubyte", numpy.arange(count))
    split = read_split(find_dataset("fashion-mnist"), tmp_path, CPU, train=True)
    assert split.images_NHW.shape == (3, 28, 28)
    assert split.shape == (1, 28, 28)
    assert split.labels_N.tolist() == [0, 1, 2]
    assert split.augmentation is None


def test_cifar10_is_read_from_its_pickles(tmp_path, unchecked):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = numbered_images(12)
    for number in range(1, 6):
        rows = slice(2 * (number - 1), 2 * number)
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps({"data": images[rows], "labels": [number, 0]}))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images[10:], "labels": [8, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train = read_split(find_dataset("cifar10"), tmp_path, CPU, train=True)
    test = read_split(find_dataset("cifar10"), tmp_path, CPU, train=False)
    assert train.images_NHW.numpy().tolist() == images[:10].reshape(10, 3, 32, 32).tolist()
    assert train.labels_N.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert test.labels_N.tolist() == [8, 9]
    assert (train.augmentation, test.augmentation) == ("crop-flip", None)


def test_cifar100_is_read_with_its_fine_labels(tmp_path, unchecked):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        content = {"data": numbered_images(2), "fine_labels": [99, 3], "coarse_labels": [1, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(number) for number in range(100)]}))
    assert read_split(find_dataset("cifar100"), tmp_path, CPU, train=True).labels_N.tolist() == [99, 3]


@pytest.mark.parametrize(("part", "augmentation"), [("train", "crop"), ("test", None)])
def test_svhn_is_read_from_mat_files(tmp_path, unchecked, part, augmentation):
    # As its authors' page has them: X of 32 x 32 x 3 x N, y of N x 1, the digit 0 as 10; compressed like theirs.
    images = numbered_images(2).reshape(2, 3, 32, 32)
    content = {"X": images.transpose(2, 3, 1, 0), "y": numpy.array([[10], [4]], dtype=numpy.uint8)}
    scipy.io.savemat(tmp_path / f"{part}_32x32.mat", content, do_compression=True)
    split = read_split(find_dataset("svhn"), tmp_path, CPU, train=part == "train")
    assert split.images_NHW.numpy().tolist() == images.tolist()
    assert split.labels_N.tolist() == [0, 4]
    assert split.augmentation == augmentation


def test_svhn_without_scipy_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(NotReadyError, match="scipy") as caught:
        read_split(find_dataset("svhn"), tmp_path, CPU, train=True)
    assert caught.value.hint == "pip install 'hpcdist[svhn]'"


class TestSynthetic:
    def test_it_is_the_same_each_time_and_its_test_set_is_another(self):
        made = parse_synthetic("synthetic:2x8x9x5@50")
        first, second, test = (make_split(made, CPU, train=train) for train in (True, True, False))
        assert first.images_NHW.shape == (50, 2, 8, 9)
        assert torch.equal(first.images_NHW, second.images_NHW)
        assert len(test.labels_N) == 10
        assert not torch.equal(first.images_NHW[:10], test.images_NHW)
        assert set(first.labels_N.tolist()) == set(range(5))

    def test_it_can_be_learned_and_is_not_trivial(self):
        # By the nearest of the classes' mean images, which is all that there is to learn.
        made = parse_synthetic("synthetic:3x16x16x10@2000")
        train, test = (make_split(made, CPU, train=train) for train in (True, False))
        means = torch.stack([train.images_NHW[train.labels_N == label].float().mean(0) for label in range(10)])
        distances = torch.cdist(test.images_NHW.float().flatten(1), means.flatten(1))
        assert (distances.argmin(1) == test.labels_N).float().mean() > 0.95
        assert train.images_NHW.float().std(dim=(1, 2, 3)).mean() > 50


class TestMoves:
    def test_each_image_is_cropped_and_mirrored_as_a_loop_would(self):
        images = torch.randint(0, 256, (20, 3, 6, 7), dtype=torch.uint8)
        crop_flips = draw_crop_flips("crop-flip", 20, seed=1, epoch=2, batch=3)
        moved = crop_and_flip(images, crop_flips)
        assert {0, 8} <= set(crop_flips.down_B.tolist()) | set(crop_flips.right_B.tolist())
        assert set(crop_flips.mirrored_B.tolist()) == {True, False}
        for number in range(20):
            padded = torch.zeros(3, 14, 15, dtype=torch.uint8)
            padded[:, 4:10, 4:11] = images[number]
            down, right = crop_flips.down_B[number], crop_flips.right_B[number]
            expected = padded[:, down : down + 6, right : right + 7]
            assert torch.equal(moved[number], expected.flip(2) if crop_flips.mirrored_B[number] else expected)

    def test_a_move_to_the_middle_changes_nothing(self):
        images = torch.randint(0, 256, (1, 3, 5, 5), dtype=torch.uint8)
        middle = torch.tensor([4])
        assert torch.equal(crop_and_flip(images, CropFlip(middle, middle, torch.tensor([False]))), images)

    def test_digits_are_never_mirrored(self):
        assert not draw_crop_flips("crop", 100, seed=1, epoch=0, batch=0).mirrored_B.any()

    def test_they_differ_between_batches_epochs_and_seeds(self):
        drawn = [
            draw_crop_flips("crop", 50, *where).down_B.tolist()
            for where in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0))
        ]
        assert len({tuple(one) for one in drawn}) == 4
        assert drawn[0] == draw_crop_flips("crop", 50, 1, 0, 0).down_B.tolist()


def augmented_split(count):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count), augmentation="crop-flip")


@pytest.mark.parametrize(("world_size", "parts"), [(3, 1), (1, 2), (2, 3)])
def test_a_step_has_the_same_augmented_images_however_it_is_cut(world_size, parts):
    split = augmented_split(22)
    whole = list(TrainBatches(split, 8, 1, 0, 1))
    ranks = [list(TrainBatches(split, 8, 1, rank, world_size, accumulate=parts)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        cut = [ranks[rank][parts * number + part] for part in range(parts) for rank in range(world_size)]
        assert torch.equal(torch.cat([piece.images_BCHW for piece in cut]), batch.images_BCHW)
        assert all(piece.global_count == batch.global_count for piece in cut)


def test_a_training_that_goes_on_has_the_same_augmented_images():
    whole = list(TrainBatches(augmented_split(20), 8, 1, 0, 1))
    resumed = TrainBatches(augmented_split(20), 8, 1, 0, 1)
    resumed.load_state_dict({"epoch": 0, "batch": 1})
    assert torch.equal(next(iter(resumed)).images_BCHW, whole[1].images_BCHW)


def test_of_a_batch_smaller_than_its_parts_the_last_part_has_some():
    batches = list(TrainBatches(augmented_split(9), 8, 1, 0, 1, accumulate=4))
    assert [len(batch.labels_B) for batch in batches] == [2, 2, 2, 2, 0, 0, 0, 1]


def test_a_grey_and_a_coloured_set_are_normalised_by_their_own_figures():
    pixels = torch.tensor([[[[255]], [[0]], [[51]]]], dtype=torch.uint8)
    cifar = find_dataset("cifar10")
    split = Split(pixels, torch.tensor([0]), batches.Normalisation(cifar.mean, cifar.standard_deviation))
    found = split.select(torch.tensor([0]), 1).images_BCHW.flatten().tolist()
    assert found == pytest.approx([(1 - 0.4914) / 0.2470, -0.4822 / 0.2435, (0.2 - 0.4465) / 0.2616], rel=1e-4)
