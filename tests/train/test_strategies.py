"""Each strategy trains what it should: the same weights as all-reduce where ranks wait, faster where they need not."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.records.ranks import STOPPED_STATUS
from hpcdist.train.parameter_server.server import WorkQueue
from tests.train.conftest import run_python

PROGRAM = Path(__file__).with_name("strategy_ranks.py")
SMALL_CNN_BYTES = 4 * 56_970  # the network's parameters, as its docstring has them
SYNC = {"strategy": "parameter-server"}
ASYNC = {"strategy": "parameter-server", "ps_mode": "async"}


def fifty_steps(ranks, optimizer, **more):
    rate = 0.01 if optimizer == "sgd" else 0.001
    return {
        "ranks": ranks,
        "training": {"batch_size": 64, "max_steps": 50, "epochs": 20, "optimizer": optimizer, "lr": rate, **more},
    }


def list_waiting(mnist, folder):
    """Cases whose ranks wait for each other."""
    cases = {
        f"{optimizer} {ranks} {way}": fifty_steps(ranks, optimizer, **options)
        for optimizer in ("sgd", "adamw")
        for ranks in (2, 4)
        for way, options in (("reduced", {}), ("served", SYNC))
    }
    cases["sgd 1"], cases["sgd 3"] = fifty_steps(1, "sgd"), fifty_steps(3, "sgd")
    cases["sgd 2 rounded"] = fifty_steps(2, "sgd", strategy="ddp-bf16")
    cases["mnist"] = {"ranks": 2, "mnist": str(mnist)}
    cases["mnist"] |= {"training": {"batch_size": 256, "epochs": 2, "strategy": "ddp-bf16"}}
    cases["whole"] = {"ranks": 2, "images": 2000, "slow": 0.02, "training": {"batch_size": 64, "epochs": 2, **SYNC}}
    cases["asked"] = cases["whole"] | {"checkpoints": str(folder), "stop_after_s": 0.6}
    cases["goes on"] = cases["whole"] | {"checkpoints": str(folder)}
    return cases


def list_apart(pictures, folder):
    """Cases of ranks that do not wait, and what they are compared with."""
    uneven = {"ranks": 2, "slow": 0.03, "images": 1000, "learnable": True}
    options = {"batch_size": 64, "epochs": 2, "optimizer": "sgd", "lr": 0.01}
    cases = {"uneven reduced": uneven | {"training": options}, "uneven apart": uneven | {"training": options | ASYNC}}
    options = {"batch_size": 64, "epochs": 3, "max_steps": 20, **ASYNC}
    cases["cut"] = {"ranks": 3, "images": 1000, "training": options}
    asked = {"ranks": 3, "images": 2000, "learnable": True, "slow": 0.1, "stop_after_s": 0.6}
    asked |= {"checkpoints": str(folder), "training": {"batch_size": 64, "epochs": 6, **ASYNC}}
    cases["asked"] = asked
    cases["goes on"] = asked | {"ranks": 2, "slow": 0, "stop_after_s": None}
    options = {"data": "synthetic:3x16x16x4@200", "model": "shufflenet", "optimizer": "sgd", "schedule": "step"}
    options |= {"batch_size": 16, "accumulate": 2, "epochs": 50, "target_accuracy": 0.6, **ASYNC}
    cases["target"] = {"ranks": 2, "training": options}
    options = {"data": f"{pictures}@16", "batch_size": 4, "epochs": 3, **ASYNC}
    cases["pictures"] = {"ranks": 2, "training": options}
    options = {"batch_size": 64, "epochs": 1000, **ASYNC}
    cases["dies"] = {"ranks": 3, "images": 2000, "die_after_s": 1.0, "training": options}
    return cases


def paint(folder):
    """Ten red and ten blue training images and as many to test."""
    for part in ("train", "val"):
        for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            (folder / part / name).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (20 + number, 30), colour).save(folder / part / name / f"{number}.png")


def run_cases(cases):
    """What each rank of each case ended with; all in one process, so that torch is imported once."""
    done = run_python(PROGRAM, json.dumps(list(cases.values())))
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def waiting(mnist_dir, tmp_path_factory):
    return run_cases(list_waiting(mnist_dir, tmp_path_factory.mktemp("checkpoints")))


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    paint(pictures)
    return run_cases(list_apart(pictures, tmp_path_factory.mktemp("checkpoints")))


def differences(one, other):
    return [abs(a - b) for a, b in zip(one["weights"], other["weights"], strict=True)]


def assert_same_weights(one, other):
    """Within rounding: but for the few weights behind a relu whose input rounds across its corner."""
    apart = sorted(differences(one, other))
    assert apart[len(apart) * 95 // 100] < 1e-6
    assert apart[-1] < 1e-4


class TestSameWeights:
    @pytest.mark.parametrize("ranks", [2, 4])
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_a_server_that_waits_gives_those_of_all_reduce(self, waiting, optimizer, ranks):
        reduced, served = waiting[f"{optimizer} {ranks} reduced"], waiting[f"{optimizer} {ranks} served"]
        for one, other in zip(reduced, served, strict=True):
            assert_same_weights(one, other)
            assert (other["steps"], other["samples"]) == (one["steps"], one["samples"])
        assert len({tuple(rank["weights"]) for rank in served}) == 1
        assert {rank["bytes_per_step"] for rank in reduced} == {SMALL_CNN_BYTES}
        assert {rank["bytes_per_step"] for rank in served} == {2 * SMALL_CNN_BYTES}
        assert all(rank["split"]["communication_s"] > 0 for rank in served)

    def test_one_and_three_ranks_at_one_global_batch(self, waiting):
        for rank in waiting["sgd 3"]:
            assert_same_weights(waiting["sgd 1"][0], rank)

    def test_all_reduce_in_bfloat16_rounds_and_sends_half(self, waiting):
        plain, rounded = waiting["sgd 2 reduced"], waiting["sgd 2 rounded"]
        assert {rank["bytes_per_step"] for rank in rounded} == {SMALL_CNN_BYTES // 2}
        assert rounded[0]["weights"] == rounded[1]["weights"]
        # Rounded to 8 bits, and so neither the same nor far away.
        assert 1e-4 < max(differences(plain[0], rounded[0])) < 0.02


def test_bfloat16_all_reduce_reaches_98_percent_of_mnist(waiting):
    first, second = waiting["mnist"]
    assert first["accuracy"] == second["accuracy"] >= 0.98


class TestAsync:
    def test_no_rank_waits_for_a_slow_one(self, apart):
        reduced, unbound = apart["uneven reduced"], apart["uneven apart"]
        # In step both train 500 images per epoch; apart the fast one does what the slow one leaves.
        assert [rank["samples"] for rank in reduced] == [1000, 1000]
        assert unbound[0]["samples"] > 2 * unbound[1]["samples"]
        assert unbound[0]["images_per_s"] > 1.5 * reduced[0]["images_per_s"]

    def test_an_epoch_still_has_every_sample_once(self, apart):
        unbound = apart["uneven apart"]
        assert sum(rank["samples"] for rank in unbound) == 2 * 1000
        assert {(rank["steps"], rank["epochs"], rank["finished"]) for rank in unbound} == {(32, 2, True)}

    def test_all_ranks_test_and_end_with_the_server_s_weights(self, apart):
        first, second = apart["uneven apart"]
        assert first["weights"] == second["weights"]
        assert first["accuracy"] == second["accuracy"] > 0.5  # of ten classes, after 32 steps
        assert [test["step"] for test in second["tests"]] == [16, 32]

    def test_every_rank_counts_the_images_of_all(self, apart):
        fast, slow = apart["uneven apart"]
        assert slow["images_per_s"] == pytest.approx(fast["images_per_s"], rel=0.5)
        # Far more than its own.
        assert slow["images_per_s"] > 2 * slow["samples"] / slow["phases_s"]["steady"]

    def test_max_steps_may_end_within_an_epoch(self, apart):
        ranks = apart["cut"]
        assert sum(rank["samples"] for rank in ranks) == 1000 + 4 * 64  # 16 batches are an epoch
        assert {(rank["steps"], rank["status"], rank["tests"][-1]["step"]) for rank in ranks} == {(20, 0, 20)}

    def test_it_stops_when_one_rank_is_asked_and_goes_on_with_another_number_of_ranks(self, apart):
        stopped, ended = apart["asked"], apart["goes on"]
        assert [rank["status"] for rank in stopped] == [STOPPED_STATUS] * 3
        assert 0 < stopped[0]["steps"] < 6 * 32
        assert {(rank["status"], rank["steps"]) for rank in ended} == {(0, 6 * 32)}
        assert f"goes on after step {stopped[0]['steps']} of 192" in ended[0]["out"]
        assert ended[0]["accuracy"] == ended[1]["accuracy"] > 0.9

    def test_batch_normalisation_parts_of_parts_and_a_target(self, apart):
        first, second = apart["target"]
        assert (first["status"], second["status"]) == (0, 0), first
        assert first["accuracy"] == second["accuracy"] >= 0.6
        assert first["finished"]
        # 13 batches an epoch; it ends after the test that reached the target.
        assert first["steps"] == second["steps"] == 13 * len(first["tests"])
        assert first["samples"] + second["samples"] == 200 * len(first["tests"])

    def test_a_folder_of_images_is_shared_out_too(self, apart):
        first, second = apart["pictures"]
        assert (first["status"], second["status"]) == (0, 0), first
        assert first["samples"] + second["samples"] == 3 * 20
        assert first["accuracy"] == second["accuracy"] == 1.0
        assert "20 images are decoded once and kept" in first["out"]

    def test_a_rank_that_dies_ends_the_others(self, apart):
        first, second, dead = (rank["status"] for rank in apart["dies"])
        assert dead == 9
        assert first > 0
        assert second > 0


def test_a_server_that_waits_goes_on_bit_for_bit(waiting):
    stopped, ended = waiting["asked"], waiting["goes on"]
    assert [rank["status"] for rank in stopped] == [STOPPED_STATUS] * 2
    assert f"goes on after step {stopped[0]['steps']} of 64" in ended[0]["out"]
    assert [rank["weights"] for rank in ended] == [rank["weights"] for rank in waiting["whole"]]


class TestTickets:
    def test_parts_are_given_once_each_and_every_rank_gets_one_when_all_met(self):
        # 2 ranks, epochs of 3 batches: parts 0 to 5, then 6 to 9 of the 5 batches in all.
        queue = WorkQueue(ranks=2, batches_per_epoch=3, batches=5)
        assert queue.deal() == 0
        assert [queue.draw() for _ in range(5)] == [2, 3, 4, 5, None]
        assert queue.is_epoch_over
        assert queue.deal() == 6
        assert [queue.draw() for _ in range(3)] == [8, 9, None]
        assert queue.deal() is None

    def test_a_pause_leaves_a_part_for_each_rank(self):
        queue = WorkQueue(ranks=2, batches_per_epoch=3, batches=3)
        queue.deal()
        assert queue.can_pause  # 2, 3, 4 and 5 are left
        assert queue.deal() == 2
        queue.draw()
        assert not queue.can_pause  # 5 is left, for two ranks

    def test_it_goes_on_in_the_middle_of_an_epoch(self):
        queue = WorkQueue(ranks=2, batches_per_epoch=3, batches=6, done=8)
        assert queue.deal() == 8
        assert [queue.draw() for _ in range(3)] == [10, 11, None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ps_mode": "async"}, "ps_mode is async but strategy is ddp"),
        ({"strategy": "parameter-server", "precision": "16-mixed"}, "16-mixed"),
        ({"strategy": "parameter-server", "module": "a:B", "datamodule": "a:C"}, "for the built-in networks"),
    ],
)
def test_what_can_not_go_together_is_refused(options, expected):
    with pytest.raises(UsageError, match=expected):
        Training(**options)
    Training(strategy="parameter-server", ps_mode="async", precision="bf16-mixed")  # and this can
