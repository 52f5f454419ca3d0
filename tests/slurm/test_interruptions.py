"""Runs that the cluster interrupts, on the real cluster: they end with the weights of the run that nobody touched."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.slurm.waiting import eventually

pytestmark = pytest.mark.slurm

OPTIONS = ("--nodes", 2, "--time", "10")


class Job:
    """A run of the built-in training, and what is asked about it."""

    def __init__(self, testbed, project, mnist_dir, *options):
        self.testbed, self.project = testbed, project
        command = ("submit", *OPTIONS, "--data-dir", mnist_dir, *options)
        done = testbed.hpcdist(*command, cwd=project)
        assert done.code == 0, done.err
        self.id = done.out.strip()
        (self.folder,) = [
            path.parent
            for path in project.glob("jobs/runs/*/job.json")
            if json.loads(path.read_text())["job_id"] == self.id
        ]

    def field(self, name):
        words = self.testbed.run("scontrol", "show", "job", "-o", self.id).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def step(self):
        try:
            return json.loads((self.folder / "progress.json").read_text())["step"]
        except FileNotFoundError:
            return 0

    def wait_for_step(self, step=1):
        """Until it trains (again): the file of an earlier attempt is taken away."""
        (self.folder / "progress.json").unlink(missing_ok=True)
        eventually(lambda: self.step() >= step, 90)

    @contextmanager
    def held(self):
        """Rank 0 stands still and the others wait for it, so that a quick machine is not through too soon."""
        pid = json.loads((self.folder / "ranks" / "0.json").read_text())["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def asked(self):
        """Whether its ranks are asked to stop."""
        return (self.folder / "ranks" / "0.stop").exists()

    def train_until_asked(self):
        """Until its ranks are asked to stop; where the machine is slow, Slurm asks before the tenth step."""
        # The file of the request is gone once they stopped, and then there is a checkpoint.
        stopped = (self.folder / "checkpoints").glob
        eventually(lambda: self.step() >= 10 or self.asked() or any(stopped("*.ckpt")), 90)
        if not (self.asked() or any(stopped("*.ckpt"))):
            with self.held():
                eventually(self.asked, 90)

    def wait(self):
        return self.testbed.hpcdist("wait", self.id, cwd=self.project, timeout=240)

    def log(self):
        return self.testbed.hpcdist("logs", self.id, cwd=self.project).out

    def rows(self):
        """The states of all its attempts, oldest first."""
        sacct = ("sacct", "--duplicates", "-X", "-n", "-P", "-j", self.id, "--format=State")
        return [state.split()[0] for state in self.testbed.run(*sacct).splitlines()]

    def weights(self):
        (*_, last) = sorted((self.folder / "checkpoints").glob("*.ckpt"))
        content = torch.load(last, weights_only=True)
        return content["global_step"], content["state_dict"]

    def assert_ends_as(self, untouched):
        done = self.wait()
        assert done.code == 0, done.err
        (steps, expected), (step, weights) = untouched.weights(), self.weights()
        assert step == steps
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        assert "finished: test accuracy 9" in self.log()


@pytest.fixture(scope="module")
def untouched(testbed, tmp_path_factory, mnist_dir):
    project = tmp_path_factory.mktemp("untouched")
    (project / "hpcdist.toml").write_text("")
    job = Job(testbed, project, mnist_dir)
    assert job.wait().code == 0
    return job


@pytest.fixture
def submit(testbed, project, mnist_dir):
    jobs = []

    def start(*options):
        jobs.append(Job(testbed, project, mnist_dir, *options))
        return jobs[-1]

    yield start
    for job in jobs:
        subprocess.run(["scancel", job.id], env=testbed.env)


def preempt(testbed, job):
    """A job of the high partition takes its nodes for a moment."""
    nodes = job.field("NodeList")
    wrap = ("--partition=high", "--nodes=2", f"--nodelist={nodes}", "--exclusive", "--wrap=sleep 1")
    testbed.run("sbatch", "--parsable", "--output=/dev/null", *wrap)


@contextmanager
def user_signal_at_preemption(testbed):
    """Slurm sends what --signal names in place of TERM (slurm.conf(5), SlurmctldParameters)."""
    config = Path(testbed.env["SLURM_CONF"])
    text = config.read_text()
    try:
        config.write_text(f"{text}SlurmctldParameters=preempt_send_user_signal\n")
        testbed.run("scontrol", "reconfigure")
        yield
    finally:
        config.write_text(text)
        testbed.run("scontrol", "reconfigure")


def test_preempted_three_times(testbed, submit, untouched):
    job = submit()
    for attempt, site in enumerate((nullcontext(), user_signal_at_preemption(testbed), nullcontext())):
        job.wait_for_step(10)
        with job.held(), site:
            preempt(testbed, job)
            eventually(job.asked)
        eventually(lambda restarts=attempt + 1: job.field("Restarts") == str(restarts), 60)
    job.assert_ends_as(untouched)
    assert eventually(lambda: job.rows()[-1] == "COMPLETED" and job.rows()) == ["PREEMPTED"] * 3 + ["COMPLETED"]
    assert job.log().count("goes on after step") == 3


# Due after eight seconds; Slurm looks at time limits every half minute.
NEAR_LIMIT = ("--time", "2", "--sbatch", "signal=USR2@112")


def test_its_time_limit_is_near(submit, untouched):
    goes_on, at_its_cap = submit(*NEAR_LIMIT), submit(*NEAR_LIMIT, "--max-requeues", 0)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Job.train_until_asked, (goes_on, at_its_cap)))
    assert at_its_cap.wait().code == 1
    assert "not requeued: it was 0 time(s) before, and --max-requeues is 0" in at_its_cap.log()
    assert at_its_cap.field("ExitCode") == "75:0"
    eventually(lambda: goes_on.field("Restarts") == "1", 60)
    # In the second attempt it may be asked again.
    goes_on.assert_ends_as(untouched)
    assert "requeued, time 1 of 10 at most" in goes_on.log()


def test_a_node_dies(testbed, submit, untouched):
    job = submit("--checkpoint-every", "1s", "--nodelist", "n3,n4")
    job.wait_for_step(40)
    try:
        with job.held():
            testbed.run(REPOSITORY / "testbed/kill-node", "n4")
        eventually(lambda: job.field("Restarts") == "1", 90)
    finally:
        testbed.run(REPOSITORY / "testbed/heal-node", "n4")
    job.assert_ends_as(untouched)


@contextmanager
def small_disk(testbed, folder):
    """A file system of 4 MB over a folder as n1 sees it; yields how to run a command there."""
    pid = (Path(testbed.env["SLURM_CONF"]).parents[1] / "run" / "slurmd.n1.pid").read_text().strip()

    def run(*command):
        inside = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", *command)
        return subprocess.run(inside, capture_output=True, check=True).stdout

    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    try:
        yield run
    finally:
        run("umount", folder)


def test_a_disk_that_was_full_at_a_save(testbed, submit, untouched):
    job = submit("--checkpoint-every", "1s", "--nodelist", "n1,n2")
    folder = job.folder / "checkpoints"
    log = job.folder / "logs" / f"{job.id}_0_log.out"
    job.wait_for_step(10)
    os.makedirs(folder, exist_ok=True)
    with small_disk(testbed, folder) as run:
        filler = folder / "filler"
        with job.held():
            run("sh", "-c", f"cat /dev/zero > {filler} 2> /dev/null || true")
        eventually(lambda: "No space left on device" in log.read_text(), 60, 0.05)
        run("rm", filler)
        assert job.wait().code == 0
        last = run("sh", "-c", f"ls {folder}/*.ckpt | tail -n 1").decode().strip()
        content = run("cat", last)
    # What was there before the small disk lay over it.
    for path in folder.glob("*.ckpt"):
        path.unlink()
    Path(last).write_bytes(content)
    job.assert_ends_as(untouched)
    assert "the training goes on" in log.read_text()


def test_a_killed_rank_is_not_tried_again(submit):
    job = submit()
    job.wait_for_step(10)
    (usage,) = [json.loads(path.read_text()) for path in (job.folder / "ranks").glob("1.json")]
    os.kill(usage["pid"], 9)
    assert job.wait().code == 1
    assert job.field("Restarts") == "0"


def test_cancelled_by_its_owner_it_stays_cancelled(submit, testbed):
    job = submit()
    job.wait_for_step(10)
    assert testbed.hpcdist("cancel", job.id, cwd=job.project).code == 0
    eventually(lambda: job.rows() == ["CANCELLED"])
    time.sleep(8)  # a requeued job would be back by now
    assert job.rows() == ["CANCELLED"]
    assert list((job.folder / "checkpoints").glob("*.ckpt"))


def test_controller_and_accounting_away_for_half_a_minute(testbed, submit, untouched):
    job = submit("--checkpoint-every", "1s")
    job.wait_for_step(10)
    daemons = Path(testbed.env["SLURM_CONF"]).parents[1] / "run"
    for name in ("slurmctld", "slurmdbd"):
        os.kill(int((daemons / f"{name}.pid").read_text()), signal.SIGKILL)
    time.sleep(30)
    testbed.run(REPOSITORY / "testbed/up")
    job.assert_ends_as(untouched)
    assert job.field("Restarts") == "0"


def test_sent_again_by_hand_it_begins_anew(testbed, submit, untouched):
    job = submit("--max-steps", 30)
    assert job.wait().code == 0
    again = testbed.run("sbatch", "--parsable", "--wait", "--output=/dev/null", job.folder / "script.sbatch").strip()
    log = (job.folder / "logs" / f"{again}_0_log.out").read_text()
    assert "goes on" not in log
    assert "finished" in log


def weights_printed(log):
    (line, *others) = {line.partition("] ")[2] for line in log.splitlines() if "weights [" in line}
    assert not others
    return line


PROGRAMS = {
    "plain": ("resumable_script.py", ()),
    # A worker of its own interpreter would die of a USR2 that reached it.
    "lightning": ("resumable_lightning_script.py", ("--env", "WORKERS=spawn")),
}


def test_programs_of_the_user_s_go_on(testbed, project):
    """Each is run to its end, and interrupted, all at the same time."""
    jobs = {}
    for name, (script, options) in PROGRAMS.items():
        for how in ("whole", "interrupted"):
            command = ("submit", "--nodes", 2, "--resumable", *options, "--run", f"{name}-{how}")
            program = ("--", "python", Path(__file__).with_name(script))
            jobs[name, how] = testbed.hpcdist(*command, *program, cwd=project).out.strip()
    for name in PROGRAMS:
        logs = project / "jobs" / "runs" / f"{name}-interrupted" / "logs"
        eventually(lambda logs=logs: any(path.read_text() for path in logs.glob("*_0_log.out")), 90)
        time.sleep(2)
        # What Slurm does when the time limit is near: the signal goes to every process of the step.
        testbed.run("scancel", "--signal=USR2", jobs[name, "interrupted"])
    for job in jobs.values():
        done = testbed.hpcdist("wait", job, cwd=project, timeout=240)
        assert done.code == 0, done.err
    for name in PROGRAMS:
        whole, interrupted = (
            testbed.hpcdist("logs", jobs[name, how], cwd=project).out for how in ("whole", "interrupted")
        )
        assert "the job is requeued, time 1 of 10 at most" in interrupted
        assert weights_printed(interrupted) == weights_printed(whole)
