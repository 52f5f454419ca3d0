"""The judgements of `hpcdist doctor` alone: versions, room, what a cluster says, what the nodes of a trial said."""

from pathlib import Path

import msgspec
import pytest

from hpcdist.doctor.check import Check, find_exit_status
from hpcdist.doctor.cluster import choose_partition, judge_accounting, judge_clock, judge_partition
from hpcdist.doctor.machine import (
    GIB,
    Quota,
    find_filesystem,
    judge_packages,
    judge_pair,
    judge_quota,
    judge_room,
    judge_slurm_release,
    parse_quota,
)
from hpcdist.doctor.probe_job import ProbeJobResult, choose_shape, find_probe, judge_cuda, judge_network, judge_trial
from hpcdist.records.efficiency import Gathering
from hpcdist.records.network import AllReduce, NodeFacts, read_probes, write_probe
from hpcdist.records.network import find_probe as find_kept
from hpcdist.records.ranks import RankUsage, TrainingMetrics
from hpcdist.slurm.cluster import Node, Partition, list_partitions, parse_clock, parse_sinfo

REQUIREMENTS = [
    "torch>=2.4",
    "torchvision>=0.19",
    "pytorch-lightning>=2.5",
    "submitit<1.6,>=1.5.4",
    "mypy; extra == 'dev'",
]


def check(name, status):
    return Check(name=name, status=status, sentence="")


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([], 0),
        ([check("data", "warning"), check("clock", "unknown")], 0),
        ([check("data", "error")], 1),
        ([check("slurm", "error"), check("data", "warning")], 3),
        ([check("slurm", "error"), check("data", "error")], 1),
    ],
)
def test_exit_status(checks, status):
    assert find_exit_status(checks) == status


class TestVersions:
    def test_what_is_new_enough_is_well(self):
        versions = {"torch": "2.10.0", "torchvision": "0.25.0", "pytorch-lightning": "2.6.6"}
        assert [one.status for one in judge_packages(versions, REQUIREMENTS)] == ["ok"] * 4

    @pytest.mark.parametrize(
        ("change", "name", "words"),
        [
            # 2.10 is newer than 2.4, 2.3 is not: numbers, not text.
            ({"torch": "2.3.1", "torchvision": "0.18.1"}, "torch", "torch is 2.3.1, expected >=2.4"),
            ({"pytorch-lightning": "1.9.5"}, "lightning", "pytorch-lightning is 1.9.5, expected >=2.5"),
            ({"pytorch-lightning": None}, "lightning", "pytorch-lightning is not installed"),
        ],
    )
    def test_what_is_too_old_or_missing_is_an_error(self, change, name, words):
        versions = {"torch": "2.10.0", "torchvision": "0.25.0", "pytorch-lightning": "2.6.6"} | change
        found = judge_packages({key: value for key, value in versions.items() if value}, REQUIREMENTS)
        (error,) = [one for one in found if one.status == "error" and one.name == name]
        assert words in error.sentence
        assert error.hint.startswith("pip install")

    # The pairs of torchvision's README: 2.4 with 0.19, 2.9 with 0.24.
    @pytest.mark.parametrize(
        ("torch", "vision", "status"),
        [
            ("2.4.0", "0.19.0", "ok"),
            ("2.9.1", "0.24.1", "ok"),
            ("2.9.1+cu130", "0.24.1+cu130", "ok"),
            ("2.9.1+cu130", "0.24.1", "ok"),  # the index's own build carries no label
            ("2.9.1", "0.19.0", "error"),
            ("2.9.1+cpu", "0.24.1+cu130", "error"),
            ("3.0.0", "1.0.0", "unknown"),
        ],
    )
    def test_torch_and_torchvision_are_a_pair(self, torch, vision, status):
        assert judge_pair(torch, vision).status == status

    @pytest.mark.parametrize(
        ("release", "status"),
        [
            ("20.11.9", "ok"),
            ("22.05.8", "ok"),
            ("26.05.0", "ok"),
            ("19.05.3", "warning"),
            ("27.11.0", "warning"),
            ("", "unknown"),
            (None, "unknown"),
        ],
    )
    def test_slurm_s_release(self, release, status):
        assert judge_slurm_release(release).status == status


