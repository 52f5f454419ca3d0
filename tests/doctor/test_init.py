"""`hpcdist init`: what a cluster says, read; what is written from it; and written again.

The cluster's words are in tests/data/init-22.05, written by hand; sbatch's policies are stand-ins.
"""

import tomllib
from pathlib import Path

import pytest

from hpcdist.doctor.init_file import Setting, find_share, format_section, format_value, merge_file
from hpcdist.slurm.cluster import (
    Association,
    Node,
    Partition,
    is_closed,
    list_qos_to_try,
    order_partitions,
    parse_associations,
    parse_fields,
    parse_modules,
    parse_qos_limits,
    parse_scontrol,
)
from tests.conftest import run_hpcdist

DATA = Path(__file__).parents[1] / "data" / "init-22.05"
NODES, PARTITIONS = (DATA / "nodes").read_text(), (DATA / "partitions").read_text()


def test_a_value_with_spaces_and_equal_signs_is_one_value():
    fields = parse_fields(
        "NodeName=n1 OS=Linux 5.14 #1 SMP RealMemory=8000 Reason=GPU=3 fell off CfgTRES=cpu=4,gres/gpu=2"
    )
    assert (fields["OS"], fields["RealMemory"]) == ("Linux 5.14 #1 SMP", "8000")
    assert fields["CfgTRES"] == "cpu=4,gres/gpu=2"


def test_kinds_of_nodes_are_counted_and_broken_ones_are_not():
    nodes = {one.name: one.nodes for one in parse_scontrol(PARTITIONS, NODES)}
    # gpu01 and gpu02 are alike; gpu03 is in no debug partition; gpu04 is drained. 515000 - 3000 (MemSpecLimit).
    big = {"cpus": 64, "memory_bytes": 512000 * 1024**2, "gpus": 4, "gpu_type": "a100", "scratch_mib": 900000}
    assert nodes == {
        "debug": (Node(count=2, **big),),
        "gpu": (Node(count=2, **big), Node(count=1, **big)),
        "staff": (Node(count=2, **big), Node(count=1, **big)),
        "standard": (Node(count=2, cpus=128, memory_bytes=257000 * 1024**2),),
        "old": (),
    }


def test_partitions_are_read_and_the_likeliest_goes_first():
    partitions = parse_scontrol(PARTITIONS, NODES)
    assert [one.name for one in partitions] == ["debug", "gpu", "staff", "standard", "old"]
    gpu = partitions[1]
    assert (gpu.time_limit_s, gpu.default_time_s, gpu.accounts, gpu.is_default) == (2 * 86400, 3600, (), False)
    assert partitions[2].accounts == ("staff",)
    assert [one.name for one in order_partitions(partitions, gpus=True)] == ["gpu", "staff", "debug"]
    assert order_partitions(partitions, gpus=False)[0].name == "standard"


def test_accounts_limits_and_modules_are_read():
    rows = parse_associations((DATA / "associations").read_text())
    assert [(one.account, one.qos, one.default_qos) for one in rows] == [
        ("lab-ada", ("normal", "long"), "normal"),
        ("teaching", ("normal",), None),
    ]
    limits = parse_qos_limits((DATA / "qos").read_text())
    assert limits["normal"] == "time 1-00:00:00, per job gres/gpu=4, per user gres/gpu=8, jobs per user 20"
    assert limits["long"] == "time 7-00:00:00, jobs per user 2"
    # Lmod's and Environment Modules' terse lists (module(1)).
    listed = "/opt/modules:\ncuda/12.4(default)\ncuda/11.8\ngcc/\n----- \npython/3.11 (L)\n"
    assert parse_modules(listed) == ["cuda/12.4", "cuda/11.8", "python/3.11"]


def test_a_gpu_s_share_is_its_part_of_the_node():
    share = find_share(parse_scontrol(PARTITIONS, NODES)[1])
    assert (share.cpus, share.mem_per_cpu_mib) == (16, 8000)  # 64 CPUs / 4 GPUs; 512000 / 4 / 16
    three = Partition(name="gpu", nodes=(Node(count=1, cpus=40, gpus=3, threads_per_core=2),))
    assert (find_share(three).cpus, find_share(three).mem_per_cpu_mib) == (12, None)
    assert find_share(Partition(name="gpu", nodes=(Node(count=1, cpus=8),))) is None


