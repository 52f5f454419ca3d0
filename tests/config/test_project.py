import pytest

from hpcdist.config.job import merge_options
from hpcdist.config.project import find_project, read_options
from hpcdist.errors import UsageError


def test_the_nearest_file_upward_is_the_project(tmp_path):
    (tmp_path / "hpcdist.toml").write_text('partition = "gpu"\ngpu-flag = "gres"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    project = find_project(inner, {})
    assert project.root == tmp_path
    assert project.defaults == {"partition": "gpu"}
    assert project.site.gpu_flag == "gres"


def test_a_relative_data_folder_is_meant_from_its_file(tmp_path):
    (tmp_path / "hpcdist.toml").write_text('data_dir = "shared"\n')
    inner = tmp_path / "inner"
    inner.mkdir()
    assert find_project(inner, {}).defaults["data_dir"] == str(tmp_path / "shared")


def test_without_a_file_the_working_folder_is_the_project(tmp_path):
    project = find_project(tmp_path, {})
    assert (project.root, project.config, project.defaults) == (tmp_path, None, {})


def test_another_file_can_give_the_defaults(tmp_path):
    site = tmp_path / "cluster.toml"
    site.write_text('accelerator = "cpu"\n')
    project = find_project(tmp_path, {"HPCDIST_CONFIG": str(site)})
    assert (project.root, project.defaults) == (tmp_path, {"accelerator": "cpu"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("partitoin = 'x'", "unknown key 'partitoin'"),
        ("nodes = \n", "line 1"),
        ("gpu_flag = 'gpus'", "gpu_flag"),
    ],
)
def test_a_faulty_file_is_reported_with_its_path(tmp_path, text, expected):
    (tmp_path / "hpcdist.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        find_project(tmp_path, {})
    assert str(tmp_path / "hpcdist.toml") in caught.value.message
    assert expected in caught.value.message


def test_a_job_file_may_not_set_the_site(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('gpu_flag = "gres"\n')
    with pytest.raises(UsageError):
        read_options(path, site=False)


def test_later_sources_win_and_tables_are_merged():
    merged = merge_options(
        {"nodes": 1, "env": {"A": "1", "B": "1"}, "setup": ["module load cuda"], "mem": "4G"},
        {"nodes": 2, "env": {"B": "2"}, "setup": ["ulimit -n 99"], "mem_per_cpu": "1G"},
    )
    assert merged == {
        "nodes": 2,
        "env": {"A": "1", "B": "2"},
        "setup": ["module load cuda", "ulimit -n 99"],
        "mem_per_cpu": "1G",
    }