class TestRoom:
    @pytest.mark.parametrize(
        ("free_bytes", "free_files", "status"),
        [
            (50 * GIB, None, "ok"),
            (50 * GIB, 1_000_000, "ok"),
            (4 * GIB, None, "warning"),
            (50 * GIB, 5_000, "warning"),
            (50 * 1024**2, None, "error"),
            (50 * GIB, 50, "error"),
        ],
    )
    def test_disk(self, free_bytes, free_files, status):
        assert judge_room("/p", free_bytes, free_files).status == status

    # The layout of quota(1) with -w -p: blocks of 1 KiB, a star where a limit is passed.
    QUOTA = """Disk quotas for user ada (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      /dev/sdb1  950000* 900000 1000000 1700000000   12000       0       0       0
srv:/home  1000 0 0 0 7 0 10 0
"""

    def test_quota_is_read_and_the_fullest_one_told(self):
        quotas = parse_quota(self.QUOTA)
        assert quotas[0] == Quota(
            filesystem="/dev/sdb1", used_bytes=972_800_000, limit_bytes=921_600_000, used_files=12000, limit_files=None
        )
        assert (quotas[1].limit_bytes, quotas[1].limit_files) == (None, 10)
        found = judge_quota(quotas)
        assert (found.status, "used up: /dev/sdb1" in found.sentence) == ("error", True)
        assert judge_quota(quotas[1:]).status == "ok"

    def test_without_a_quota_nothing_is_said(self):
        assert judge_quota(parse_quota("Disk quotas for user ada (uid 1000): none\n")) is None

    def test_the_file_system_of_a_folder_is_that_of_the_deepest_mount(self):
        mounts = "/dev/a / ext4 rw 0 0\nsrv:/x /home nfs4 rw 0 0\n/dev/b /homework xfs rw 0 0\n"
        assert find_filesystem(Path("/home/ada"), mounts) == "nfs4"
        assert find_filesystem(Path("/homework/x"), mounts) == "xfs"
        assert find_filesystem(Path("/opt"), mounts) == "ext4"


# As sinfo prints `%P|%l|%D|%c|%m|%G|%a|%T`: a row for each state and kind of node.
SINFO = """main*|infinite|2|4|8000|gpu:2|up|idle
main*|infinite|1|4|8000|gpu:2|up|mixed
main*|infinite|1|4|8000|gpu:2|up|down*
cpu|1-00:00:00|3|4|8000|(null)|up|allocated
old|1-00:00:00|4|4|8000|(null)|inact|idle
sick|1-00:00:00|2|4|8000|gpu:a100:4|up|drained
"""


