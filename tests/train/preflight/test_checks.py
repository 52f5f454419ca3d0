"""The checks before a training: of real ranks, one of them made unfit, and the comparisons alone."""

import sys
from pathlib import Path

import msgspec
import pytest

from hpcdist.records.network import Fault
from hpcdist.records.ranks import BAD_NODE_STATUS, RankUsage
from hpcdist.train import distributed
from hpcdist.train.environment import RankEnvironment, read_environment
from hpcdist.train.options import parse_options
from hpcdist.train.outcome import Clock, Outcome
from hpcdist.train.preflight import checks
from hpcdist.train.preflight.checks import hash_code
from hpcdist.train.preflight.rendezvous import BadNodeError, Facts, Member, find_fault, find_late, find_skew
from tests.train.conftest import Ranks, free_port
from tests.train.test_run import assert_two_lines

UNFIT_RANK = [sys.executable, str(Path(__file__).with_name("unfit_rank.py"))]
LEAVE_OUT_N2 = "leave the node out with --exclude n2; --replace-bad-node does so by itself"


def facts(*changes):
    """A rank on each of the nodes n1, n2, ..., by what it has different."""
    alike = Facts(rank=0, node_rank=0, host="n1", code="abc", python="3.11.7", torch="2.14.1", lightning="2.6.6")
    return [
        msgspec.structs.replace(alike, **{"rank": at, "node_rank": at, "host": f"n{at + 1}"} | change)
        for at, change in enumerate(changes)
    ]


class TestComparison:
    def test_ranks_that_are_alike_have_no_fault(self):
        assert find_fault(facts({}, {}, {})) is None

    @pytest.mark.parametrize(
        ("name", "what"),
        [("code", "the hpcdist code"), ("python", "Python"), ("torch", "torch"), ("lightning", "Lightning")],
    )
    def test_the_node_that_differs_from_most_is_named(self, name, what):
        expected = getattr(facts({})[0], name)
        assert find_fault(facts({}, {name: "other"}, {})) == Fault(
            sentence=f"rank 1 on n2 has {what} other, expected {expected} as rank 0 on n1 has",
            hint=LEAVE_OUT_N2,
            rank=1,
            host="n2",
        )

    def test_it_is_named_also_where_it_has_rank_0(self):
        fault = find_fault(facts({"torch": "1.0"}, {}, {}))
        assert (fault.rank, fault.host) == (0, "n1")
        assert fault.sentence == "rank 0 on n1 has torch 1.0, expected 2.14.1 as rank 1 on n2 has"

    def test_of_two_nodes_that_differ_neither_is_to_blame(self):
        fault = find_fault(facts({}, {"torch": "1.0"}))
        assert (fault.rank, fault.host) == (1, None)
        assert fault.hint == "give all nodes the same installation, best on a shared disk"

    def test_of_several_nodes_that_differ_none_is_left_out(self):
        fault = find_fault(facts({}, {"torch": "1.0"}, {"torch": "1.0"}, {}, {}))
        assert fault.host is None
        assert fault.sentence.endswith("as rank 0 on n1 has (1 more rank(s) likewise)")

    def test_a_node_that_lacks_a_gpu_is_to_blame_also_beside_one_other(self):
        fault = find_fault(facts({}, {"gpu_trouble": "rank 1 on n2 can use 0 GPUs"}))
        assert (fault.sentence, fault.host) == ("rank 1 on n2 can use 0 GPUs", "n2")

    def test_gpus_that_no_rank_can_use_are_no_node_s_fault(self):
        trouble = {"gpu_trouble": "no GPU"}
        assert find_fault(facts(trouble, trouble)) is None

    def test_a_folder_that_no_rank_can_write_to_is_a_fault_of_no_node(self):
        trouble = {"folder_trouble": "rank 0 on n1 can't write"}
        fault = find_fault(facts(trouble, trouble))
        assert (fault.rank, fault.host) == (0, None)
        assert "a disk that all nodes share" in fault.hint


class TestClocks:
    def test_a_clock_more_than_a_minute_off_is_named(self):
        assert find_skew(facts({}, {}, {}), [1000.0, 1061.0, 1000.5]) == Fault(
            sentence="the clock of rank 1 on n2 is 60 s ahead of that of rank 2 on n3, expected less than 60 s",
            hint=LEAVE_OUT_N2,
            rank=1,
            host="n2",
        )
        assert "is 80 s behind" in find_skew(facts({}, {}, {}), [1000.0, 920.0, 1000.0]).sentence

    def test_a_minute_is_allowed(self):
        assert find_skew(facts({}, {}, {}), [1000.0, 1060.0, 940.0]) is None

    def test_of_two_clocks_neither_is_known_to_be_wrong(self):
        assert find_skew(facts({}, {}), [1000.0, 1100.0]).host is None


