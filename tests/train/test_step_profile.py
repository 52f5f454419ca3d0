"""Where a step goes, as each rank measures it: against torch's profiler, the whole step, and what was slowed down."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.call import _call_callback_hooks

from hpcdist.errors import UsageError
from hpcdist.records import network, ranks
from hpcdist.records.ranks import RankUsage, TrainingMetrics, find_straggler, waiting_s
from hpcdist.train.checkpoint import Checkpoints
from hpcdist.train.environment import RankEnvironment, Slowdown, read_slowdown
from hpcdist.train.module import Classifier
from hpcdist.train.networks import SmallCnn
from hpcdist.train.options import parse_options
from hpcdist.train.outcome import Clock, Outcome
from hpcdist.train.preflight import network_probe
from hpcdist.train.step_profile import StepProfiler
from hpcdist.train.step_timer import ENOUGH_STEPS, SAMPLED_EVERY, CudaTimer
from hpcdist.train.strategies import LoneRank

PROFILED_RANK = [sys.executable, str(Path(__file__).with_name("profiled_rank.py"))]
PARTS = ("data_s", "compute_s", "communication_s", "other_s")
# Lightning's hooks of a step, in order, by how many arguments it gives the callbacks.
HOOKS = {
    "on_train_batch_start": 2,
    "on_before_zero_grad": 1,
    "on_before_backward": 1,
    "on_after_backward": 0,
    "on_before_optimizer_step": 1,
    "on_train_batch_end": 3,
}
CPU = torch.device("cpu")
OPTIMIZER = "aten::_foreach_add_"  # counts its steps first; Lightning's Optimizer.step holds both passes, too
ALL_REDUCE = "c10d::allreduce_"
GRADIENT = "torch::autograd::AccumulateGrad"  # a parameter's is there at its end


def assert_parts_are_the_step(split):
    assert sum(split[part] for part in PARTS) == pytest.approx(split["step_s"], rel=0.05)
    assert all(split[part] >= 0 for part in PARTS)


def _end(event):
    return event["ts"] + event["dur"]


class ProfiledSteps:
    """What torch's profiler has of each step.

    When its forward pass began, when its last gradient was there (the one that the last all-reduce waited for), and
    when the last thing of the backward pass was done.
    """

    def __init__(self, trace: Path) -> None:
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("ph") == "X"]
        events.sort(key=lambda event: event["ts"])
        forward = [event for event in events if event["name"] == "DistributedDataParallel.forward"]
        thread, ends = forward[0]["tid"], [*(event["ts"] for event in forward[1:]), float("inf")]
        self.compute_s, self.communication_s = [], []
        for begun, end in zip((event["ts"] for event in forward), ends, strict=True):
            step = [event for event in events if event["tid"] == thread and begun <= event["ts"] < end]
            optimizer = [event["ts"] for event in step if event["name"] == OPTIMIZER]
            if not optimizer:
                continue  # a test, or the backward pass before the first step, which settles DDP's buckets
            before = [event for event in step if event["ts"] < optimizer[0]]
            reduced = [event["ts"] for event in before if event["name"] == ALL_REDUCE][-1]
            ready = max(_end(event) for event in before if event["name"] == GRADIENT and event["ts"] < reduced)
            back = max(_end(event) for event in before)
            self.compute_s.append((ready - begun) / 1e6)
            self.communication_s.append((back - ready) / 1e6)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, mnist_dir):
    """Two ranks, of which rank 1 takes 50 ms more for each step, under torch's profiler."""
    from tests.train.conftest import Ranks

    options = ["--data-dir", str(mnist_dir), "--max-steps", "40", "--log-every", "1000", "--batch-size", "256"]
    ranks = Ranks(
        tmp_path_factory.mktemp("uneven"), 2, options, PROFILED_RANK, anew=False, HPCDIST_DRILL_SLOW_RANK="1:0.05"
    )
    assert ranks.wait() == [0, 0], ranks.errors(0) + ranks.errors(1)
    yield ranks
    ranks.end()


