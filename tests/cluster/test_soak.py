"""Runs that live through random faults: none lost, none doubled, the bits of the run that nobody touched.

`make soak` has 50 faults of all kinds; here are four, without the death of a node, which takes half a minute and has
a test of its own. `SOAK_SEED=N` repeats a draw; which run a fault meets is up to the cluster.
"""

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from tests.cluster.faults import HEADER, KINDS, Cluster, draw_faults, predict_ettr
from tests.cluster.soak import INTERVAL_S, Soaked
from tests.cluster.waiting import eventually

LONG = "SOAK" in os.environ
# Each slot has nodes of its own, so that what breaks a node, or takes it, meets one run.
SLOTS = (
    ("--nodes", 2, "--gpus", 1, "--nodelist", "n1,n2"),
    ("--nodes", 1, "--gpus", 2, "--nodelist", "n3"),
    ("--nodes", 1, "--gpus", 1, "--nodelist", "n4"),
)
# In `make test` others train beside it, on two cores: the ranks agree late.
NOTICE_S = 0.0 if LONG else 1.0
REQUEUE_S = 7.0  # what the testbed lets a requeued job wait

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1500 if LONG else 290)]


@pytest.fixture
def cluster(testbed, project, mnist_dir):
    (project / "hpcdist.toml").write_text("")
    return Cluster(testbed, project, mnist_dir)


class Soak:
    """The runs of all slots, and the faults that are left for them."""

    def __init__(self, cluster, faults):
        self.cluster, self.left = cluster, list(faults)
        self.lock = threading.Lock()
        self.runs = []

    def work(self, options):
        """Runs one after the other in a slot, until no fault is left; one that came too late meets the next run."""
        run = None
        while fault := self._next():
            while run is None or not run.strike(fault):
                if run is not None:
                    run.finish()
                run = self._start(options)
            print(run.struck[-1].row(), flush=True)
        if run is not None:
            run.finish()

    def _next(self):
        with self.lock:
            return self.left.pop(0) if self.left else None

    def _start(self, options):
        run = Soaked(self.cluster, options)
        with self.lock:
            self.runs.append(run)
        return run


def test_random_faults(cluster, testbed):
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(10**6) if LONG else 4))
    slots = SLOTS if LONG else SLOTS[::2]
    kinds = KINDS if LONG else [kind for kind in KINDS if kind != "kill-node"]
    print(f"\nseed {seed}\n{HEADER}")
    began_s = time.time()
    with ThreadPoolExecutor(len(slots)) as pool:
        untouched = dict(zip(slots, pool.map(lambda options: Soaked(cluster, options), slots), strict=True))
        list(pool.map(Soaked.finish, untouched.values()))
        soak = Soak(cluster, draw_faults(seed, 50 if LONG else 4, kinds))
        list(pool.map(soak.work, slots))
    for run in soak.runs:
        assert_unharmed(run, untouched[run.options])
    struck = [one for run in soak.runs for one in run.struck]
    assert len(struck) == (50 if LONG else 4)
    assert [one.row() for one in struck if one.lost_s > INTERVAL_S + NOTICE_S] == []
    assert_nothing_is_left(testbed, [name for run in soak.runs for name in run.names])
    released = sum(run.released for run in soak.runs)
    bare = sum(run.bare.total() for run in soak.runs)
    told = f"{released} held by Slurm and released by hpcdist wait, {bare} started without GPUs and requeued"
    print(f"{len(struck)} faults, {len(soak.runs)} runs, {told}, {time.time() - began_s:.0f} s")
    print(f"at most {max(one.lost_s for one in struck):.2f} s lost, with checkpoints every {INTERVAL_S:g} s")
    print(format_ettr(soak.runs, untouched))


def assert_unharmed(run, untouched):
    """It ended as the run that nobody touched: one job for each of its names, one curve, the same bits."""
    assert run.field("JobState") == "COMPLETED", run.names
    assert int(run.field("Restarts")) == run.restarts, run.names
    (steps, expected), (step, weights) = untouched.weights(), run.weights()
    assert step == steps
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items()), run.names
    assert run.curve() == untouched.curve(), run.names
    jobs = [line.split("|") for line in find_jobs(run)]
    for name in run.names:
        assert len({job for job, _, comment in jobs if comment == f"hpcdist:{name}"}) == 1, jobs
    states = [state for _, state, comment in jobs if comment == f"hpcdist:{run.names[-1]}"]
    assert states.count("COMPLETED") == 1, states


def find_jobs(run):
    """Id, state and comment of every attempt of every job, once accounting knows that the last one is over."""
    rows = ("sacct", "--duplicates", "-X", "-n", "-P", "-S", "now-1hour", "--format=JobIDRaw,State,Comment")
    last = f"|COMPLETED|hpcdist:{run.names[-1]}"
    listed = eventually(lambda: last in (found := run.cluster.ask(*rows)) and found, 20, 1)
    return listed.splitlines()


def assert_nothing_is_left(testbed, names):
    """No process of the runs, and every node takes jobs."""

    def strays():
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HPCDIST_RUN") in names:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    eventually(lambda: not strays(), 30)
    nodes = [line.split() for line in testbed.run("sinfo", "-h", "-N", "-o", "%n %t").splitlines()]
    assert [node for node in nodes if node[1] not in ("idle", "mix", "alloc", "comp")] == []


def format_ettr(runs, untouched):
    """Measured: training, each step counted once, over submission to end; beside it what the formula expects."""
    alone = [untouched[run.options] for run in runs]
    training_s = sum(one.productive_s() for one in alone)
    wall_s = sum(run.ended_at_s - run.began_at_s for run in runs)
    once_s = sum(one.ended_at_s - one.began_at_s - one.productive_s() for one in alone)
    failures = sum(one.fault.kind != "controller" for run in runs for one in run.struck)
    each_s = once_s / len(runs) + REQUEUE_S + INTERVAL_S / 2
    expected = predict_ettr(training_s, once_s, failures, each_s)
    return f"ETTR {training_s / wall_s:.2f} measured, {expected:.2f} by the formula (arXiv 2410.21680)"


def test_the_draw_is_repeatable_and_has_every_kind():
    drawn = draw_faults(3, 50)
    assert drawn == draw_faults(3, 50)
    assert drawn != draw_faults(4, 50)
    assert {fault.kind for fault in drawn[:7]} == set(KINDS)
    assert all(0 <= fault.delay_s <= 5 and fault.rank in (0, 1) for fault in drawn)


def test_the_formula():
    # 60 s of training; 10 s around it, and twice 5 s of start-up with 4 s in the queue and 1 s of work done again.
    assert predict_ettr(60, 10, 2, 10) == pytest.approx(60 / 90)
    assert predict_ettr(60, 0, 0, 10) == 1