MEMBERS = {at: Member(rank=at, node_rank=at, host=f"n{at + 1}") for at in range(3)}


class TestLate:
    def test_the_rank_that_did_not_come_is_named(self):
        fault = find_late("the checks", 60, [0, 2], MEMBERS, 3)
        assert fault.sentence == "rank 1 on n2 did not come to the checks within 60 s, and 2 of 3 ranks did"
        assert (fault.rank, fault.host) == (1, "n2")

    def test_of_one_that_never_said_a_word_the_node_is_not_known(self):
        members = {at: MEMBERS[at] for at in (0, 2)}
        fault = find_late("the checks", 60, [0, 2], members, 3)
        assert fault.sentence.startswith("rank 1 did not come")
        assert (fault.rank, fault.host) == (1, None)

    def test_where_all_came_it_is_the_network(self):
        fault = find_late("the all-reduce of 4 MB", 60, [0, 1, 2], MEMBERS, 3)
        assert fault.sentence == "all 3 ranks began the all-reduce of 4 MB, and it did not end within 60 s"
        assert fault.host is None
        assert "MTU" in fault.hint


def test_the_code_s_hash_changes_with_a_file_s_name_and_content(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = hash_code(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert hash_code(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    second = hash_code(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, hash_code(tmp_path)}) == 3


@pytest.fixture(scope="module")
def standing_still(mnist_dir, tmp_path_factory):
    """Two ranks for each way of standing still; the others wait for seconds, and so all of them at once."""
    begun = {
        fault: Ranks(
            tmp_path_factory.mktemp(fault), 2, ["--data-dir", str(mnist_dir)], [*UNFIT_RANK, fault], anew=False
        )
        for fault in ("stopped", "stopped-in-checks", "rank0")
    }
    yield begun
    for ranks in begun.values():
        ranks.end()


class TestRanks:
    def test_what_it_measured_is_in_every_rank_s_metrics(self, finished):
        for rank in (0, 1):
            metrics = finished.metrics(rank)
            assert [one["size_bytes"] for one in metrics["probe"]] == [4, 228_000, 4_000_000]
            for one in metrics["probe"]:
                assert 0 < one["latency_s"] < 1
                assert one["bandwidth_bytes_per_s"] == pytest.approx(one["size_bytes"] / one["latency_s"])
            assert 0 <= metrics["clock_skew_s"] < 0.5
            assert 0 < metrics["phases_s"]["preflight"] < 5
        assert "preflight: 2 node(s) alike; all-reduce 4 B " in finished.output(0)
        assert not list(finished.folder.glob(".preflight-*"))

    def test_it_can_be_left_out(self, start_ranks, mnist_dir):
        ranks = start_ranks(2, "--no-preflight", "--max-steps", 2, "--data-dir", mnist_dir)
        assert ranks.wait() == [0, 0]
        assert "preflight" not in ranks.metrics(0)["phases_s"]
        assert ranks.metrics(0)["probe"] == []

    @pytest.mark.parametrize(
        ("fault", "size", "sentence", "host"),
        [
            ("python", 3, "rank 2 on n3 has Python 3.9.1, expected 3.11", "n3"),
            ("folder", 2, "rank 1 on n2 can't write to the run's folder {folder}: Read-only file system", "n2"),
            ("invisible", 2, "rank 1 on n2 does not see in {folder} what rank 0 wrote there 1 s ago", "n2"),
            ("gpu", 2, "rank 1 on n2 needs 1 GPU(s) and can use 0", "n2"),
            ("clock75", 3, "the clock of rank 2 on n3 is 75 s ahead of that of rank ", "n3"),
        ],
    )
    def test_an_unfit_rank_ends_all_with_the_same_two_lines(self, start_ranks, mnist_dir, fault, size, sentence, host):
        ranks = start_ranks(size, "--data-dir", mnist_dir, program=[*UNFIT_RANK, fault])
        assert ranks.wait(60) == [BAD_NODE_STATUS] * size
        for rank in range(size):
            error, hint = assert_two_lines(ranks.errors(rank))
            assert error.startswith(f"error: preflight: {sentence.format(folder=ranks.folder)}")
            assert f"--exclude {host}" in hint
            found = ranks.metrics(rank)
            assert (found["fault"]["rank"], found["fault"]["host"]) == (size - 1, host)
            assert found["steps"] is None
            assert "data" not in found["phases_s"]

    def test_clocks_a_few_seconds_apart_are_warned_of(self, start_ranks, mnist_dir):
        ranks = start_ranks(2, "--max-steps", 2, "--data-dir", mnist_dir, program=[*UNFIT_RANK, "clock3"])
        assert ranks.wait() == [0, 0]
        assert ranks.errors(0) == "warning: preflight: the nodes' clocks are 3.0 s apart\n"
        assert ranks.metrics(1)["clock_skew_s"] == pytest.approx(3, abs=0.2)

    @pytest.mark.parametrize(
        ("fault", "stage"), [("stopped", "the all-reduce of 4 B"), ("stopped-in-checks", "the checks")]
    )
    def test_a_rank_that_stands_still_is_named(self, standing_still, fault, stage):
        ranks = standing_still[fault]
        assert ranks.processes[0].wait(60) == BAD_NODE_STATUS
        error, _ = assert_two_lines(ranks.errors(0))
        assert error == f"error: preflight: rank 1 on n2 did not come to {stage} within 8 s, and 1 of 2 ranks did"
        assert ranks.metrics(0)["fault"]["host"] == "n2"

    def test_a_rank_that_never_came_is_named_with_its_node(self, start_ranks, mnist_dir, tmp_path):
        usage = RankUsage(rank=1, local_rank=0, node_rank=1, world_size=2, host="n2.cluster", started_at_s=0.0)
        (tmp_path / "ranks").mkdir()
        (tmp_path / "ranks" / "1.json").write_bytes(msgspec.json.encode(usage))
        # The second rank of two is not started.
        ranks = start_ranks(1, "--nodes", 2, "--data-dir", mnist_dir, program=[*UNFIT_RANK, "absent"], WORLD_SIZE=2)
        assert ranks.wait(60) == [BAD_NODE_STATUS]
        error, hint = assert_two_lines(ranks.errors(0))
        assert error == "error: preflight: rank 1 on n2 did not come to the start within 3 s, and 1 of 2 ranks did"
        assert hint == f"hint: {LEAVE_OUT_N2}"
        assert ranks.metrics(0)["fault"]["host"] == "n2"

    def test_a_rank_0_that_never_came_is_named_where_srun_started_all(self, monkeypatch):
        monkeypatch.setattr(distributed, "STORE_GRACE_S", 0.2)
        monkeypatch.setattr(checks, "SRUN_ARRIVAL_S", 0.2)
        outcome = Outcome(None, Clock(0.0))
        rank = RankEnvironment(rank=1, world_size=2, main_port=free_port(), started_at_s=0.0, arrival_s=0.2)
        with pytest.raises(BadNodeError, match=r"rank 1 on .* did not meet the other ranks at 127.0.0.1"):
            checks.preflight(parse_options(["--gpus", "0", "--nodes", "2"]), rank, outcome, None)
        assert (outcome.metrics().fault.rank, outcome.metrics().fault.host) == (0, "127.0.0.1")

    def test_ranks_that_srun_started_wait_for_each_other_for_less_long_than_those_of_a_person(self):
        ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "NODE_RANK"), "0") | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        started = {"SLURM_PROCID": "0"}
        by_srun = read_environment(ranks | started, 0.0)
        by_hand = [read_environment(ranks | more, 0.0) for more in ({}, started | {"HPCDIST_LAUNCHER": "local"})]
        assert by_srun.arrival_s == 180
        assert [one.arrival_s for one in by_hand] == [600, 600]

    def test_rank_0_that_stands_still_is_named_by_the_others(self, standing_still):
        ranks = standing_still["rank0"]
        assert ranks.processes[1].wait(60) == BAD_NODE_STATUS
        # On a busy machine torch warns that the store did not answer in time.
        own = [line for line in ranks.errors(1).splitlines() if not line.startswith("[rank1]:[W")]
        error, _ = assert_two_lines("\n".join(own))
        assert error.startswith("error: preflight: rank 0 on 127.0.0.1 does not answer rank 1 on n2 any more, after")
