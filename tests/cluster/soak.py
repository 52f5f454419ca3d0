"""Runs on a real cluster that have to live through faults."""

import json
import os
import signal
import time
from collections import Counter

import torch

from hpcdist.records.ranks import RESTART_LINE
from tests.cluster.faults import Struck
from tests.cluster.waiting import eventually
from tests.conftest import REPOSITORY

OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
INTERVAL_S = 3.0
PROGRESS_S = 1.0  # progress.json is first written after so much training
OPTIONS = ("--epochs", 3, "--checkpoint-every", f"{INTERVAL_S:g}s", "--log-every", 1, "--time", 20)
# So much that a rank that is killed is not taken for one whose memory was full.
OPTIONS += ("--mem-per-cpu", "1500M")


class Soaked:
    """A training that goes through faults: one run, and those that went on from it after a rank was killed."""

    def __init__(self, cluster, options):
        self.cluster, self.options = cluster, options
        self.began_at_s = time.time()
        self.ended_at_s = None
        self.names, self.struck, self.released, self.bare = [], [], 0, Counter()
        self._enter(cluster.hpcdist("submit", *options, *OPTIONS, "--data-dir", cluster.mnist_dir, "--json"))

    def _enter(self, done):
        assert done.code == 0, done.err
        record = json.loads(done.out)
        self.id, self.restarts = record["job_id"], 0
        self.names.append(record["run"])
        self.folder = self.cluster.project / "jobs" / "runs" / record["run"]
        self.taken_at_s, self.before, self.trains_from_s = {}, {}, None

    def field(self, name):
        words = self.cluster.ask("scontrol", "show", "job", "-o", self.id).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def rank(self, number):
        try:
            usage = json.loads((self.folder / "ranks" / f"{number}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return usage if usage["restart_count"] == self.restarts else None

    def checkpoints(self):
        return sorted((self.folder / "checkpoints").glob("step-*.ckpt"))

    def look(self):
        """Remembers when checkpoints were taken, and since when this attempt trains."""
        for path in self.checkpoints():
            try:
                self.taken_at_s[path.name] = path.stat().st_mtime
            except FileNotFoundError:
                continue
        first = self.rank(0)
        try:
            written_at_s = (self.folder / "progress.json").stat().st_mtime
        except FileNotFoundError:
            return
        if self.trains_from_s is None and first and written_at_s > first["started_at_s"]:
            self.trains_from_s = written_at_s - PROGRESS_S

    def trains(self, timeout_s=180):
        """Waits until this attempt trains; False when the job is over."""

        def known():
            self.look()
            self.wait()
            return self.trains_from_s is not None or self.is_over()

        eventually(known, timeout_s, 0.3)
        return not self.is_over()

    def wait(self):
        """What its owner has open meanwhile, and what a controller that was restarted a moment ago does to its start.

        It starts the job once more where it runs already, and holds it: `hpcdist wait` releases it. Or it gives the job
        no GPUs, which its script says and is requeued.
        """
        if self.field("Reason") == "launch_failed_requeued_held":
            self.cluster.hpcdist("wait", "--timeout", 2, self.id)
            self.restarts = int(self.field("Restarts"))
            self.released += 1
        logs = self.folder.glob("logs/*_batch.out")
        bare = sum(path.read_text().count("Slurm gave the job no GPUs: it is requeued") for path in logs)
        self.restarts += bare - self.bare[self.id]
        self.bare[self.id] = bare

    def go_on(self):
        """Another run goes on from where this one ended."""
        taken_at_s = {**self.before, **self.taken_at_s}
        resume = ["--resume"] if self.checkpoints() else []
        self._enter(self.cluster.hpcdist("rerun", *resume, self.names[-1], "--json"))
        self.before = taken_at_s

    def is_over(self):
        return self.field("JobState") in OVER

    def finish(self):
        """Until the end of it, after its last fault."""
        eventually(lambda: self.look() or self.wait() or self.is_over(), 240, 0.5)
        self.ended_at_s = time.time()

    def strike(self, fault):
        """Does it and waits until the run trains again; False when the run was over before."""
        if not self.trains():
            return False
        time.sleep(fault.delay_s)
        self.look()
        if self.is_over():
            return False
        began_s, since_s = time.time(), self.trains_from_s
        if not getattr(self, fault.kind.replace("-", "_"))(fault):
            return False
        self.trains()
        step, lost_s = None, 0.0
        if fault.kind != "controller":
            step, steps = self.went_on_after()
            lost_s = self.lost_s(step, steps, since_s, began_s)
        self.struck.append(Struck(fault, self.names[-1], step, lost_s, time.time() - began_s))
        return True

    def lost_s(self, step, steps, since_s, broken_at_s):
        """Seconds of training done again: what the attempt before this one did after the checkpoint gone on from.

        Args:
            step: That of the checkpoint; None where it began anew.
            steps: The last one of the training; broken after it was saved, nothing more was trained.
            since_s: When that attempt began to train.
            broken_at_s: When it was broken; asked to stop, it may have come further and saved that.
        """
        if step is not None and step == steps:
            return 0.0  # also where its file came after the last look
        first = self.rank(0)["started_at_s"]
        # The latest of each step: one that was cut is taken again by the attempt after.
        by_time = sorted(self.before.items(), key=lambda one: one[1])
        taken = {int(name.split("-")[1]): taken_at_s for name, taken_at_s in by_time if taken_at_s < first}
        until_s = taken[steps] if steps in taken else max([broken_at_s, *taken.values()])
        return max(0.0, until_s - max(since_s, taken.get(step, 0.0)))

    def went_on_after(self):
        """The step this attempt went on from, of how many; None where it began anew."""
        text = "".join(path.read_text() for path in (self.folder / "logs").glob("*_0_log.out"))
        if self.restarts:
            text = text.rpartition(RESTART_LINE.format(self.restarts))[2]
        found = [line for line in text.splitlines() if line.startswith("goes on after step ")]
        if not found:
            return None, None
        words = found[0].replace(",", "").split()
        return int(words[4]), int(words[6])

    def comes_back(self, timeout_s=90):
        """Waits until Slurm has put it back into the queue; False when it was over before the fault struck."""

        def settled():
            self.look()
            return int(self.field("Restarts")) > self.restarts or self.is_over()

        eventually(settled, timeout_s, 0.3)
        self.look()
        if int(self.field("Restarts")) == self.restarts:
            return False
        self.restarts += 1
        self._starts_anew()
        return True

    def _starts_anew(self):
        # Checkpoints of the stopped attempt may be written until its processes are gone.
        self.before, self.trains_from_s = self.taken_at_s, None

    def preempt(self, fault):
        nodes, count = self.field("NodeList"), self.field("NumNodes")
        wrap = (f"--nodes={count}", f"--nodelist={nodes}", "--exclusive", "--wrap=sleep 1")
        taker = self.cluster.ask("sbatch", "--parsable", "--partition=high", "--output=/dev/null", *wrap).strip()
        if self.comes_back():
            return True
        # It would preempt whatever runs there when Slurm can: one that miscounts a node's GPUs can't.
        self.cluster.ask("scancel", taker)
        return False

    def time_limit(self, fault):
        """What Slurm sends before the limit."""
        return self.comes_back_after("scancel", "--signal=USR2", self.id)

    def requeue(self, fault):
        return self.comes_back_after("scontrol", "requeue", self.id)

    def comes_back_after(self, *command):
        """False where it ends just now, or a restarted controller has put it back into the queue already."""
        while not self.cluster.accepts(*command):
            if self.field("JobState") != "RUNNING":
                return False
            time.sleep(1)
        return self.comes_back()

    def cut_checkpoint(self, fault):
        if not self.requeue(fault):
            return False
        # As long as a node of it is dead it is COMPLETING.
        eventually(lambda: self.field("JobState") == "PENDING", 90, 0.1)
        newest = self.checkpoints()[-1]
        was = newest.stat()
        os.truncate(newest, was.st_size // 2)
        os.utime(newest, ns=(was.st_atime_ns, was.st_mtime_ns))
        return True

    def kill_node(self, fault):
        host = self.rank(fault.rank % self.world_size)["host"]
        with self.cluster.nodes:
            try:
                self.cluster.testbed.run(REPOSITORY / "testbed" / "kill-node", host)
                return self.comes_back()
            finally:
                self.cluster.heal(host)

    def controller(self, fault):
        self.cluster.restart_controller()
        return True

    def kill_rank(self, fault):
        """Slurm must not try it again; its owner goes on from what it left."""
        try:
            os.kill(self.rank(fault.rank % self.world_size)["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return False
        # A step's end that the controller was not there to hear is told again after a while.
        eventually(lambda: self.look() or self.is_over(), 180, 0.3)
        if self.field("JobState") == "COMPLETED":
            return False
        (verdict,) = json.loads(self.cluster.hpcdist("why", self.names[-1], "--json").out)
        assert verdict["state"] == "FAILED", verdict
        assert verdict["cause"]["kind"] in {"killed", "lost-peer"}, verdict
        self.go_on()
        return True

    @property
    def world_size(self):
        options = dict(zip(self.options[::2], self.options[1::2], strict=True))
        return options["--nodes"] * options["--gpus"]

    def weights(self):
        """Of its last checkpoint; a run that went on where nothing was left to train has none of its own."""
        folders = [self.cluster.project / "jobs" / "runs" / name for name in self.names]
        saved = [path for folder in folders for path in sorted(folder.glob("checkpoints/step-*.ckpt"))]
        content = torch.load(saved[-1], weights_only=True)
        return content["global_step"], content["state_dict"]

    def curve(self):
        """Its training loss as TensorBoard shows it, step by step, over all its runs."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        points = []
        for name in self.names:
            # None of a run that Slurm failed to start, or that went on where nothing was left to train.
            for folder in self.cluster.project.glob(f"tb_logs/*/*-{name}"):
                events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
                found = events.Scalars("train/loss") if "train/loss" in events.Tags()["scalars"] else []
                points = [point for point in points if point[0] < found[0].step] if found else points
                points += [(event.step, event.value) for event in found]
        return points

    def productive_s(self):
        """The time of its steps: their number by the median of one; of a run that nobody touched."""
        training = self.rank(0)["training"]
        return training["steps"] * training["step_time_s"]