class TestCluster:
    def test_partitions_are_read(self):
        main, cpu, old, sick = parse_sinfo(SINFO)
        assert (main.name, main.is_default, main.is_up) == ("main", True, True)
        assert (sum(node.count for node in main.nodes), main.usable_nodes, main.has_gpus) == (4, 3, True)
        assert (cpu.has_gpus, cpu.is_default, old.is_up) == (False, False, False)
        assert (sick.usable_nodes, sick.has_gpus) == (0, False)

    def test_a_row_that_cannot_be_read_takes_no_other_along(self, stand_in):
        stand_in("sinfo", f"cat <<'END'\nsome notice of the site\n{SINFO}END")
        assert [one.name for one in list_partitions()] == ["main", "cpu", "old", "sick"]

    @pytest.mark.parametrize(
        ("asked", "status", "words"),
        [
            (None, "ok", "partition main: 3 of 4 node(s) usable, with GPUs"),
            ("cpu", "ok", "no GPUs"),
            ("cpu,main", "ok", "partition cpu"),
            ("old", "warning", "not up"),
            ("sick", "warning", "0 of 2"),
            ("mian", "error", "no partition 'mian'"),
        ],
    )
    def test_the_partition_is_judged(self, asked, status, words):
        found = judge_partition(asked, parse_sinfo(SINFO))
        assert found.status == status
        assert words in found.sentence

    def test_the_nearest_name_is_proposed(self):
        assert "did you mean 'main'?" in judge_partition("mian", parse_sinfo(SINFO)).hint

    def test_without_a_default_partition_one_must_be_named(self):
        found = judge_partition(None, [Partition(name="gpu", nodes=(Node(count=1, cpus=4),))])
        assert (found.status, found.hint) == ("error", 'put partition = "gpu" into hpcdist.toml')

    def test_a_trial_takes_two_nodes_with_a_gpu_where_there_are_such(self):
        partitions = parse_sinfo(SINFO)
        assert choose_shape(None, partitions, None) == (2, 1)
        assert choose_shape(None, partitions, 0) == (2, 0)
        assert choose_shape("cpu", partitions, 4) == (2, 0)
        assert choose_shape("sick", partitions, None) == (1, 0)
        assert choose_shape("one", [Partition(name="one", nodes=(Node(count=1, cpus=4, gpus=1),))], 4) == (1, 1)
        assert choose_partition("none", partitions) is None

    @pytest.mark.parametrize(
        ("gathering", "storage", "trouble", "status", "words"),
        [
            (Gathering(gathered="sampled", every_s=1.0), "slurmdbd", "", "ok", "every 1 s"),
            (Gathering(gathered="sampled", every_s=30.0), "slurmdbd", "", "ok", "shorter peaks are missed"),
            (Gathering(gathered="cgroup-peak"), "slurmdbd", "", "ok", "kernel's own"),
            (Gathering(gathered="nothing"), "slurmdbd", "", "warning", "not gathered"),
            (Gathering(gathered="nothing"), "accounting_storage/none", "disabled", "warning", "it is off"),
            (Gathering(), "accounting_storage/slurmdbd", "refused", "warning", "it does not answer (refused)"),
        ],
    )
    def test_accounting(self, gathering, storage, trouble, status, words):
        found = judge_accounting(gathering, storage, trouble)
        assert found.status == status
        assert words in found.sentence

    def test_the_controller_s_time_is_read_in_both_forms(self):
        assert parse_clock("Configuration data as of 1795286598") == 1795286598.0
        # 2026-11-21T19:23:18 UTC is 1795288998 seconds after the epoch (date -u -d).
        assert parse_clock("Configuration data as of 2026-11-21T19:23:18+00:00") == 1795288998.0
        assert parse_clock("Configuration data as of yesterday") is None
        assert parse_clock("") is None

    @pytest.mark.parametrize(
        ("controller_s", "status", "words"),
        [
            (1000.0, "ok", "agree"),
            (999.0, "ok", "agree"),  # whole seconds: 999.9 is printed as 999
            (900.0, "warning", "99 s ahead of"),
            (1100.0, "warning", "100 s behind"),
            (500.0, "error", "munge"),
            (None, "unknown", "does not say"),
        ],
    )
    def test_clock(self, controller_s, status, words):
        found = judge_clock(controller_s, 1000.0, 1000.2)
        assert found.status == status
        assert words in found.sentence


NODE = NodeFacts(host="n1", node_rank=0, python="3.11.7", torch="2.14.1+cu130", lightning="2.6.6", cuda_build="13.0")
H100 = msgspec.structs.replace(NODE, driver="580.65", cuda_driver="13.0", gpus=("NVIDIA H100",))
HERE = {"python": "3.11.7", "torch": "2.14.1", "pytorch-lightning": "2.6.6"}


def measured(latency_s, rate):
    return (
        AllReduce(size_bytes=4, latency_s=latency_s, bandwidth_bytes_per_s=4 / latency_s),
        AllReduce(size_bytes=4_000_000, latency_s=4e6 / rate, bandwidth_bytes_per_s=rate),
    )


def trial(*nodes, state="COMPLETED", probe=(), **other):
    ranks = tuple(
        RankUsage(
            rank=at,
            local_rank=0,
            node_rank=at,
            world_size=2,
            host=node.host,
            started_at_s=0.0,
            training=TrainingMetrics(node=node, probe=probe, clock_skew_s=0.002),
        )
        for at, node in enumerate(nodes)
    )
    given = {"nodes": 2, "gpus": 1, "cluster": "c", "is_over": True, "versions": HERE} | other
    return ProbeJobResult(run="r", job_id="7", state=state, ranks=ranks, **given)


def statuses(found):
    return {one.name: one.status for one in found}


