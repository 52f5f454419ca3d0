"""The parts of the training that can be tried without training."""

import os
import platform
import subprocess
import sys
import time

import pytest
import torch

from hpcdist.config.job import Layout
from hpcdist.config.training import DEFAULT_BATCH_SIZE
from hpcdist.errors import UsageError
from hpcdist.launcher.process import TRAINING_MEMORY
from hpcdist.train.distributed import StartedRanks, choose_threads, use_threads
from hpcdist.train.environment import check_layout, read_environment
from hpcdist.train.networks import SmallCnn, build_optimizer, build_schedule
from hpcdist.train.options import parse_options
from hpcdist.train.outcome import Clock, StepTimes

RANK_3 = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "1",
    "MASTER_ADDR": "n1", "MASTER_PORT": "12345",
}  # fmt: skip


class TestEnvironment:
    def test_torchs_variables_say_who_this_is(self):
        rank = read_environment(RANK_3, now_s=5.0)
        assert (rank.rank, rank.world_size, rank.local_rank, rank.local_world_size, rank.node_rank) == (3, 4, 1, 2, 1)
        assert (rank.main_address, rank.main_port, rank.started_at_s) == ("n1", 12345, 5.0)

    def test_without_them_it_is_alone_and_writes_nothing(self):
        rank = read_environment({}, now_s=5.0)
        assert (rank.rank, rank.world_size) == (0, 1)
        assert (rank.metrics, rank.run_dir, rank.tensorboard) == (None, None, None)

    def test_torchruns_group_rank_is_the_node(self):
        env = {name: value for name, value in RANK_3.items() if name != "NODE_RANK"} | {"GROUP_RANK": "1"}
        assert read_environment(env, now_s=0.0).node_rank == 1

    @pytest.mark.parametrize("value", ["", "-1", "two"])
    def test_nonsense_is_refused(self, value):
        with pytest.raises(UsageError, match="WORLD_SIZE"):
            read_environment(RANK_3 | {"WORLD_SIZE": value}, now_s=0.0)

    def test_layout_that_was_started_passes(self):
        slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2"}
        check_layout(Layout(nodes=2, gpus=2), read_environment(RANK_3, now_s=0.0), RANK_3 | slurm)

    @pytest.mark.parametrize("layout", [Layout(nodes=4, gpus=1), Layout(nodes=1, gpus=4), Layout(nodes=2, gpus=1)])
    def test_layout_that_was_not_started_is_refused(self, layout):
        with pytest.raises(UsageError, match=r"ask for \d"):
            check_layout(layout, read_environment(RANK_3, now_s=0.0), RANK_3)

    def test_lightning_is_told_the_same(self):
        ranks = StartedRanks(read_environment(RANK_3, now_s=0.0))
        assert (ranks.global_rank(), ranks.world_size(), ranks.local_rank(), ranks.node_rank()) == (3, 4, 1, 1)
        assert (ranks.main_address, ranks.main_port) == ("n1", 12345)
        assert ranks.creates_processes_externally


class TestOptions:
    def test_every_option_of_layout_and_training_is_there(self):
        from hpcdist.config.training import Training

        words = (
            "--nodes 2 --gpus 0 --tasks-per-node 3 --cpus-per-task 4 --epochs 5 --batch-size-per-rank 10 --lr 0.5"
            " --optimizer sgd --precision bf16-mixed --seed 6 --max-steps 7 --accelerator cpu --checkpoint-every 5min"
            " --no-preflight --log-every 8 --data-dir d"
        )
        options = parse_options(words.split())
        assert options.layout == Layout(nodes=2, gpus=0, tasks_per_node=3, cpus_per_task=4)
        assert options.training == Training(
            epochs=5, batch_size_per_rank=10, lr=0.5, optimizer="sgd", precision="bf16-mixed", seed=6, max_steps=7,
            accelerator="cpu", checkpoint_every="5min", preflight=False, log_every=8, data_dir="d",
        )  # fmt: skip
        assert options.batch_size == 60
        assert options.checkpoint_interval_s == 300

    def test_batch_is_global_and_has_a_default(self):
        assert parse_options(["--nodes", "4"]).batch_size == DEFAULT_BATCH_SIZE
        assert parse_options(["--nodes", "4", "--batch-size", "100"]).batch_size == 100

    def test_batch_that_leaves_ranks_without_samples_is_refused(self):
        with pytest.raises(UsageError, match="4 ranks"):
            parse_options(["--nodes", "4", "--batch-size", "3"])


