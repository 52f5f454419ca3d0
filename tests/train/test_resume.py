"""A training that was interrupted ends with the bits of one that was not."""

import errno
import itertools
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from hpcdist.records.ranks import HANG_STATUS, LOST_PEER_STATUS, STOPPED_STATUS
from hpcdist.train.checkpoint import Checkpoints, find_checkpoint, read_step, write_checkpoint
from hpcdist.train.data.batches import Split, TrainBatches
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.options import parse_options
from hpcdist.train.outcome import Clock, Outcome
from tests.train.test_run import BROKEN_RANK, read_events

STEPS = 30
SHORT = ("--max-steps", STEPS, "--batch-size", 2048, "--log-every", 1)


def checkpoints(ranks):
    return sorted((ranks.folder / "checkpoints").glob("*.ckpt"))


def final_weights(ranks):
    content = torch.load(checkpoints(ranks)[-1], weights_only=True)
    assert content["global_step"] == STEPS
    return content["state_dict"]


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def start_and_stop(start_ranks, stop_file, world_size, *arguments):
    """Ranks that are asked to stop as soon as they train."""
    stop_file.touch()
    ranks = start_ranks(world_size, *SHORT, *arguments, HPCDIST_STOP_FILE=stop_file)
    codes = ranks.wait()
    assert codes == [STOPPED_STATUS] * world_size, ranks.errors(0)
    return ranks


def test_stopped_and_resumed_it_ends_with_the_same_bits(start_ranks, mnist_dir, tmp_path):
    data = ("--data-dir", mnist_dir)
    world_size = 4
    whole = start_ranks(world_size, *SHORT, *data)
    assert whole.wait() == [0] * world_size
    expected = final_weights(whole)
    for path in checkpoints(whole):
        path.unlink()
    stop_file = tmp_path / "stop"
    stopped = start_and_stop(start_ranks, stop_file, world_size, *data)
    assert [read_step(path) for path in checkpoints(stopped)] == [1]
    # Then again, somewhere on the way: with 50 ms more for each step there is time to ask.
    stop_file.unlink()
    (stopped.folder / "progress.json").unlink()
    stopped = start_ranks(
        world_size, *SHORT, *data, HPCDIST_STOP_FILE=stop_file, HPCDIST_DRILL_SLOW_RANK=f"{world_size - 1}:0.05"
    )
    stopped.wait_for_progress()
    stop_file.touch()
    assert stopped.wait() == [STOPPED_STATUS] * world_size, stopped.errors(0)
    step = read_step(checkpoints(stopped)[-1])
    assert 1 < step < STEPS
    resumed = start_ranks(world_size, *SHORT, *data)
    assert resumed.wait() == [0] * world_size, resumed.errors(0)
    assert f"goes on after step {step} of {STEPS}" in resumed.output(0)
    assert_same(final_weights(resumed), expected)


def test_killed_over_and_over_it_ends_with_the_same_bits_and_one_curve(start_ranks, mnist_dir):
    options = (*SHORT, "--data-dir", mnist_dir, "--checkpoint-every", "0.3s", "--accelerator", "cpu")
    ranks = start_ranks(1, *options)
    assert ranks.wait() == [0]
    expected = final_weights(ranks)
    losses = [(event.step, event.value) for event in read_events(ranks.folder / "events").Scalars("train/loss")]
    for path in (*checkpoints(ranks), *(ranks.folder / "events").iterdir()):
        path.unlink()
    reached = []
    for attempt in range(3):
        ranks = start_ranks(1, *options)
        deadline = time.monotonic() + 60
        while len(checkpoints(ranks)) == 0 or [read_step(path) for path in checkpoints(ranks)][-1] <= max(
            reached, default=0
        ):
            assert time.monotonic() < deadline
            assert ranks.processes[0].poll() is None, ranks.errors(0)
            time.sleep(0.01)
        ranks.processes[0].send_signal(signal.SIGKILL)
        assert ranks.wait() == [-9]
        reached.append(read_step(checkpoints(ranks)[-1]))
        if attempt == 1:
            # The last one cut in half: the one before it is used.
            damaged = checkpoints(ranks)[-1]
            damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    ranks = start_ranks(1, *options)
    assert ranks.wait() == [0]
    assert_same(final_weights(ranks), expected)
    assert [(event.step, event.value) for event in read_events(ranks.folder / "events").Scalars("train/loss")] == losses