@pytest.mark.parametrize("value", ["a", 'a "b" \\ c', 16, True, {"gpu": "a", "cpu": "b c"}])
def test_a_value_is_read_back_as_it_was(value):
    assert tomllib.loads(f"key = {format_value(value)}") == {"key": value}


OLD = [
    Setting(key="partition", value="gpu", source="sinfo"),
    Setting(key="cpus_per_task", value=8, source="nodes"),
    Setting(key="account", value="a", source="sacctmgr"),
]
NEW = [
    Setting(key="partition", value="gpu2", source="sinfo"),
    Setting(key="cpus_per_task", value=16, source="nodes"),
    Setting(key="account", value="b", source="sacctmgr"),
    Setting(key="gpu_flag", value="gres", source="tried"),
]
WRITTEN = "\n".join(["# head", *format_section(OLD)]) + "\n"


def test_written_again_without_a_change_it_stays_as_it_was():
    merged = merge_file(WRITTEN, OLD, None, "f")
    assert (merged.text, merged.kept) == (WRITTEN, ())


def test_edits_stay_and_what_the_cluster_changed_is_replaced():
    mine = WRITTEN.replace("cpus_per_task = 8", "cpus_per_task = 4  # my loader is slow").replace('account = "a"\n', "")
    mine += '\n[env]\nNOTE = "x"\n'
    merged = merge_file(mine, NEW, None, "f")
    assert tomllib.loads(merged.text) == {
        "partition": "gpu2",
        "cpus_per_task": 4,
        "gpu_flag": "gres",
        "env": {"NOTE": "x"},
    }
    assert "# my loader is slow" in merged.text
    assert [sentence.partition(";")[0] for sentence in merged.kept] == ["cpus_per_task = 4 stays", "account stays out"]
    assert merge_file(merged.text, NEW, None, "f").text == merged.text


def test_a_file_written_by_hand_keeps_all_it_has():
    merged = merge_file('# mine\npartition = "x"\n[partitions]\ncpu = "y"\n', NEW, None, "f")
    assert tomllib.loads(merged.text) == {
        "partition": "x",
        "cpus_per_task": 16,
        "account": "b",
        "gpu_flag": "gres",
        "partitions": {"cpu": "y"},
    }


def test_another_cluster_gets_a_profile_of_its_own_and_keeps_edits_there():
    merged = merge_file(WRITTEN, NEW, "beta", "f")
    values = tomllib.loads(merged.text)
    assert (values["partition"], values["sites"]["beta"]["partition"]) == ("gpu", "gpu2")
    edited = merged.text.replace("cpus_per_task = 16", "cpus_per_task = 3") + '\n[sites.gamma]\nqos = "z"\n'
    again = merge_file(edited, OLD, "beta", "f")
    values = tomllib.loads(again.text)
    assert values["sites"]["beta"] == {"partition": "gpu", "cpus_per_task": 3, "account": "a", "gpu_flag": "gres"}
    assert values["sites"]["gamma"] == {"qos": "z"}
    assert values["cpus_per_task"] == 8


@pytest.fixture
def cluster(project, stand_in):
    """A cluster that says what is in the data; sbatch refuses what `policy` (a shell condition on $script) matches."""
    stand_in(
        "scontrol",
        f'cd {DATA}; case "$*" in "show config") cat config;; *node) cat nodes;; *partition) cat partitions;; esac',
    )
    stand_in(
        "sacctmgr",
        f'cd {DATA}; case "$*" in *associations*) cat associations;; *qos*) cat qos;; *user*) cat user;; esac',
    )
    stand_in("srun", 'echo "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"')
    stand_in("seff", "exit 0")

    def refuse(policy, words="Requested node configuration is not available"):
        stand_in(
            "sbatch",
            f'[ "$1" = -V ] && echo slurm 22.05.8 && exit\nscript=$(cat "${{@: -1}}")\n'
            f'if {policy}; then echo "sbatch: error: {words}" >&2; exit 1; fi\n'
            'echo "sbatch: Job 9 to start at 2026-11-21T10:00:00 using 2 processors on nodes n1" >&2',
        )

    refuse("false")
    return refuse


