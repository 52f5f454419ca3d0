"""`hpcdist init` on the real cluster: its file needs no edit for jobs to be taken."""

import tomllib

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]
# The testbed's own file would be read in place of the one that is written here.
OWN = {"HPCDIST_CONFIG": ""}


@pytest.fixture
def settings(testbed, project):
    done = testbed.hpcdist("init", cwd=project, env=OWN)
    assert done.code == 0, done.err
    print((project / "hpcdist.toml").read_text())
    return tomllib.loads((project / "hpcdist.toml").read_text())


def test_the_file_says_what_the_testbed_is(settings, testbed):
    assert settings["cluster"] == "testbed"
    assert settings["slurm_version"] == testbed.run("sbatch", "-V").split()[-1][:5]
    # Nodes of 4 CPUs, 8000 MiB and 2 GPUs (testbed/cluster/config.py); main is the default partition.
    assert settings["partitions"]["gpu"] == "main"
    assert (settings["gpu_flag"], settings["cpus_per_task"]) == ("gpus-per-node", 2)
    assert settings["mem_per_cpu"] == "2000M"
    assert "gpu_type" not in settings
    assert settings["accelerator"] == "cpu"  # its GPUs are of type fake


@pytest.mark.parametrize(
    "layout", [("--nodes", "1", "--gpus", "1"), ("--nodes", "2", "--gpus", "2"), ("--nodes", "2", "--gpus", "0")]
)
def test_slurm_would_take_jobs_without_an_edit(settings, testbed, project, layout):
    done = testbed.hpcdist("submit", *layout, "--dry-run", "--", "true", cwd=project, env=OWN)
    assert done.code == 0, done.err
    assert "to start at" in done.out + done.err


def test_again_it_changes_nothing(settings, testbed, project):
    before = (project / "hpcdist.toml").read_text()
    assert "is as it was" in testbed.hpcdist("init", cwd=project, env=OWN).err
    assert (project / "hpcdist.toml").read_text() == before


def test_a_profile_is_chosen_by_the_cluster_s_name(testbed, project):
    (project / "hpcdist.toml").write_text(
        '[sites.other]\ncluster = "other"\nqos = "x"\n[sites.here]\ncluster = "test*"\npartition = "high"\n'
    )
    script = testbed.hpcdist("render", "--", "true", cwd=project, env=OWN).out
    assert "#SBATCH --partition=high\n" in script
    assert testbed.hpcdist("render", "--site", "other", "--", "true", cwd=project, env=OWN).out.count("--qos=x") == 1


def test_data_is_staged_to_each_node_and_cleaned(testbed, project):
    (project / "data").mkdir()
    (project / "data" / "figures").write_text("1 2 3\n")
    arguments = ("--nodes", 2, "--gpus", 0, "--stage-data", "--wait", "--run", "staged", "--")
    command = ("bash", "-c", "cat $HPCDIST_DATA_DIR/figures; echo $HPCDIST_DATA_DIR")
    done = testbed.hpcdist("submit", *arguments, *command, cwd=project, env=OWN)
    assert done.code == 0, done.err
    said = "".join(path.read_text() for path in (project / "jobs/runs/staged/logs").glob("*.out"))
    assert said.count("1 2 3") == 2
    # The testbed's nodes share /tmp: one of the two may find the other's copy.
    assert said.count("data staged to /tmp/hpcdist-") == 2
