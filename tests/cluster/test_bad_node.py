"""A node that is not fit to train, on the real cluster: it is named, left out, and the job goes on elsewhere."""

import subprocess
from pathlib import Path

import pytest

import hpcdist

pytestmark = pytest.mark.slurm

OPTIONS = ("--nodes", 3, "--gpus", 1, "--cpus-per-task", 1, "--max-steps", 5, "--time", "5", "--wait")


@pytest.fixture
def other_code_on_n2(testbed, tmp_path):
    """One of hpcdist's files is another there, by a mount that only n2 sees."""
    file = Path(hpcdist.__file__).with_name("text.py")
    other = tmp_path / "printable.py"
    other.write_text(file.read_text() + "# another release\n")
    pid = testbed.pid_of("slurmd.n2")
    inside = ("nsenter", f"--mount=/proc/{pid}/ns/mnt")
    subprocess.run([*inside, "mount", "--bind", other, file], check=True)
    yield
    subprocess.run([*inside, "umount", file], check=True)


@pytest.mark.usefixtures("other_code_on_n2")
def test_the_bad_node_is_named_before_the_training(testbed, project, mnist_dir):
    done = testbed.hpcdist(
        "submit", *OPTIONS, "--nodelist", "n1,n2,n3", "--data-dir", mnist_dir, cwd=project, timeout=120
    )
    assert done.code == 1
    assert "rank 1 on n2 has the hpcdist code" in done.err
    assert "--exclude n2" in done.err


@pytest.mark.usefixtures("other_code_on_n2")
def test_the_bad_node_is_replaced(testbed, project, mnist_dir):
    # Of four nodes only n4 is left to take its place.
    command = ("submit", *OPTIONS, "--replace-bad-node", "--run", "replaced", "--data-dir", mnist_dir)
    done = testbed.hpcdist(*command, cwd=project, timeout=200)
    assert done.code == 0, done.err
    log = testbed.hpcdist("logs", "replaced", cwd=project).out
    assert "kept from n2, which its preflight found not fit" in log
    assert "finished" in log
    row = testbed.run("sacct", "-X", "-n", "-P", "-j", done.out.split()[0], "--format=NodeList,State")
    assert row.strip() == "n[1,3-4]|COMPLETED"