def read_settings(project):
    return tomllib.loads((project / "hpcdist.toml").read_text())


def test_init_writes_what_the_cluster_says_and_submit_takes_it(project, cluster):
    done = run_hpcdist("init")
    assert (done.code, done.out.strip()) == (0, str(project / "hpcdist.toml"))
    assert read_settings(project) == {
        "cluster": "alpha",
        "slurm_version": "22.05",
        "account": "lab-ada",
        "partitions": {"gpu": "gpu", "cpu": "standard"},
        "gpu_flag": "gpus-per-node",
        "cpus_per_task": 16,
        "mem_per_cpu": "8000M",
        "scratch": "/local",
    }
    text = (project / "hpcdist.toml").read_text()
    for remark in (
        "# CPUs per GPU: 64 CPUs, 512000 MiB and 4 GPU(s) on 2 node(s) of partition gpu\n",
        "# further accounts of yours: teaching\n",
        "# QOS long: time 7-00:00:00, jobs per user 2 (sacctmgr show qos)\n",
        "# partition gpu: time limit 2-00:00:00, 01:00:00 where none is asked for\n",
        "# containers: srun has pyxis",
        "# seff: on PATH\n",
        "# accounting: on (accounting_storage/slurmdbd), usage by jobacct_gather/cgroup",
    ):
        assert remark in text, remark
    script = run_hpcdist("render", "--nodes", "2", "--", "python", "train.py").out
    for line in (
        "--partition=gpu",
        "--account=lab-ada",
        "--cpus-per-task=16",
        "--mem-per-cpu=8000M",
        "--gpus-per-node=1",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --partition=standard\n" in run_hpcdist("render", "--gpus", "0").out


def test_init_again_changes_nothing_and_keeps_edits(project, cluster):
    run_hpcdist("init")
    path = project / "hpcdist.toml"
    assert "is as it was" in run_hpcdist("init").err
    path.write_text(path.read_text().replace("cpus_per_task = 16", "cpus_per_task = 12"))
    cluster("[[ $script == *--gpus-per-node* ]]", "use --gres")
    done = run_hpcdist("init")
    assert "yours: cpus_per_task = 12 stays; the cluster says 16" in done.err
    assert '-gpu_flag = "gpus-per-node"' in done.err
    assert read_settings(project)["gpu_flag"] == "gres"
    assert read_settings(project)["cpus_per_task"] == 12


def test_a_site_that_refuses_untyped_gpus_gets_a_type(project, cluster):
    cluster("[[ $script == *--gpus-per-node=1* || $script == *gpu:1* ]]", "GPUs must be requested by type")
    run_hpcdist("init")
    settings = read_settings(project)
    assert (settings["gpu_flag"], settings["gpu_type"]) == ("gpus-per-node", "a100")
    assert (
        "# refused here: --partition=gpu --gres=gpu:1: GPUs must be requested by type"
        in (project / "hpcdist.toml").read_text()
    )


def test_a_partition_that_the_user_may_not_use_is_passed_over(project, cluster):
    cluster("[[ $script == *--partition=gpu* || $script == *--partition=staff* ]]", "Invalid account or partition")
    run_hpcdist("init")
    assert read_settings(project)["partitions"]["gpu"] == "debug"


def test_a_partition_whose_lists_leave_the_user_out_goes_last():
    # `sbatch --test-only` takes jobs for them where EnforcePartLimits is NO; as Slurm 22.05.8 prints the lists.
    lists = {"a": "DenyAccounts=course", "b": "AllowAccounts=staff,root", "c": "AllowQos=long", "d": "AllowQos=course"}
    listed = "\n".join(f"PartitionName={name} AllowGroups=ALL {said} State=UP" for name, said in lists.items())
    node = f"NodeName=n State=IDLE CPUTot=4 Gres=gpu:1 Partitions={','.join(lists)}"
    partitions = parse_scontrol(listed, node)
    mine = Association(account="course", qos=("course", "exam"), default_qos="exam")
    assert [one.name for one in partitions if is_closed(one, mine)] == ["a", "b", "c"]
    assert [one.name for one in order_partitions(partitions, mine, gpus=True)] == ["d", "a", "b", "c"]
    assert list_qos_to_try(partitions[3], mine) == ["course"]  # Slurm would take exam, which d does not


def test_a_qos_that_must_be_named_is_found(project, cluster):
    cluster("[[ $script != *--qos=long* ]]", "Invalid qos specification")
    run_hpcdist("init")
    settings = read_settings(project)
    assert (settings["qos"], settings["partitions"]) == ("long", {"gpu": "gpu", "cpu": "standard"})
    text = (project / "hpcdist.toml").read_text()
    assert "# refused here: --partition=gpu --qos=normal --gpus-per-node=1: Invalid qos specification\n" in text
    assert "#SBATCH --qos=long\n" in run_hpcdist("render", "--", "true").out


def test_where_nothing_is_taken_the_file_says_why(project, cluster):
    cluster("true", "Job submission is disabled")
    run_hpcdist("init")
    text = (project / "hpcdist.toml").read_text()
    assert "# refused here: --partition=gpu --gpus-per-node=1: Job submission is disabled\n" in text
    assert "partitions" not in read_settings(project)


def test_memory_that_is_refused_is_left_out(project, cluster):
    cluster("[[ $script == *--mem-per-cpu* ]]", "Memory specification can not be satisfied")
    run_hpcdist("init")
    assert "mem_per_cpu" not in read_settings(project)
    assert read_settings(project)["cpus_per_task"] == 16


def test_where_no_gpu_can_be_had_cpu_layouts_are_the_default(project, cluster):
    cluster("[[ $script == *gpu* ]]")
    run_hpcdist("init")
    settings = read_settings(project)
    assert (settings["gpus"], settings["partitions"]) == (0, {"cpu": "standard"})


def test_a_dry_run_prints_the_file_and_writes_none(project, cluster):
    done = run_hpcdist("init", "--dry-run")
    assert tomllib.loads(done.out)["cluster"] == "alpha"
    assert not (project / "hpcdist.toml").exists()


def test_without_slurm_a_small_file_is_written_that_says_so(project):
    done = run_hpcdist("init", "--backend", "local")
    assert done.code == 0
    assert set(read_settings(project)) == {"cpus_per_task"}
    assert "There is no Slurm on this machine" in (project / "hpcdist.toml").read_text()


def test_a_class_takes_over_one_student_s_file(project, cluster):
    shared = project / "shared"
    shared.mkdir()
    (shared / "hpcdist.toml").write_text(
        'partition = "class"\nvenv = "env"\n[container]\nimage = "images/a.sif"\n[sites.b]\nvenv = "/opt/env"\n'
    )
    mine = project / "mine"
    mine.mkdir()
    done = run_hpcdist("init", "--from", shared, cwd=mine)
    assert done.code == 0, done.err
    settings = read_settings(mine)
    assert settings["venv"] == f"{shared}/env"
    assert settings["container"]["image"] == f"{shared}/images/a.sif"
    assert settings["sites"]["b"]["venv"] == "/opt/env"
    (mine / "hpcdist.toml").write_text('partition = "other"\n')
    done = run_hpcdist("init", "--from", shared / "hpcdist.toml", cwd=mine)
    assert (done.code, '-partition = "other"' in done.err) == (2, True)
    assert run_hpcdist("init", "--from", shared, "--force", cwd=mine).code == 0
    assert read_settings(mine)["partition"] == "class"
    assert run_hpcdist("init", "--from", project / "nowhere", cwd=mine).code == 2


def test_a_faulty_file_is_told_and_left_alone(project, cluster):
    (project / "hpcdist.toml").write_text("partitoin = 'x'\n")
    done = run_hpcdist("init")
    assert done.code == 2
    assert "partitoin" in done.err
    assert (project / "hpcdist.toml").read_text() == "partitoin = 'x'\n"
