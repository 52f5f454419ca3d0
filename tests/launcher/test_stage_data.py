import shutil
import socket
import subprocess
import sys

import pytest

from hpcdist.errors import HpcdistError
from hpcdist.launcher import stage_data


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "shared"
    (folder / "a").mkdir(parents=True)
    (folder / "one").write_bytes(b"1" * 1000)
    (folder / "a" / "two words").write_bytes(b"2" * 234)
    return folder


def run(*arguments):
    command = [sys.executable, "-m", "hpcdist.stage", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_folder_is_copied_once_and_cleaned(source, tmp_path):
    target = tmp_path / "scratch" / "copy"
    done = run("copy", source, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 file(s)" in done.stdout
    assert (target / "a" / "two words").read_bytes() == b"2" * 234
    assert target.stat().st_mode & 0o777 == 0o700
    assert "it was there" in run("copy", source, target).stdout
    assert run("clean", target).returncode == 0
    assert list(target.parent.iterdir()) == []


def test_an_unfinished_or_other_copy_is_made_anew(source, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    (target / "one").write_bytes(b"1" * 999)
    rest = tmp_path / f"copy.{socket.gethostname()}.partial"
    rest.mkdir()
    (rest / "rest").write_text("of a job that was killed")
    assert stage_data.copy(source, target) == (2, 1234)
    assert stage_data.list_files(target) == {"one": 1000, "a/two words": 234}
    assert not rest.exists()


def test_a_copy_that_another_node_made_meanwhile_is_taken(source, tmp_path, monkeypatch):
    target, digest = tmp_path / "copy", stage_data._digest

    def other_node_is_quicker(path):
        shutil.copytree(source, target, dirs_exist_ok=True)
        return digest(path)

    monkeypatch.setattr(stage_data, "_digest", other_node_is_quicker)
    stage_data.copy(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "shared"]


def test_a_full_disk_is_told_before_anything_is_copied(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1233}))
    with pytest.raises(HpcdistError, match="left") as caught:
        stage_data.copy(source, tmp_path / "copy")
    assert "scratch" in caught.value.hint
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_is_not_what_was_read_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_data, "_digest", lambda path: b"something else")
    with pytest.raises(HpcdistError, match="is not what was read"):
        stage_data.copy(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("arguments", [(), ("copy", "a"), ("move", "a", "b")])
def test_wrong_usage_is_told(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "python -m hpcdist.stage copy FROM TO" in done.stderr


def test_a_missing_folder_is_told(tmp_path):
    done = run("copy", tmp_path / "nowhere", tmp_path / "copy")
    assert done.returncode == 1
    assert "there is no folder" in done.stderr
