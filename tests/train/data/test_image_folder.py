"""A folder of images: decoded once by worker processes, cut anew in each epoch, the same in every layout."""

import errno
import math
import os
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from PIL import Image

from hpcdist.config.job import Layout
from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.train.data.image_folder import (
    BadImageError,
    Decoded,
    count_bytes,
    cut_middle,
    decode_picture,
    draw_crop,
    find_room,
    keep_decoded,
    open_folder,
)
from hpcdist.train.data.load import read_data
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.options import Options
from hpcdist.train.parameter_server.part_batches import PartBatches
from tests.train.parameter_server.test_part_batches import Told

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    """Six training and four test images of two classes: red ones and blue ones, of several sizes."""
    for part, count in (("train", 3), ("val", 2)):
        for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20 + number, 30 - number), colour).save(folder / f"{number}.png")
    return tmp_path


class TestFolder:
    def test_workers_decode_every_image_once_an_epoch_and_the_same_in_every_layout(self, images):
        cut = {"batch_size": 4, "seed": 1, "accumulate": 1}
        alone = open_folder(images, 16, CPU, workers=1, rank=0, world_size=1, **cut)
        whole = list(alone.train_batches)
        assert [len(batch.labels_B) for batch in whole] == [4, 2]
        assert torch.cat([batch.labels_B for batch in whole]).sort().values.tolist() == [0] * 3 + [1] * 3
        assert alone.class_count == 2
        assert alone.shape == (3, 16, 16)
        ranks = [open_folder(images, 16, CPU, workers=0, rank=rank, world_size=2, **cut) for rank in range(2)]
        pairs = zip(*(data.train_batches for data in ranks), strict=True)
        for batch, pair in zip(whole, pairs, strict=True):
            assert torch.equal(torch.cat([part.images_BCHW for part in pair]), batch.images_BCHW)
        alone.train_batches.epoch = 1
        assert not torch.equal(next(iter(alone.train_batches)).labels_B, whole[0].labels_B)

    def test_classes_are_told_by_their_colours_after_decoding(self, images):
        data = open_folder(images, 16, CPU, workers=0, rank=0, world_size=1, batch_size=6, seed=1, accumulate=1)
        for batch in (*data.train_batches, *data.test_batches):
            is_red = batch.images_BCHW[:, 0].mean(dim=(1, 2)) > batch.images_BCHW[:, 2].mean(dim=(1, 2))
            assert is_red.long().tolist() == batch.labels_B.tolist()

    def test_it_goes_on_at_the_batch_where_it_was_whatever_workers_read_ahead(self, images):
        data = open_folder(images, 16, CPU, workers=1, rank=0, world_size=1, batch_size=2, seed=1, accumulate=1)
        passed = iter(data.train_batches)
        next(passed)
        assert data.train_batches.state_dict() == {"epoch": 0, "batch": 1}

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_image_is_decoded_once_and_cut_anew_in_each_epoch(self, images, workers):
        rank = RankEnvironment(started_at_s=0.0)
        cut = {"batch_size": 4, "seed": 1, "accumulate": 1, "rank": 0, "world_size": 1}
        plain = open_folder(images, 16, CPU, workers=0, **cut)
        data = open_folder(images, 16, CPU, workers=workers, keep=lambda *size: keep_decoded(*size, rank), **cut)
        epochs = []
        for epoch in range(2):
            plain.train_batches.epoch = epoch
            epochs.append([list(plain.train_batches), list(plain.test_batches)])
        assert not torch.equal(epochs[0][0][0].images_BCHW, epochs[1][0][0].images_BCHW)
        for epoch, expected in enumerate(epochs):
            data.train_batches.epoch = epoch
            for batches, these in zip((data.train_batches, data.test_batches), expected, strict=True):
                for batch, this in zip(batches, these, strict=True):
                    assert torch.equal(batch.images_BCHW, this.images_BCHW)
                    assert torch.equal(batch.labels_B, this.labels_B)
            for file in images.rglob("*.png"):
                file.unlink()

    def test_a_rank_that_is_told_part_by_part_has_the_images_of_one_that_goes_in_step(self, images):
        cut = {"batch_size": 4, "seed": 1, "accumulate": 1, "world_size": 2}
        in_step = [list(open_folder(images, 16, CPU, workers=0, rank=rank, **cut).train_batches) for rank in range(2)]
        whole = open_folder(images, 16, CPU, workers=2, rank=0, **cut).train_batches
        told = Told([0, 3, 2])
        for batch, expected in zip(
            PartBatches(whole, told, 2, 1), (in_step[0][0], in_step[1][1], in_step[0][1]), strict=True
        ):
            assert torch.equal(batch.images_BCHW, expected.images_BCHW)
            assert batch.global_count == len(batch.labels_B)
        assert told.images == [2, 1, 1]

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("content", [b"", b"no image", None])
    def test_an_image_that_can_not_be_decoded_is_named(self, images, workers, content):
        path = images / "train" / "red" / "1.png"
        path.write_bytes(path.read_bytes()[:60] if content is None else content)
        data = open_folder(images, 16, CPU, workers=workers, rank=0, world_size=1, batch_size=6, seed=1, accumulate=1)
        with pytest.raises(BadImageError) as caught:
            list(data.train_batches)
        assert caught.value.message.startswith(f"{path} can't be decoded: ")
        assert caught.value.hint == "fetch that image again, or remove it"

    def test_another_class_in_the_test_set_is_refused(self, images):
        (images / "val" / "blue").rename(images / "val" / "green")
        with pytest.raises(UsageError, match="'blue'"):
            open_folder(images, 16, CPU, workers=0, rank=0, world_size=1, batch_size=2, seed=1, accumulate=1)

    def test_a_class_without_images_is_refused(self, images):
        (images / "train" / "empty").mkdir()
        with pytest.raises(UsageError, match="empty"):
            open_folder(images, 16, CPU, workers=0, rank=0, world_size=1, batch_size=2, seed=1, accumulate=1)

    def test_its_workers_are_the_layouts_cpus_but_one(self, images, monkeypatch):
        asked = {}
        monkeypatch.setattr("hpcdist.train.data.image_folder.open_folder", lambda *_, **named: asked.update(named))
        options = Options(layout=Layout(), training=Training(data=f"{images}@16"))
        for threads, workers in ((8, 7), (1, 1)):
            read_data(options, RankEnvironment(started_at_s=0.0), Path(), CPU, threads)
            assert asked["workers"] == workers


