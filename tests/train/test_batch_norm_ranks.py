"""Two ranks train a network with batch normalisation on augmentable images: uneven batches, a stop, the same bits."""

import torch

from hpcdist.records.ranks import STOPPED_STATUS
from hpcdist.train.checkpoint import find_checkpoint
from tests.train.test_strategies import run_cases

# 33 images in batches of 8 over two ranks: the last batch has one image, so one rank has none.
OPTIONS = {
    "model": "shufflenet",
    "data": "synthetic:3x16x16x4@33",
    "batch_size": 8,
    "epochs": 2,
    "optimizer": "sgd",
    "schedule": "step",
    "accumulate": 2,
}


def final_state(folder):
    content = torch.load(find_checkpoint(folder), weights_only=True)
    assert content["global_step"] == 10
    return content["state_dict"]


def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path):
    def case(name, **more):
        return {"ranks": 2, "training": OPTIONS, "checkpoints": str(tmp_path / name), **more}

    whole, stopped, resumed = run_cases(
        {"whole": case("whole"), "stopped": case("cut", stop_after_s=1e-3), "resumed": case("cut")}
    ).values()
    assert [rank["samples"] for rank in whole] == [32, 34]
    expected = final_state(tmp_path / "whole")
    assert all(torch.isfinite(value).all() for value in expected.values())
    assert [rank["status"] for rank in stopped] == [STOPPED_STATUS] * 2
    assert f"goes on after step {stopped[0]['steps']} of 10" in resumed[0]["out"]
    found = final_state(tmp_path / "cut")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
