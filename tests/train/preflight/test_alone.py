"""The preflight alone, as `hpcdist doctor --deep` runs it on the nodes: real ranks, without any data."""

import sys
from pathlib import Path

import torch

from hpcdist.records.ranks import BAD_NODE_STATUS
from tests.train.test_run import assert_two_lines

UNFIT_RANK = [sys.executable, str(Path(__file__).with_name("unfit_rank.py"))]


def test_one_rank_says_what_is_on_its_node_and_trains_nothing(start_ranks):
    ranks = start_ranks(1, "--preflight-only")
    assert ranks.wait() == [0], ranks.errors(0)
    metrics = ranks.metrics(0)
    node = metrics["node"]
    assert (node["torch"], node["python"]) == (torch.__version__, ".".join(map(str, sys.version_info[:3])))
    assert node["cuda_build"] == torch.version.cuda
    assert len(node["gpus"]) == torch.cuda.device_count()
    assert (metrics["finished"], metrics["world_size"], metrics["steps"], metrics["probe"]) == (True, 1, None, [])
    assert ranks.output(0).endswith("finished: 1 rank(s) on cpu passed the preflight\n")


def test_two_ranks_measure_the_network_between_them(start_ranks):
    ranks = start_ranks(2, "--preflight-only")
    assert ranks.wait() == [0, 0], ranks.errors(0)
    for rank in (0, 1):
        metrics = ranks.metrics(rank)
        assert [one["size_bytes"] for one in metrics["probe"]] == [4, 228_000, 4_000_000]
        assert metrics["node"]["node_rank"] == rank
        assert set(metrics["phases_s"]) == {"imports", "process_group", "preflight"}


def test_an_unfit_node_is_named_and_still_says_what_it_is(start_ranks):
    ranks = start_ranks(2, "--preflight-only", program=[*UNFIT_RANK, "folder"])
    assert ranks.wait(60) == [BAD_NODE_STATUS] * 2
    for rank in (0, 1):
        error, _ = assert_two_lines(ranks.errors(rank))
        assert error.startswith("error: preflight: rank 1 on n2 can't write to the run's folder")
        metrics = ranks.metrics(rank)
        assert (metrics["finished"], metrics["fault"]["host"], metrics["node"]["host"]) == (False, "n2", f"n{rank + 1}")
