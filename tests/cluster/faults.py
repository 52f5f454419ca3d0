"""Faults drawn at random, the cluster they are done to, and what they are expected to cost."""

import random
import subprocess
import threading
import time
from typing import NamedTuple

from tests.cluster.waiting import eventually
from tests.conftest import REPOSITORY

KINDS = ("preempt", "time-limit", "kill-rank", "kill-node", "controller", "cut-checkpoint", "requeue")
LONGEST_DELAY_S = 5.0


class Fault(NamedTuple):
    """What happens to a run: the kind, seconds after it was seen training, and under which of its ranks."""

    number: int
    kind: str
    delay_s: float
    rank: int


def draw_faults(seed, count, kinds=KINDS):
    """So many faults; each kind comes once before any comes again."""
    chance = random.Random(seed)
    deck = []
    while len(deck) < count:
        deck += chance.sample(kinds, len(kinds))
    return [
        Fault(number, kind, round(chance.uniform(0, LONGEST_DELAY_S), 1), chance.randrange(2))
        for number, kind in enumerate(deck[:count], 1)
    ]


HEADER = f"  #  {'fault':14}  moment  rank    {'run':28}  after    lost      back"


class Struck(NamedTuple):
    """What a fault did: when, to which run, what was lost and how long it took until the run trained again."""

    fault: Fault
    run: str
    step: int | None
    lost_s: float
    back_s: float

    def row(self):
        kind = f"{self.fault.number:3}  {self.fault.kind:14}  +{self.fault.delay_s:.1f} s  rank {self.fault.rank}"
        return f"{kind}  {self.run:28}  {self.step or '-':>5}  {self.lost_s:6.2f} s  {self.back_s:6.1f} s"


class Cluster:
    """The testbed, shared by threads that break different things of it."""

    def __init__(self, testbed, project, mnist_dir):
        self.testbed, self.project, self.mnist_dir = testbed, project, mnist_dir
        self.nodes = threading.Lock()  # `testbed/up` would heal a dead node too early
        self.controller = threading.Lock()

    def hpcdist(self, *arguments):
        with self.controller:
            return self.testbed.hpcdist(*arguments, cwd=self.project, timeout=240)

    def ask(self, *command):
        """What one of Slurm's commands prints; the controller may be away for a moment."""
        done = eventually(lambda: (found := self._run(command)).returncode == 0 and found, 60, 1)
        return done.stdout

    def accepts(self, *command):
        """Whether Slurm does it."""
        return self._run(command).returncode == 0

    def _run(self, command):
        done = subprocess.run([str(word) for word in command], env=self.testbed.env, capture_output=True, text=True)
        if done.returncode:
            print(" ".join(map(str, command)), done.stderr.strip())
        return done

    def heal(self, node):
        self.testbed.run(REPOSITORY / "testbed" / "heal-node", node)

    def restart_controller(self):
        with self.nodes, self.controller:
            self.testbed.stop_controller()
            time.sleep(1)
            self.testbed.run(REPOSITORY / "testbed" / "up")


def predict_ettr(productive_s, once_s, failures, each_s):
    """The effective training time ratio to expect, R / (R + u0 + N (u0 + q + dt / 2)) (arXiv 2410.21680, section III).

    Args:
        productive_s: R, seconds of training.
        once_s: u0 with the first wait, seconds of a run that was never interrupted which are not training.
        failures: N, how often it was interrupted.
        each_s: u0 + q + dt / 2, seconds that each costs: start-up, the queue, half a checkpoint interval.
    """
    return productive_s / (productive_s + once_s + failures * each_s)