# Takes and frees a piece again and again; the pages that came anew at the last time.
COUNT_PAGES = """
import resource, sys
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [b"x" * int(sys.argv[1]) for _ in range(3)]
    del pieces
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_training_s_settings_keep_freed_memory():
    def count(settings, size_bytes):
        command = [sys.executable, "-c", COUNT_PAGES, str(size_bytes)]
        return int(subprocess.run(command, env=os.environ | settings, capture_output=True, check=True).stdout)

    # By itself glibc gives every piece back that is larger than 32 MiB, and smaller ones as it happens.
    assert count({}, 40_000_000) > 20_000
    assert count(TRAINING_MEMORY, 28_000_000) < 100


class TestThreads:
    def test_as_many_as_asked_where_the_machine_has_them(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
        assert choose_threads(cpus_per_task=4, ranks_here=4) == 4

    def test_never_more_than_the_machine_has_for_a_rank(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        assert choose_threads(cpus_per_task=2, ranks_here=2) == 1
        assert choose_threads(cpus_per_task=2, ranks_here=4) == 1

    def test_a_rank_bound_to_its_cpus_uses_them_all(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 7})
        assert choose_threads(cpus_per_task=4, ranks_here=16) == 4

    def test_lightning_does_not_change_them(self, monkeypatch):
        from lightning_fabric.utilities.distributed import _set_num_threads_if_needed

        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        before = torch.get_num_threads()
        use_threads(1)
        _set_num_threads_if_needed(num_processes=1)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(before)


class TestClock:
    def test_phases_have_no_gaps_and_go_on_where_they_stopped(self):
        started = time.time() - 1
        clock = Clock(started)
        for phase in ("data", "steady", "validation", "steady"):
            assert clock.enter(phase) != phase
            time.sleep(0.02)
        seconds = clock.seconds()
        assert list(seconds) == ["imports", "data", "steady", "validation"]
        assert seconds["imports"] >= 1
        assert seconds["steady"] >= 0.04
        assert sum(seconds.values()) == pytest.approx(time.time() - started, abs=0.05)

    def test_steps_leave_out_the_first_and_what_comes_between(self):
        steps = StepTimes()
        steps.tick(settled=True)
        assert steps.median_s() is None
        for _ in range(3):
            time.sleep(0.01)
            steps.tick(settled=True)
        steps.pause()
        time.sleep(0.2)
        steps.tick(settled=True)
        assert 0.009 < steps.median_s() < 0.1

    def test_queued_steps_are_timed_together(self):
        steps = StepTimes()
        steps.tick(settled=True)
        steps.tick(settled=False)
        time.sleep(0.04)
        steps.tick(settled=True)
        assert steps.median_s() == pytest.approx(0.02, rel=0.5)


class TestNetwork:
    def test_it_scores_ten_classes_and_takes_an_empty_batch(self):
        network = SmallCnn()
        assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
        assert network(torch.zeros(0, 1, 28, 28)).shape == (0, 10)
        assert sum(parameter.numel() for parameter in network.parameters()) == 56_970

    @pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adadelta"])
    def test_every_optimizer_follows_the_schedule(self, name):
        network = SmallCnn()
        optimizer = build_optimizer(name, network, lr=0.1)
        schedule = build_schedule(optimizer, lr=0.1, steps=10)
        rates = []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            network(torch.zeros(2, 1, 28, 28)).sum().backward()
            optimizer.step()
            if len(rates) < 10:
                schedule.step()
        assert max(rates) == pytest.approx(0.1)
        assert rates[0] < 0.01
        assert rates[-1] < 0.001


def test_lightning_still_has_what_is_taken_from_it():
    import inspect

    from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
    from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
    from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

    assert list(inspect.signature(_SignalConnector.register_signal_handlers).parameters) == ["self"]
    assert list(inspect.signature(_TrainingEpochLoop._broadcast_sigterm_tensor).parameters) == ["self"]
    assert "weights_only" in inspect.signature(_CheckpointConnector.dump_checkpoint).parameters