class TestAgainstTheProfiler:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_compute_and_exposed_communication_are_as_it_has_them(self, uneven, rank):
        split = uneven.metrics(rank)["split"]
        profiled = ProfiledSteps(uneven.folder / f"{rank}.trace")
        assert (len(profiled.compute_s), split["steps"]) == (40, 39)  # the first one is not counted
        compute_s = sum(profiled.compute_s[1:]) / 39
        communication_s = sum(profiled.communication_s[1:]) / 39
        assert split["compute_s"] == pytest.approx(compute_s, rel=0.1)
        # The rank that comes last has an all-reduce of a millisecond or two: no closer than Lightning's own calls are.
        assert split["communication_s"] == pytest.approx(communication_s, rel=0.1, abs=1.5e-4)

    def test_the_rank_that_is_slowed_down_is_named_and_the_other_waits_for_it(self, uneven):
        metrics = [msgspec.convert(uneven.metrics(rank), TrainingMetrics) for rank in (0, 1)]
        ranks = [
            RankUsage(rank=at, local_rank=0, node_rank=at, world_size=2, host=f"n{at}", started_at_s=0.0, training=one)
            for at, one in enumerate(metrics)
        ]
        straggler = find_straggler(ranks)
        assert (straggler.rank, straggler.host) == (1, "n1")
        assert straggler.slowdown > 1.3
        first, second = (one.split for one in metrics)
        assert first.communication_s > second.communication_s + 0.025
        assert waiting_s(ranks) > 0.012
        assert "drill: each step of rank 1 takes 50 ms more (HPCDIST_DRILL_SLOW_RANK)" in uneven.output(0)

    def test_every_step_of_both_ranks_has_its_parts(self, uneven):
        for rank in (0, 1):
            assert_parts_are_the_step(uneven.metrics(rank)["split"])
        # They train in step.
        steps_s = [uneven.metrics(rank)["split"]["step_s"] for rank in (0, 1)]
        assert steps_s[0] == pytest.approx(steps_s[1], rel=0.05)


class TestFinished:
    def test_the_steps_fill_the_training_s_time(self, finished):
        for rank in (0, 1):
            metrics = finished.metrics(rank)
            assert_parts_are_the_step(metrics["split"])
            # All of 354 but the first of each epoch, and those with a checkpoint in them, once a second.
            assert 354 - 3 - 60 <= metrics["split"]["steps"] <= 354 - 3
            assert metrics["split"]["step_s"] * 353 == pytest.approx(metrics["phases_s"]["steady"], rel=0.1)

    def test_a_rank_brings_four_bytes_for_each_parameter(self, finished):
        assert [finished.metrics(rank)["bytes_per_step"] for rank in (0, 1)] == [4 * 56_970] * 2

    def test_every_test_is_kept_with_its_step_and_time(self, finished):
        tests = finished.metrics(0)["tests"]
        assert [test["step"] for test in tests] == [118, 236, 354]
        assert tests[-1]["accuracy"] == finished.metrics(0)["accuracy"]
        assert all(before["at_s"] < after["at_s"] for before, after in pairwise(tests))
        assert time.time() - 3600 < tests[0]["at_s"] < tests[-1]["at_s"] <= time.time()
        assert [test["accuracy"] for test in tests] == [test["accuracy"] for test in finished.metrics(1)["tests"]]

    def test_a_checkpoint_has_the_tests_before_it(self, finished):
        content = torch.load(max((finished.folder / "checkpoints").glob("*.ckpt")), weights_only=True)
        assert content["hpcdist"]["tests"] == finished.metrics(0)["tests"]
        assert restore_tests(content["hpcdist"]) == finished.metrics(0)["tests"]

    def test_a_checkpoint_without_tests_can_be_gone_on_from(self, finished):
        content = torch.load(max((finished.folder / "checkpoints").glob("*.ckpt")), weights_only=True)["hpcdist"]
        del content["tests"]
        assert restore_tests(content) == []


