"""Datasets that come as archives: their published checksums, --from a folder, what damage looks like.

The archives here are made up, of the real ones' form; fetching the real ones has never been run where this was written.
"""

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import msgspec
import pytest

from hpcdist import datasets
from hpcdist.config.training import Training
from hpcdist.datasets import (
    Synthetic,
    fetch_archives,
    find_dataset,
    find_trouble,
    is_complete,
    list_datasets,
    parse_folder,
    parse_synthetic,
)
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError, UsageError
from tests.conftest import run_hpcdist


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def ignore(text):
    pass


class Made:
    """A dataset's archives, made up, and the dataset with their checksums in place of the published ones."""

    def __init__(self, name, folder):
        self.folder = folder
        folder.mkdir()
        real = find_dataset(name)
        contents = {file.path: f"{name} {file.path}".encode() * 50 for file in real.files}
        downloads = []
        for download in real.downloads:
            content = self._pack(download, contents)
            (folder / download.name).write_bytes(content)
            downloads.append(msgspec.structs.replace(download, md5=md5(content)))
        files = [
            msgspec.structs.replace(
                file,
                md5=md5(
                    (folder / f"{file.path.rpartition('/')[2]}.gz").read_bytes()
                    if file.is_packed
                    else contents[file.path]
                ),
            )
            for file in real.files
        ]
        self.contents = contents
        self.dataset = msgspec.structs.replace(real, files=tuple(files), downloads=tuple(downloads))

    def _pack(self, download, contents):
        if download.path and download.path.endswith(".gz"):
            return gzip.compress(contents[download.path.removesuffix(".gz")])
        if download.path:
            return contents[download.path]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path, content in (*contents.items(), ("../outside", b"no"), ("cifar-10-batches-py/readme.html", b"no")):
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return packed.getvalue()


NAMES = ("fashion-mnist", "cifar10", "cifar100", "svhn")


@pytest.fixture(params=NAMES)
def made(request, tmp_path):
    return Made(request.param, tmp_path / "archives")


def test_they_are_taken_from_a_folder_and_nothing_else_is_unpacked(made, tmp_path):
    data = tmp_path / "data"
    assert not is_complete(made.dataset, data)
    assert "is missing" in find_trouble(made.dataset, data)
    data.mkdir()
    fetch_archives(made.dataset, data, ignore, made.folder)
    assert is_complete(made.dataset, data)
    assert find_trouble(made.dataset, data) is None
    assert {path: (data / path).read_bytes() for path in made.contents} == made.contents
    found = {path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()}
    assert found == set(datasets.list_paths(made.dataset))
    assert not (tmp_path / "outside").exists()


def test_one_changed_byte_is_found(made, tmp_path):
    fetch_archives(made.dataset, tmp_path, ignore, made.folder)
    path = tmp_path / made.dataset.files[-1].path
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    assert find_trouble(made.dataset, tmp_path).endswith(f"{path} does not have its checksum")


def test_an_unpacked_copy_is_copied(made, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    fetch_archives(made.dataset, first, ignore, made.folder)
    for path in made.folder.iterdir():
        path.unlink()
    fetch_archives(made.dataset, second, ignore, first)
    assert find_trouble(made.dataset, second) is None


def test_a_damaged_archive_is_refused_before_it_is_opened(made, tmp_path):
    path = made.folder / made.dataset.downloads[0].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HpcdistError, match="is damaged: its MD5 is not"):
        fetch_archives(made.dataset, tmp_path / "data", ignore, made.folder)


def test_an_empty_folder_says_what_to_get(made, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HpcdistError, match=r"there is no \S+ below") as caught:
        fetch_archives(made.dataset, tmp_path / "data", ignore, tmp_path / "empty")
    assert made.dataset.downloads[0].urls[0] in caught.value.hint


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_they_are_fetched_from_their_site_and_a_damaged_one_is_not_kept(tmp_path):
    made = Made("svhn", tmp_path / "archives")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(made.folder))
    )
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    downloads = tuple(
        msgspec.structs.replace(download, urls=("http://127.0.0.1:9/gone", f"{address}{download.name}"))
        for download in made.dataset.downloads
    )
    here = msgspec.structs.replace(made.dataset, downloads=downloads)
    fetch_archives(here, tmp_path, ignore, None)
    assert find_trouble(here, tmp_path) is None
    (made.folder / "test_32x32.mat").write_bytes(b"something else")
    (tmp_path / "other").mkdir()
    with pytest.raises(HpcdistError, match=r"test_32x32\.mat arrived damaged"):
        fetch_archives(here, tmp_path / "other", ignore, None)
    assert not (tmp_path / "other" / "test_32x32.mat").exists()
    server.shutdown()
    server.server_close()


def test_the_catalogue_is_torchvisions():
    from torchvision import datasets as published

    for dataset in list_datasets():
        kind = getattr(published, dataset.title)
        sums = {file.path.rpartition("/")[2]: file.md5 for file in dataset.files}
        archives = {download.name: download.md5 for download in dataset.downloads}
        urls = [download.urls[0] for download in dataset.downloads]
        match dataset.name:
            case "fashion-mnist":
                assert archives == dict(kind.resources)
                assert urls == [f"{kind.mirrors[0]}{name}" for name, _ in kind.resources]
            case "svhn":
                parts = [kind.split_list[name] for name in ("train", "test")]
                assert sums == {name: checksum for _, name, checksum in parts} == archives
                assert urls == [url for url, _, _ in parts]
            case "cifar10" | "cifar100":
                meta = {kind.meta["filename"]: kind.meta["md5"]}
                assert sums == {name: checksum for name, checksum in kind.train_list + kind.test_list} | meta  # noqa: C416
                assert archives == {kind.filename: kind.tgz_md5}
                assert urls == [kind.url]
                assert all(file.path.startswith(f"{kind.base_folder}/") for file in dataset.files)