def test_crops_are_within_the_image_and_of_the_asked_areas_and_ratios():
    chance = random.Random(1)
    for _ in range(200):
        left, top, right, bottom = draw_crop(100, 60, chance)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 60
        assert 0.08 * 6000 * 0.999 <= (right - left) * (bottom - top) <= 6000
        assert math.log(3 / 4) - 1e-9 <= math.log((right - left) / (bottom - top)) <= math.log(4 / 3) + 1e-9


def test_the_middle_of_a_test_image_is_seven_eighths_of_its_shorter_side():
    assert cut_middle(100, 80) == (15.0, 5.0, 85.0, 75.0)


class TestDecoded:
    def test_what_one_process_keeps_another_finds(self, tmp_path):
        (tmp_path / "file").write_bytes(bytes(count_bytes(5, 4)))
        one, other = (Decoded(tmp_path / "file", 5, 4) for _ in range(2))
        Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "image.png")
        one.keep(3, decode_picture(str(tmp_path / "image.png"), 4))
        found = other.find(3)
        assert (found.width, found.height) == (30, 20)
        assert found.pixels_HWC.tolist() == [[[1, 2, 3]] * 4] * 4
        assert [place for place in range(5) if other.find(place)] == [3]

    def test_its_file_has_no_name_when_it_is_open(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert keep_decoded(1000, 8, RankEnvironment(started_at_s=0.0)) is not None
        assert list(tmp_path.iterdir()) == []
        # 1,000 x (8 + 3 x 8 x 8) bytes.
        assert f"1,000 images are decoded once and kept: 195.31 KB in {tmp_path}" in capsys.readouterr().out

    def test_without_room_nothing_is_kept_and_it_is_said(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert keep_decoded(10**12, 256, RankEnvironment(started_at_s=0.0)) is None
        assert list(tmp_path.iterdir()) == []
        assert "are decoded in every epoch" in capsys.readouterr().out

    def test_a_disk_that_fills_up_meanwhile_is_no_room_either(self, tmp_path, monkeypatch):
        def fill(handle, offset, size):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(os, "posix_fallocate", fill)
        assert keep_decoded(10, 8, RankEnvironment(started_at_s=0.0)) is None
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_in_memory_has_room_for_a_gibibyte_at_most(self, tmp_path, monkeypatch):
        kinds = {"/": "ext4", str(tmp_path): "tmpfs"}
        mounts = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in kinds.items()]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **which: mounts)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100 << 30))
        assert find_room(tmp_path / "run") == 1 << 30
        assert find_room(tmp_path.parent) == 50 << 30

    def test_a_squeezed_image_is_cut_like_the_image(self, tmp_path):
        # Brighter to the right and greener to the bottom, so that every shift would show.
        image = Image.new("RGB", (300, 200))
        image.putdata([(x * 255 // 299, y * 255 // 199, 0) for y in range(200) for x in range(300)])
        image.save(tmp_path / "image.png")
        picture = decode_picture(str(tmp_path / "image.png"), 64)
        for box in ((0, 0, 300, 200), (62.5, 12.5, 237.5, 187.5), (10, 120, 130, 200)):
            expected = image.resize((56, 56), Image.Resampling.BILINEAR, box).tobytes()
            found = picture.cut(box, 56).tobytes()
            assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= 4