def restore_tests(content):
    """The tests a training knows after it took up a checkpoint."""
    options = parse_options(["--gpus", "0"])
    outcome = Outcome(None, Clock(time.time()))
    checkpoints = Checkpoints(None, RankEnvironment(rank=1, world_size=4, started_at_s=0.0), options, outcome)
    module = Classifier(SmallCnn(), options.training, steps=1, world_size=4)
    checkpoints.restore({"hpcdist": content}, module)
    assert all(isinstance(test, ranks.TestResult) for test in outcome.metrics().tests)
    return [msgspec.to_builtins(test) for test in outcome.metrics().tests]


class TestAlone:
    def test_a_slow_loader_is_data_and_said_and_one_rank_has_no_communication(self, start_ranks, mnist_dir):
        options = ("--batch-size", 32, "--max-steps", 25, "--data-dir", mnist_dir)
        ranks = start_ranks(1, *options, HPCDIST_DRILL_SLOW_DATA_S="0.1")
        assert ranks.wait() == [0], ranks.errors(0)
        metrics = ranks.metrics(0)
        split = metrics["split"]
        assert_parts_are_the_step(split)
        # The parts add up to the step, so what is data is nowhere else, however slow the machine.
        assert split["data_s"] >= 0.1
        assert split["communication_s"] == 0
        assert split["compute_s"] > 0
        assert metrics["bytes_per_step"] == 0
        output = ranks.output(0)
        assert "drill: each batch comes 100 ms late (HPCDIST_DRILL_SLOW_DATA_S)" in output
        # Over a fifth of each step; a training that is fed says nothing of it (test_train_run.py: its last line).
        share = split["data_s"] / split["step_s"]
        assert share > 0.2
        assert (
            f"\nthe data starve the training: {100 * share:.0f} % of a step waits for them; give ranks more" in output
        )


class TestSlowdown:
    def test_nothing_is_slowed_down_by_default(self):
        assert read_slowdown({}) == Slowdown()
        assert read_slowdown({"HPCDIST_DRILL_SLOW_DATA_S": "", "HPCDIST_DRILL_SLOW_RANK": ""}) == Slowdown()
        assert Slowdown().sentences() == []

    def test_a_rank_and_its_seconds(self):
        slowdown = read_slowdown({"HPCDIST_DRILL_SLOW_DATA_S": "0.01", "HPCDIST_DRILL_SLOW_RANK": "2:0.5"})
        assert slowdown == Slowdown(data_s=0.01, rank=2, compute_s=0.5)
        assert [slowdown.compute_s_of(rank) for rank in (0, 2)] == [0.0, 0.5]

    @pytest.mark.parametrize("text", ["1", "1:", "one:1", "1:-1", ":1"])
    def test_what_is_no_rank_with_seconds_is_refused(self, text):
        with pytest.raises(UsageError, match="HPCDIST_DRILL_SLOW_RANK"):
            read_slowdown({"HPCDIST_DRILL_SLOW_RANK": text})

    @pytest.mark.parametrize("text", ["slow", "-0.1", "nan", "60"])
    def test_what_are_no_seconds_is_refused(self, text):
        with pytest.raises(UsageError, match="HPCDIST_DRILL_SLOW_DATA_S"):
            read_slowdown({"HPCDIST_DRILL_SLOW_DATA_S": text})


class Step:
    """Forward and backward pass of a small layer, with or without what a `StepProfiler` does in a step."""

    def __init__(self, *, is_measured: bool) -> None:
        self.network = torch.nn.Linear(4, 4)
        clock = Clock(time.time())
        profiler = StepProfiler(Outcome(None, clock), CPU, rank=0, world_size=2, slowdown=Slowdown())
        callbacks = [pl.Callback(), *([profiler] if is_measured else [])]
        self.trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, strategy=LoneRank(CPU),
        )  # fmt: skip
        self.batches = iter(lambda: torch.ones(2, 4), None)
        if is_measured:
            self.batches = profiler.watch(self.batches)
            profiler.on_train_start(self.trainer, SimpleNamespace(network=self.network))
        self.run()

    def run(self) -> float:
        begun = time.perf_counter()
        self.network(next(self.batches)).sum().backward()
        for hook, count in HOOKS.items():
            _call_callback_hooks(self.trainer, hook, *[None] * count)
        return time.perf_counter() - begun