class TestNames:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            ("synthetic", Synthetic(shape=(3, 32, 32), class_count=10, count=10_000)),
            ("synthetic:1x28x14x5@70", Synthetic(shape=(1, 28, 14), class_count=5, count=70)),
            # 256 MiB / 150,528 bytes.
            ("synthetic:3x224x224x1000", Synthetic(shape=(3, 224, 224), class_count=1000, count=1783)),
        ],
    )
    def test_synthetic_data_is_what_its_name_says(self, data, expected):
        assert parse_synthetic(data) == expected

    @pytest.mark.parametrize("data", ["synthetic:3x32x32", "synthetic:0x2x2x2", "synthetic:3x32x32x1", "synthetic:x"])
    def test_what_says_no_shape_is_refused(self, data):
        with pytest.raises(UsageError, match="does not say channels"):
            Training(data=data)

    def test_a_folder_is_told_by_its_slash_and_may_name_a_side(self):
        assert parse_folder("/data/imagenet") == ("/data/imagenet", 224)
        assert parse_folder("./cut@64") == ("./cut", 64)
        assert parse_folder("./at@home") == ("./at@home", 224)
        assert Training(data="./cut@64").data_name == "./cut@64"

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(UsageError, match="no dataset is called 'cifar'"):
            Training(data="cifar")
        with pytest.raises(NotFoundError):
            find_dataset("cifar")


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"target_accuracy": 98.0}, "target_accuracy is 98.0"),
            ({"target_accuracy": 0.0}, "target_accuracy is 0.0"),
            ({"accumulate": 0}, "accumulate is 0"),
            ({"module": "a:B"}, "need each other"),
            ({"module": "a.b", "datamodule": "a:B"}, "does not name a class"),
            ({"module": "a:B", "datamodule": "a:C", "model": "vgg"}, "model is for the built-in networks"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, options, expected):
        with pytest.raises(UsageError, match=expected):
            Training(**options)

    def test_what_is_sound_is_taken(self):
        training = Training(module="a.b:C", datamodule="a.b:D", compile=True, target_accuracy=None)
        assert training.data_name is None
        assert Training().data_name == "mnist"
        assert Training(data="svhn", target_accuracy=1.0).data_name == "svhn"

    def test_a_script_has_words_for_what_was_asked_for_alone(self):
        plain = run_hpcdist("render", "--nodes", "1")
        assert not any(word in plain.out for word in ("--model", "--data ", "--compile", "--accumulate", "--schedule"))
        asked = run_hpcdist(
            "render", "--model", "resnet18", "--data", "cifar10", "--no-compile", "--scale-lr", "--target-accuracy",
            "0.93", "--accumulate", "2", "--schedule", "step", "--lr-batch", "128",
        )  # fmt: skip
        words = " ".join(asked.out.split())
        for word in (
            "--model resnet18", "--data cifar10", "--no-compile", "--scale-lr", "--target-accuracy 0.93",
            "--accumulate 2", "--schedule step", "--lr-batch 128",
        ):  # fmt: skip
            assert word in words


class TestCommands:
    def test_mnist_is_taken_from_a_folder_and_verified(self, project, mnist_dir):
        done = run_hpcdist("data", "fetch", "mnist", "--from", str(mnist_dir))
        assert done.code == 0, done.err
        assert run_hpcdist("data", "verify").out == f"mnist is in {project / 'data'}, all checksums right\n"
        path = project / "data" / datasets.MNIST_FOLDER / "t10k-labels-idx1-ubyte"
        path.write_bytes(bytes(path.stat().st_size))
        damaged = run_hpcdist("data", "verify", "mnist")
        assert damaged.code == 3
        assert "t10k-labels-idx1-ubyte does not have its checksum" in damaged.err

    def test_a_folder_without_it_is_an_error(self, project):
        done = run_hpcdist("data", "fetch", "mnist", "--from", str(project))
        assert done.code == 1
        assert f"there is no train-images-idx3-ubyte below {project}" in done.err

    def test_nothing_to_verify_is_not_ready(self, project):
        assert run_hpcdist("data", "verify").code == 3

    def test_a_folder_of_images_needs_both_its_parts(self, tmp_path):
        with pytest.raises(NotReadyError, match="there is no folder"):
            datasets.verify(f"{tmp_path}@64", tmp_path)
        (tmp_path / "train" / "a").mkdir(parents=True)
        (tmp_path / "test").mkdir()
        with pytest.raises(NotReadyError, match="has no folder per class"):
            datasets.verify(str(tmp_path), tmp_path)
        (tmp_path / "test" / "a").mkdir()
        datasets.verify(f"{tmp_path}@64", tmp_path)
        assert datasets.is_present(str(tmp_path), tmp_path)
