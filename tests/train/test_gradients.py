"""However a batch is cut over ranks, the training is the same."""

import json
from pathlib import Path

import pytest

from tests.train.conftest import run_python

PROGRAM = Path(__file__).with_name("gradient_ranks.py")


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def worlds(request):
    """What each rank of 1, 2 and 3 ended with, after four steps of which the third has two samples."""
    done = run_python(PROGRAM, request.param)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_two_and_three_ranks_have_the_same_weights_after_uneven_batches(worlds):
    alone = worlds[0][0]["weights"]
    for ranks in worlds[1:]:
        for rank in ranks:
            assert rank["weights"] == pytest.approx(alone, rel=1e-4, abs=2e-6)


def test_every_rank_of_a_world_has_the_very_same_weights(worlds):
    for ranks in worlds:
        assert all(rank["weights"] == ranks[0]["weights"] for rank in ranks)


def test_ranks_share_the_samples_out_and_one_may_go_without(worlds):
    # Batches of 4, 4, 2 and again 4: thirds of 4 are 1, 1 and 2, of 2 they are 0, 1 and 1.
    assert [[rank["samples"] for rank in ranks] for ranks in worlds] == [[14], [7, 7], [3, 4, 7]]


def test_every_rank_of_every_world_reports_the_same_test_figures(worlds):
    figures = [(rank["accuracy"], rank["loss"]) for ranks in worlds for rank in ranks]
    assert len({accuracy for accuracy, _ in figures}) == 1
    assert [loss for _, loss in figures] == pytest.approx([figures[0][1]] * 6, rel=1e-5)
