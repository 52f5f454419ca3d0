import subprocess

import pytest

from hpcdist.errors import UsageError
from hpcdist.submission import snapshot
from hpcdist.submission.snapshot import is_left_out, take_snapshot
from tests.conftest import run_hpcdist


@pytest.fixture
def tree(project):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=project, check=True)

    git("init", "-q")
    (project / ".gitignore").write_text("big/\n")
    (project / "src").mkdir()
    (project / "src" / "train.py").write_text("print('committed')\n")
    (project / "gone.py").write_text("")
    (project / ".env").write_text("TOKEN=x")
    git("add", "-A", "-f")
    git("commit", "-qm", "first")
    (project / "gone.py").unlink()
    (project / "src" / "train.py").write_text("print('changed')\n")
    (project / "src" / "new file.py").write_text("")
    (project / "big").mkdir()
    (project / "big" / "data").write_text("x")
    (project / "server.key").write_text("x")
    (project / "jobs" / "runs" / "a").mkdir(parents=True)
    (project / "jobs" / "runs" / "a" / "log").write_text("x")
    return project


def test_the_copy_has_changes_and_new_files_and_neither_secrets_nor_what_is_ignored(tree, tmp_path_factory):
    target = tree / "jobs" / "snapshots" / "run"
    assert take_snapshot(tree / "src", target) == target / "src"
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {".gitignore", "src/train.py", "src/new file.py"}
    assert (target / "src" / "train.py").read_text() == "print('changed')\n"
    assert target.stat().st_mode & 0o777 == 0o700
    # What is copied once stays: a job that waits runs what was submitted.
    (tree / "src" / "train.py").write_text("print('later')\n")
    take_snapshot(tree / "src", target)
    assert (target / "src" / "train.py").read_text() == "print('changed')\n"
    listed = subprocess.run(["git", "status", "--short"], cwd=tree, capture_output=True, text=True).stdout
    assert "snapshots" not in listed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".env", True),
        ("a/.env.local", True),
        ("deploy/Prod.ENV", True),
        (".envrc", True),
        ("id_ed25519", True),
        (".aws/config", True),
        ("keys/server.pem", True),
        ("environment.yml", False),
        ("keys.py", False),
        ("src/credentials_test.py", False),
    ],
)
def test_what_opens_doors_is_never_copied(name, expected):
    assert is_left_out(name) is expected


def test_a_tree_that_is_too_large_is_refused_with_its_largest_files(tree, monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_BYTES", 10)
    with pytest.raises(UsageError, match=r"largest: src/train.py"):
        take_snapshot(tree, tree / "jobs" / "snapshots" / "run")


def test_without_git_there_is_no_snapshot(project):
    with pytest.raises(UsageError, match="in no git tree"):
        take_snapshot(project, project / "jobs" / "snapshots" / "run")


def test_a_submitted_job_runs_the_copy(tree):
    (tree / "hpcdist.toml").write_text("")
    arguments = ("--backend", "local", "--gpus", "0", "--run", "kept", "--snapshot", "--wait")
    done = run_hpcdist("submit", *arguments, "--", "python", "train.py", cwd=tree / "src")
    assert done.code == 0, done.err
    assert "changed" in run_hpcdist("logs", "kept").out
    assert f"cd -- {tree}/jobs/snapshots/kept/src\n" in (tree / "jobs/runs/kept/script.sbatch").read_text()
    assert run_hpcdist("submit", "--backend", "local", "--snapshot").code == 2
