"""Runs of the built-in training that are interrupted, and what is asked about them."""

import json
import os
import signal
import tempfile
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from tests.cluster.waiting import eventually

LONG = "SOAK" in os.environ
OPTIONS = ("--nodes", 2, "--time", "10", "--epochs", 3 if LONG else 2)


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
        eventually(lambda: self.step() >= step, 150)

    @contextmanager
    def held(self):
        """Rank 0 stands still and the others wait for it, so that a quick machine is not through too soon."""
        pid = json.loads((self.folder / "ranks" / "0.json").read_text())["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            # Slurm wakes it up itself before TERM, and it may have ended since.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def asked(self):
        """Whether its ranks are asked to stop; the file of the request is gone once they stopped."""
        return (self.folder / "ranks" / "0.stop").exists()

    def asked_or_requeued(self, restarts):
        """Whether its ranks are asked to stop, or did and it came into the queue again."""
        return self.asked() or self.field("Restarts") == str(restarts)

    def train_until_asked(self):
        """Until its ranks are asked to stop; where the machine is slow, Slurm asks before the tenth step."""
        # The file of the request is gone once they stopped, and then there is a checkpoint.
        stopped = (self.folder / "checkpoints").glob
        eventually(lambda: self.step() >= 10 or self.asked() or any(stopped("*.ckpt")), 150)
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


class Cluster:
    """The testbed, as the interruptions below see it.

    Attributes:
        testbed: The cluster.
        untouched: A run that nobody touched, when it is over.
    """

    def __init__(self, testbed, folder, mnist_dir):
        self.testbed, self.folder, self.mnist_dir = testbed, folder, mnist_dir
        self.untouched: Future | None = None
        self.jobs = []

    def submit(self, *options):
        """A run in a project of its own."""
        project = self.project()
        self.jobs.append(Job(self.testbed, project, self.mnist_dir, *options))
        return self.jobs[-1]

    def project(self):
        project = Path(tempfile.mkdtemp(dir=self.folder))
        (project / "hpcdist.toml").write_text("")
        return project

    def assert_ends_untouched(self, job):
        job.assert_ends_as(self.untouched.result())

    def train_untouched(self, *nodes):
        job = self.submit(*nodes)
        assert job.wait().code == 0
        return job