def test_another_layout_goes_on_with_the_same_samples(start_ranks, mnist_dir, tmp_path, tmp_path_factory):
    two = start_and_stop(start_ranks, tmp_path / "stop", 2, "--data-dir", mnist_dir)
    other = tmp_path_factory.mktemp("one")
    (two.folder / "checkpoints").rename(other / "checkpoints")
    one = start_ranks(1, *SHORT, "--data-dir", mnist_dir, "--resume-from", other / "checkpoints")
    assert one.wait() == [0]
    assert "note: the checkpoint was made by 2 rank(s), and these are 1" in one.output(0)
    # 29 full batches of 2048 and a last one of 60,000 - 29 x 2048 = 608: each sample once.
    assert one.metrics(0)["samples"] == 60_000
    assert one.metrics(0)["steps"] == STEPS


def test_a_checkpoint_of_another_training_is_refused(start_ranks, mnist_dir, tmp_path):
    start_and_stop(start_ranks, tmp_path / "stop", 1, "--data-dir", mnist_dir)
    other = start_ranks(1, *SHORT, "--data-dir", mnist_dir, "--seed", 2)
    assert other.wait() == [2]
    assert "error: the checkpoint was made with seed 1, and this training has 2" in other.errors(0)


def test_a_rank_without_a_step_for_too_long_is_ended_with_its_stack(start_ranks, mnist_dir):
    ranks = start_ranks(1, *SHORT[:2], "--batch-size", 60_000, "--data-dir", mnist_dir, "--hang-timeout", "0.05s")
    assert ranks.wait() == [HANG_STATUS]
    assert "error: hang: no step for 0 s on rank 0" in ranks.errors(0)
    assert "File " in ranks.errors(0)


@pytest.mark.parametrize(("how", "first"), [("asleep", 1), ("stopped", 0)])
def test_of_a_rank_that_hangs_and_one_that_waits_for_it_the_first_ends_first(start_ranks, mnist_dir, how, first):
    """Unless it can't: then the other one ends, and says that it waited."""
    options = ("--data-dir", mnist_dir, "--hang-timeout", "6s")
    ranks = start_ranks(2, *SHORT, *options, program=BROKEN_RANK, BROKEN=how)
    assert ranks.processes[first].wait(120) == HANG_STATUS
    assert ranks.processes[1 - first].poll() is None
    assert "s, and it waits for the others" in ranks.errors(0)
    assert f"on rank {first}; its stack is above" in ranks.errors(first)
    ranks.processes[1].send_signal(signal.SIGCONT)
    assert ranks.processes[1].wait(60) == (HANG_STATUS if first == 1 else LOST_PEER_STATUS)
    assert "waits for" not in ranks.errors(1)


def test_ranks_that_were_all_stopped_for_longer_than_that_go_on(start_ranks, mnist_dir):
    """As `scontrol suspend` and `resume` do."""
    # 5 s of small steps: time to stop them in, and little to do afterwards.
    options = ("--batch-size", 64, "--max-steps", 100, "--data-dir", mnist_dir, "--hang-timeout", "6s")
    ranks = start_ranks(2, *options, HPCDIST_DRILL_SLOW_RANK="1:0.05")
    ranks.wait_for_progress()
    for sent in (signal.SIGSTOP, signal.SIGCONT):
        assert [process.poll() for process in ranks.processes] == [None, None]
        for process in ranks.processes:
            process.send_signal(sent)
        if sent == signal.SIGSTOP:
            time.sleep(9)
    assert ranks.wait() == [0, 0], ranks.errors(0) + ranks.errors(1)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system with room for one checkpoint of the built-in network (0.7 MB) and not for two."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(start_ranks, mnist_dir, small_disk):
    ranks = start_ranks(1, *SHORT, "--data-dir", mnist_dir, "--checkpoint-every", "0.2s")
    assert ranks.wait() == [0], ranks.errors(0)
    warnings = ranks.errors(0).splitlines()
    assert warnings
    assert all(": No space left on device: " in line and "the training goes on" in line for line in warnings)
    (kept,) = checkpoints(ranks)
    assert find_checkpoint(small_disk) == kept


