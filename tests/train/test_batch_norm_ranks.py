"""Two ranks train a network with batch normalisation on augmentable images: uneven batches, a stop, the same bits."""

import torch

from hpcdist.record import STOPPED_STATUS
from hpcdist.train.checkpoint_files import find_checkpoint

# 33 images in batches of 8 over two ranks: the last batch has one image, so one rank has none.
OPTIONS = (
    *("--model", "shufflenet", "--data", "synthetic:3x16x16x4@33", "--batch-size", 8, "--epochs", 2),
    *("--optimizer", "sgd", "--schedule", "step", "--accumulate", 2, "--no-preflight"),
)


def final_state(ranks):
    content = torch.load(find_checkpoint(ranks.folder / "checkpoints"), weights_only=True)
    assert content["global_step"] == 10
    return content["state_dict"]


def test_stopped_and_resumed_it_ends_with_the_same_bits(start_ranks, tmp_path):
    whole = start_ranks(2, *OPTIONS)
    assert whole.wait() == [0, 0], whole.errors(0)
    assert [whole.metrics(rank)["samples"] for rank in range(2)] == [32, 34]
    expected = final_state(whole)
    assert all(torch.isfinite(value).all() for value in expected.values())
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    (tmp_path / "stop").touch()
    stopped = start_ranks(2, *OPTIONS, HPCDIST_STOP_FILE=tmp_path / "stop")
    assert stopped.wait() == [STOPPED_STATUS] * 2, stopped.errors(0)
    resumed = start_ranks(2, *OPTIONS)
    assert resumed.wait() == [0, 0], resumed.errors(0)
    assert "goes on after step 1 of 10" in resumed.output(0)
    found = final_state(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