class TestNodes:
    def test_nodes_that_are_well(self):
        nodes = (H100, msgspec.structs.replace(H100, host="n2", node_rank=1))
        found = judge_trial(trial(*nodes, probe=measured(0.0002, 1e9)))
        assert set(statuses(found).values()) == {"ok"}
        assert found[0].sentence == "job 7 ran well on n1, n2"
        # 4 MB in 4 ms are 1,000 MB/s.
        assert found[-1].sentence == "all-reduce over n1, n2: 0.20 ms, 1,000 MB/s"

    def test_a_job_that_failed_says_why(self):
        found = judge_trial(trial(state="FAILED", trouble="rank 1 on n2 can't write to the run's folder", hint="h"))
        assert statuses(found) == {"job on the nodes": "error"}
        assert (found[0].sentence, found[0].hint) == (
            "job 7 ended FAILED: rank 1 on n2 can't write to the run's folder",
            "h",
        )

    def test_a_job_that_never_started_tells_nothing(self):
        (found,) = judge_trial(trial(state="PENDING", is_over=False, waits_for="Resources"))
        assert (found.status, "(Resources)" in found.sentence) == ("unknown", True)

    def test_a_node_whose_files_are_not_seen_here_shares_no_folder(self):
        assert statuses(judge_trial(trial(H100)))["shared folder"] == "error"

    def test_the_nodes_other_software_is_told(self):
        old = msgspec.structs.replace(H100, torch="2.4.0+cu121", cuda_build="12.1")
        (found,) = [one for one in judge_trial(trial(old, old)) if one.name == "nodes' software"]
        assert (found.status, found.sentence) == ("warning", "torch 2.4.0+cu121 there and 2.14.1 here")

    # NVIDIA's CUDA Compatibility: within a major release any of its drivers does.
    @pytest.mark.parametrize(
        ("change", "status", "words"),
        [
            ({}, "ok", "torch is built for 13.0"),
            ({"cuda_driver": "12.8", "driver": "570.1", "cuda_build": "12.9"}, "ok", "runs CUDA 12.8"),
            ({"cuda_driver": "12.8", "driver": "570.1"}, "error", "runs CUDA 12.8, torch is built for 13.0"),
            ({"cuda_build": None}, "error", "CPUs only"),
            ({"driver": None, "cuda_driver": None}, "ok", "no NVIDIA driver"),
        ],
    )
    def test_the_driver_against_torch_s_build(self, change, status, words):
        found = judge_cuda([msgspec.structs.replace(H100, **change)])
        assert found.status == status
        assert words in found.sentence

    def test_gpus_that_torch_does_not_see_are_an_error_unless_the_cpu_is_used(self):
        assert statuses(judge_trial(trial(NODE, NODE)))["gpus"] == "error"
        assert statuses(judge_trial(trial(NODE, NODE, device="cpu")))["gpus"] == "ok"
        assert statuses(judge_trial(trial(NODE, NODE, gpus=0)))["gpus"] == "ok"

    @pytest.mark.parametrize(
        ("latency_s", "rate", "words"),
        [(0.0002, 30e6, "little bandwidth"), (0.05, 1e9, "much latency"), (0.0002, 118e6, None)],
    )
    def test_a_slow_network_is_a_warning(self, latency_s, rate, words):
        found = judge_network(find_probe(trial(NODE, NODE, probe=measured(latency_s, rate))))
        assert (found.status == "warning") == (words is not None)
        assert (words or "") in found.sentence

    def test_what_was_measured_is_kept_the_newest_of_each_shape(self, tmp_path):
        (tmp_path / "jobs" / "runs").mkdir(parents=True)
        probe = find_probe(trial(NODE, NODE, probe=measured(0.001, 1e8), device="cpu", partition="main"))
        assert (probe.device, probe.hosts) == ("cpu", ("n1", "n1"))
        write_probe(tmp_path, probe)
        write_probe(tmp_path, msgspec.structs.replace(probe, partition="other"))
        newer = msgspec.structs.replace(probe, run="newer")
        write_probe(tmp_path, newer)
        kept = read_probes(tmp_path)
        assert [one.run for one in kept] == ["newer", "r"]
        assert find_kept(kept, cluster="c", partition="main", device="cpu") == newer
        assert find_kept(kept, cluster="c", partition="main", device="cuda") is None

    def test_a_damaged_file_of_measurements_is_none(self, tmp_path):
        (tmp_path / "jobs" / "runs").mkdir(parents=True)
        (tmp_path / "jobs" / "runs" / ".probes.json").write_text('[{"clu')
        assert read_probes(tmp_path) == []
        with pytest.raises(OSError):
            write_probe(tmp_path / "nowhere", find_probe(trial(NODE, NODE, probe=measured(0.001, 1e8))))