def test_a_full_disk_of_the_run_itself_costs_figures_and_not_the_training(start_ranks, mnist_dir, small_disk):
    with (small_disk / "filler").open("wb", buffering=0) as file:
        subprocess.run(["cat", "/dev/zero"], stdout=file, stderr=subprocess.DEVNULL)
    places = {"HPCDIST_RUN_DIR": small_disk, "HPCDIST_METRICS": small_disk / "0.json"}
    ranks = start_ranks(1, *SHORT, "--no-preflight", "--data-dir", mnist_dir, **places)
    assert ranks.wait() == [0], ranks.errors(0)
    assert ranks.errors(0).endswith("warning: can't write the metrics: No space left on device\n")
    assert "finished: test accuracy" in ranks.output(0)
    assert not (small_disk / "0.json").exists()


def test_the_newest_whole_checkpoint_is_found(tmp_path, capsys):
    assert find_checkpoint(tmp_path) is None
    paths = [write_checkpoint(tmp_path, step, b"x" * step) for step in (3, 20, 100)]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    paths[2].write_bytes(b"x" * 99 + b"y")
    assert find_checkpoint(tmp_path) == paths[1]
    assert "it is damaged" in capsys.readouterr().err
    assert find_checkpoint(tmp_path) == paths[1]
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_can_not_be_read_now_stays_as_it_is(tmp_path, capsys, monkeypatch):
    paths = [write_checkpoint(tmp_path, step, b"x" * step) for step in (3, 20)]
    read = Path.read_bytes

    def fail(path):
        if path == paths[1]:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        assert find_checkpoint(tmp_path) == paths[0]
    assert f"{paths[1]} can't be used: Input/output error; the one before it is" in capsys.readouterr().err
    assert find_checkpoint(tmp_path) == paths[1]


def test_a_damaged_checkpoint_in_a_folder_that_is_read_only_is_left_out(tmp_path, capsys, monkeypatch):
    paths = [write_checkpoint(tmp_path, step, b"x" * step) for step in (3, 20)]
    paths[1].write_bytes(b"y")

    def fail(path, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", fail)  # root may write anywhere
    assert find_checkpoint(tmp_path) == paths[0]
    assert "it is damaged" in capsys.readouterr().err


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / f".step-00000020-{'a' * 32}.ckpt.0123abcd"
    left.write_bytes(b"half")
    whole = write_checkpoint(tmp_path, 3, b"whole")
    rank = RankEnvironment(started_at_s=0.0)
    checkpoints = Checkpoints(tmp_path, rank, parse_options(["--gpus", "0"]), Outcome(None, Clock(0.0)))
    assert checkpoints.find() == whole
    assert list(tmp_path.iterdir()) == [whole]


def test_batches_go_on_where_they_were():
    split = Split(torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10))
    batches = TrainBatches(split, 4, seed=1, rank=0, world_size=1)
    batches.epoch = 1
    order = [batch.labels_B.tolist() for batch in batches]
    assert sorted(itertools.chain(*order)) == list(range(10))
    halfway = iter(batches)
    next(halfway)
    again = TrainBatches(split, 4, seed=1, rank=0, world_size=1)
    again.load_state_dict(batches.state_dict())
    assert [batch.labels_B.tolist() for batch in again] == order[1:]
    assert [batch.labels_B.tolist() for batch in again] == order