def test_measuring_takes_less_than_a_hundredth_of_a_step_of_4_ms():
    plain, measured = Step(is_measured=False), Step(is_measured=True)
    # By turns, and the fastest of each: whatever else the machine does is left out.
    times_s = [(plain.run(), measured.run()) for _ in range(3000)]
    assert min(time[1] for time in times_s) - min(time[0] for time in times_s) < 40e-6


class FakeEvent:
    """A GPU that is done after `lag` further events, and takes as long as the test says."""

    now_ms, lag, recorded = 0.0, 0, 0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.recorded += 1
        self.number, self.at_ms = FakeEvent.recorded, FakeEvent.now_ms

    def query(self):
        return FakeEvent.recorded >= self.number + FakeEvent.lag

    def elapsed_time(self, other):
        return other.at_ms - self.at_ms


class TestOnGpu:
    """With events that are not a GPU's: what is booked where."""

    @pytest.fixture
    def timer(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        for name in ("now_ms", "lag", "recorded"):
            monkeypatch.setattr(FakeEvent, name, 0)
        return CudaTimer()

    def run_step(self, timer, *, steady=True):
        for part, ms in (("other", 1), ("data", 2), ("other", 3), ("compute", 10), ("communication", 5)):
            FakeEvent.now_ms += ms
            timer.end_part(part)
        FakeEvent.now_ms += 4
        timer.end_step(steady=steady)

    def test_every_tenth_step_is_measured(self, timer):
        for _ in range(SAMPLED_EVERY * ENOUGH_STEPS):
            self.run_step(timer)
        assert timer.split() is None
        self.run_step(timer)
        split = timer.split()
        assert split.steps == ENOUGH_STEPS
        assert [getattr(split, part) for part in PARTS] == pytest.approx([0.002, 0.010, 0.005, 0.008])
        assert split.step_s == pytest.approx(0.025)
        assert FakeEvent.recorded == 7 * ENOUGH_STEPS

    def test_steps_the_gpu_is_not_done_with_are_left_for_later(self, timer):
        FakeEvent.lag = 1
        for _ in range(SAMPLED_EVERY * ENOUGH_STEPS + 1):
            self.run_step(timer)
        assert timer.split() is None
        FakeEvent.recorded += 1
        assert timer.split().steps == ENOUGH_STEPS

    def test_steps_that_are_not_steady_are_not_counted(self, timer):
        for _ in range(SAMPLED_EVERY * ENOUGH_STEPS + 1):
            self.run_step(timer, steady=False)
        assert timer.split() is None


class TestProbe:
    @pytest.fixture
    def sizes(self, monkeypatch):
        """The sizes that are measured when all-reduces take what a network of this bandwidth makes of them."""

        def measure(bandwidth):
            asked = []

            def measured(size, device):
                return network.AllReduce(size_bytes=size, latency_s=1e-3 + size / bandwidth, bandwidth_bytes_per_s=1)

            monkeypatch.setattr(network_probe, "_measure", measured)
            monkeypatch.setattr(network_probe, "find_longest", lambda seconds, device: seconds)
            network_probe.measure_all_reduces(CPU, asked.append)
            return asked

        return measure

    def test_on_a_quick_network_4_mb_are_measured(self, sizes):
        assert sizes(100e6) == [4, 228_000, 4_000_000]

    def test_on_20_mbit_they_are_left_out(self, sizes):
        # 228 kB take 91 ms, 4 MB would take 1.6 s.
        assert sizes(2.5e6) == [4, 228_000]
