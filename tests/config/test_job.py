import pytest

from hpcdist.config.job import Layout, build_job, check_keys, check_name
from hpcdist.config.training import Training
from hpcdist.errors import UsageError


@pytest.mark.parametrize(
    ("layout", "name", "world"),
    [
        (Layout(), "1x1", 1),
        (Layout(nodes=2, gpus=1), "2x1", 2),
        (Layout(nodes=2, gpus=2), "2x2", 4),
        (Layout(gpus=0), "1x1cpu", 1),
        (Layout(nodes=3, gpus=0, tasks_per_node=4), "3x4cpu", 12),
    ],
)
def test_a_layout_counts_its_ranks(layout, name, world):
    assert (layout.name, layout.world_size) == (name, world)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 0},
        {"gpus": -1},
        {"gpus": 2, "tasks_per_node": 3},
        {"mem": "4G", "mem_per_cpu": "1G"},
        {"mem": "4 gigs"},
        {"time": "soon"},
        {"cpus_per_task": 0},
    ],
)
def test_an_impossible_layout_is_refused(wrong):
    with pytest.raises(UsageError):
        Layout(**wrong)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0}, {"batch_size": 1, "batch_size_per_rank": 1}])
def test_impossible_training_options_are_refused(wrong):
    with pytest.raises(UsageError):
        Training(**wrong)


@pytest.mark.parametrize("name", ["", " ", "bash", "interactive", "a\nb", "a\x1b[31mb", "x" * 201])
def test_a_name_that_would_be_misread_is_refused(name):
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("mnist", "mnist"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "job"),
        ("a b$(id)", "a-b-id"),
        ("naïve", "na-ve"),
        ("-rf", "rf"),
        ("a/b", "a-b"),
    ],
)
def test_a_hostile_name_makes_a_harmless_folder(name, slug):
    assert build_job({"name": name}).slug == slug


def test_flat_options_find_their_place():
    job = build_job({"nodes": 2, "gpus": 4, "epochs": 7, "partition": "gpu", "env": {"A": "b"}})
    assert (job.layout.nodes, job.layout.gpus, job.training.epochs) == (2, 4, 7)
    assert (job.partition, job.env, job.name) == ("gpu", {"A": "b"}, "mnist")


@pytest.mark.parametrize(
    ("command", "name"),
    [(["python", "src/train.py", "--lr", "1"], "train"), (["./run.sh"], "run"), (["hostname"], "hostname")],
)
def test_a_command_names_its_job(command, name):
    assert build_job({"command": command}).name == name


def test_a_wrong_type_is_reported_with_its_key():
    with pytest.raises(UsageError, match=r"nodes"):
        build_job({"nodes": "two"})


def test_an_unknown_key_is_reported_with_the_nearest_right_one():
    with pytest.raises(UsageError, match=r"site.toml: unknown key 'partitoin'") as caught:
        check_keys(["partitoin"], "site.toml")
    assert caught.value.hint == "did you mean 'partition'?"


@pytest.mark.parametrize(
    "wrong",
    [
        {"array": "0-9; rm -rf /"},
        {"env": {"A B": "c"}},
        {"sbatch": {"--x y": "1"}},
        {"launcher": "torchrun"},
    ],
)
def test_a_job_that_could_not_be_written_safely_is_refused(wrong):
    with pytest.raises(UsageError):
        build_job(wrong)


@pytest.mark.parametrize("options", [{"command": ["true"]}, {"preflight": False}])
def test_a_bad_node_is_replaced_only_where_a_preflight_finds_it(options):
    assert build_job({"replace_bad_node": True}).replace_bad_node
    with pytest.raises(UsageError, match="replace_bad_node"):
        build_job({"replace_bad_node": True, **options})
