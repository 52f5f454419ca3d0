"""Profiles of sites: chosen, checked, and what scripts are made of them.

The scripts of the shipped examples are compared whole with tests/golden/sites, which
`python -m tests.submission.test_site_profiles` writes anew, to be read. No apptainer, pyxis or HyperPod was at hand:
those are tested as text, and with stand-ins for apptainer and pyxis's srun that record their arguments.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hpcdist.cli.study import read_study
from hpcdist.config.json_schema import build_schema
from hpcdist.config.project import Project, find_project
from hpcdist.config.site import Container, Partitions, Site
from hpcdist.errors import UsageError
from hpcdist.slurm import releases
from hpcdist.slurm.releases import DIFFERENCES, NEWEST, OLDEST, holds, parse_release
from hpcdist.submission.prepare import complete_job, prepare
from hpcdist.submission.render import packaged_templates
from tests.conftest import run_hpcdist

GOLDEN = Path(__file__).parents[1] / "golden" / "sites"
SITES = packaged_templates() / "sites"
ROOT = "/home/ada/mnist study"
TRAIN = {"command": ["python", "train.py"]}

# Name of the golden file: the example, the profile in it, and the options.
CASES = {
    "per-cpu-memory-2x4": ("per-cpu-memory", None, {"nodes": 2, "gpus": 4, **TRAIN}),
    "per-cpu-memory-2x2cpu": ("per-cpu-memory", None, {"nodes": 2, "gpus": 0, "tasks_per_node": 2}),
    "per-cpu-memory-staged": ("per-cpu-memory", None, {"nodes": 2, "stage_data": True}),
    "gres-only-1x2": ("gres-only", None, {"gpus": 2, **TRAIN}),
    "typed-gpus-alpha-2x4": ("typed-gpus", "alpha", {"nodes": 2, "gpus": 4}),
    "typed-gpus-beta-2x4": ("typed-gpus", "beta", {"nodes": 2, "gpus": 4}),
    "typed-gpus-beta-array": ("typed-gpus", "beta", {"array": "0-3", **TRAIN}),
    "container-only-2x2": ("container-only", None, {"nodes": 2, "gpus": 2}),
    "container-only-staged": ("container-only", None, {"nodes": 2, "stage_data": True, **TRAIN}),
    "container-only-cpu": ("container-only", None, {"gpus": 0, **TRAIN}),
    "pyxis-2x8": ("pyxis", None, {"nodes": 2, "gpus": 8, **TRAIN}),
    "pyxis-staged": ("pyxis", None, {"nodes": 2, "stage_data": True}),
    "hyperpod-4x8": ("hyperpod", None, {"nodes": 4, "gpus": 8}),
}


def render_case(name: str, folder: Path) -> str:
    example, profile, options = CASES[name]
    (folder / "hpcdist.toml").write_text((SITES / f"{example}.toml").read_text())
    project = find_project(folder, {}, profile=profile)
    # The same paths on every machine.
    text = msgspec.json.encode(project.site).decode().replace(str(folder), ROOT)
    site = msgspec.structs.replace(msgspec.json.decode(text, type=Site), python="/opt/venv/bin/python")
    project = Project(root=Path(ROOT), config=None, site=site, defaults=project.defaults)
    return prepare(complete_job(options, project), project, backend="slurm", run=None, workdir=Path(ROOT)).script


@pytest.mark.parametrize("name", CASES)
def test_the_script_of_a_shipped_example_is_the_golden_one(name, tmp_path):
    assert render_case(name, tmp_path) == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_script_of_a_shipped_example_is_good_bash(name):
    path = GOLDEN / f"{name}.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    done = subprocess.run([shellcheck, "--exclude=SC2016", path], capture_output=True, text=True)
    assert done.stdout == ""


def test_every_shipped_example_is_rendered_and_no_golden_file_is_left_over():
    assert {path.stem for path in SITES.glob("*.toml")} == {example for example, _, _ in CASES.values()}
    assert {path.stem for path in GOLDEN.glob("*.sbatch")} == set(CASES)


TWO = """
account = "ab1"
setup = ["echo both"]
[sites.alpha]
cluster = "alpha*"
cpus-per-task = 8
setup = ["echo alpha"]
[sites.alpha.partitions]
gpu = "a100"
[sites.beta]
cluster = "beta"
account = "xy2"
"""


@pytest.fixture
def two(tmp_path):
    (tmp_path / "hpcdist.toml").write_text(TWO)
    return tmp_path


def test_the_cluster_s_name_chooses_a_profile(two):
    project = find_project(two, {}, ask_cluster=lambda: "alpha-3")
    assert project.profile == "alpha"
    assert project.defaults == {"account": "ab1", "cpus_per_task": 8, "setup": ["echo both", "echo alpha"]}
    assert project.site.partitions == Partitions(gpu="a100")
    assert find_project(two, {}, ask_cluster=lambda: "beta").defaults["account"] == "xy2"


def test_a_profile_asked_for_goes_before_the_cluster_s_name(two):
    assert find_project(two, {}, profile="beta", ask_cluster=lambda: "alpha-3").profile == "beta"
    assert find_project(two, {"HPCDIST_SITE": "beta"}, ask_cluster=lambda: "alpha-3").profile == "beta"


def test_without_slurm_no_profile_is_chosen(two):
    project = find_project(two, {})
    assert (project.profile, project.defaults["account"]) == (None, "ab1")


def test_a_cluster_without_a_profile_is_an_error(two):
    with pytest.raises(UsageError, match="no profile is for the cluster 'gamma'") as caught:
        find_project(two, {}, ask_cluster=lambda: "gamma")
    assert "--site" in caught.value.hint
    with pytest.raises(UsageError, match="there is no profile 'gamma'"):
        find_project(two, {}, profile="gamma")


def test_a_file_without_profiles_does_not_ask_for_the_cluster(tmp_path):
    (tmp_path / "hpcdist.toml").write_text('partition = "gpu"\n')
    asked = []
    find_project(tmp_path, {}, ask_cluster=lambda: asked.append(1))
    assert not asked


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[container]\nimag = 'x.sif'", "container.imag"),
        ("[partitions]\ngpus = 'x'", "partitions.gpus"),
        ("[sites.alpha]\npartitoin = 'x'", "sites.alpha.partitoin"),
        ("[sites.alpha.container]\nimag = 'x.sif'", "sites.alpha.container.imag"),
        ("[sites.alpha.sites.beta]\nqos = 'x'", "sites.alpha.sites"),
        ("[prices]\nper-gpu-hours = 1", "prices.per_gpu_hours"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path(tmp_path, text, path):
    (tmp_path / "hpcdist.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        find_project(tmp_path, {})
    assert repr(path) in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("venv = 'a'\nconda = 'b'", "conda and venv exclude each other"),
        ("slurm_version = 'new'", "'new' is no release"),
        ("scratch = '/tmp/$(id)'", "scratch"),
        ("[container]\nbinds = ['/a']", "image"),
        ("[container]\nimage = 'a.sif'\nbinds = ['relative']", "'relative' is no folder"),
        ("partitions = 'gpu'", "partitions is 'gpu', expected a table"),
        ("sites = 3", "no table of profiles"),
        ("[container]\nimage = 'a.sif'\nruntime = 'docker'", "docker"),
    ],
)
def test_a_setting_that_can_not_be_is_refused(tmp_path, text, said):
    (tmp_path / "hpcdist.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        find_project(tmp_path, {})
    assert said in caught.value.message


def script_of(options, **site):
    project = Project(root=Path(ROOT), config=None, site=Site(python="/opt/venv/bin/python", **site), defaults={})
    return prepare(complete_job(options, project), project, backend="slurm", run=None, workdir=Path(ROOT)).script


def test_a_partition_is_chosen_by_what_a_layout_needs():
    partitions = Partitions(gpu="big", cpu="small")
    assert "--partition=big\n" in script_of({}, partitions=partitions)
    assert "--partition=small\n" in script_of({"gpus": 0}, partitions=partitions)
    assert "--partition=mine\n" in script_of({"partition": "mine"}, partitions=partitions)
    assert "--partition" not in script_of({"gpus": 0}, partitions=Partitions(gpu="big"))


def test_teardown_runs_after_the_tasks_and_keeps_their_status(tmp_path):
    script = script_of({**TRAIN}, teardown=("false", "echo over; unset_variable=$nobody"))
    end = script[script.index("# Whatever becomes of these lines") :]
    done = subprocess.run(["bash", "-c", f"set -eu; rc=7\n{end}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "over\n")


START = 'while [[ $1 == --* ]]; do shift; done\nexec "$@"'
RECORD = 'printf "%s\\n" "$@"'


def run_launch(script: str, tmp_path: Path, srun: str = START) -> list[str]:
    """What was recorded of the script's last step, srun and apptainer being stand-ins."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    for name, text in (("srun", srun), ("apptainer", RECORD)):
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    launch = script[script.index("\nrc=0\n") : script.index("# The tasks' status")]
    head = "set -eu\nrun_dir=/r\npython=python3\nSLURM_CPUS_PER_TASK=2\n"
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", head + launch], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def test_apptainer_gets_the_folders_and_the_rank_inside(tmp_path):
    box = Container(image="/images/my torch.sif", binds=("/datasets",), options=("--cleanenv",))
    script = script_of({"gpus": 2, "command": ["python", "a b.py"]}, container=box)
    given = run_launch(script, tmp_path)
    assert given == [
        "exec",
        "--nv",
        "--bind",
        f"{ROOT}:{ROOT}",
        "--bind",
        "/datasets:/datasets",
        "--pwd",
        ROOT,
        "--cleanenv",
        "/images/my torch.sif",
        "python3",
        "-m",
        "hpcdist.rank",
        "--",
        "python",
        "a b.py",
    ]
    assert "--nv" not in script_of({"gpus": 0, **TRAIN}, container=box)
    # The head node's name is found before the container, which has no scontrol.
    two = script_of({"nodes": 2, **TRAIN}, container=box)
    assert two.index("scontrol show hostnames") < two.index("apptainer exec")


def test_srun_gets_pyxis_options_and_the_rank_behind_them(tmp_path):
    box = Container(
        runtime="pyxis", image="nvcr.io#nvidia/pytorch:24.05", binds=("/a:/b",), options=("--container-remap-root",)
    )
    given = run_launch(script_of({"gpus": 2, "command": ["python", "a b.py"]}, container=box), tmp_path, RECORD)
    # The options of pyxis's README; srun's own come first.
    assert [word for word in given if "container" in word] == [
        "--container-image=nvcr.io#nvidia/pytorch:24.05",
        f"--container-mounts={ROOT}:{ROOT},/a:/b",
        f"--container-workdir={ROOT}",
        "--container-remap-root",
    ]
    assert given[-6:] == ["python3", "-m", "hpcdist.rank", "--", "python", "a b.py"]


def test_a_container_s_ranks_are_not_told_to_stop_for_a_requeue_that_they_cannot_ask_for():
    box = Container(image="/a.sif")
    assert "--max-requeues" in script_of({}, container=box)
    assert "#SBATCH --signal" in script_of({})
    assert "#SBATCH --signal" not in script_of({}, container=box)
    assert "#SBATCH --requeue\n" in script_of({}, container=box)


def test_a_container_is_left_out_on_this_machine():
    project = Project(root=Path(ROOT), config=None, site=Site(container=Container(image="/a.sif")), defaults={})
    prepared = prepare(complete_job({"nodes": 1}, project), project, backend="local", run="a", workdir=Path(ROOT))
    assert "apptainer" not in prepared.script
    assert prepared.paths.python == sys.executable
    assert "here the ranks run without it" in prepared.note


def test_a_study_without_prices_takes_the_site_s(tmp_path):
    (tmp_path / "hpcdist.toml").write_text("[prices]\nper_gpu_hour = 2.5\n")
    project = find_project(tmp_path, {})
    study = tmp_path / "study.toml"
    study.write_text('name = "a"\nlayouts = ["1x1"]\n')
    assert read_study(study, project).prices.per_gpu_hour == 2.5
    study.write_text('name = "a"\nlayouts = ["1x1"]\n[prices]\nper-node-hour = 1\n')
    assert read_study(study, project).prices.per_gpu_hour is None


def test_the_schema_has_every_key_with_its_description(project):
    done = run_hpcdist("schema")
    assert done.code == 0
    schema = json.loads(done.out)
    assert schema == json.loads(msgspec.json.encode(build_schema()))
    keys = schema["properties"]
    assert {"partitions", "container", "gpu_flag", "account", "cpus_per_task", "epochs", "sites"} <= set(keys)
    assert keys["gpu_flag"]["enum"] == ["gpus-per-node", "gres"]
    assert keys["conda"]["description"].startswith("Conda environment to activate")
    assert not [name for name, schema in keys.items() if "description" not in schema]
    assert schema["$defs"]["Profile"]["properties"]["container"]


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("slurm 22.05.8", (22, 5)),
        ("slurm-wlm 20.11.4\n", (20, 11)),
        ("23.11", (23, 11)),
        ("slurm 26.05.0-rc1", (26, 5)),
    ],
)
def test_a_release_is_read(text, release):
    assert parse_release(text) == release


def test_every_difference_has_a_source_and_lies_between_the_releases():
    for row in DIFFERENCES:
        assert OLDEST <= row.since <= NEWEST, row.name
        assert row.until is None or row.since < row.until
        assert row.source
        assert row.care


@pytest.mark.parametrize(
    ("release", "expected"), [("20.11", False), ("22.05", False), ("23.02", True), ("26.05", True)]
)
def test_from_23_02_on_a_script_says_where_its_log_goes(release, expected):
    assert holds("log-folders-are-made", release) is expected
    assert holds("log-folders-are-made", None) is False
    script = script_of({**TRAIN}, slurm_version=release)
    assert (f'#SBATCH --output="{ROOT}/jobs/runs/train-1x1-%j/logs/%j_batch.out"\n' in script) is expected
    # Slurm made the folder: it is closed to others all the same.
    assert ('chmod 700 -- "$run_dir"\n' in script) is expected
    mine = script_of({**TRAIN, "sbatch": {"output": "mine.log"}}, slurm_version=release)
    assert re.findall("--output=(.*)", mine.partition("set -eo")[0]) == ["mine.log"]


@pytest.mark.parametrize("release", ["20.11", "22.05", "23.02", "23.11", "24.05", "24.11", "25.05", "26.05"])
def test_every_release_gets_cpus_per_task_at_every_step(release):
    script = script_of({"nodes": 2, "stage_data": True}, slurm_version=release)
    steps = re.findall(r"^srun .*", script, re.MULTILINE)
    assert len(steps) == 3
    assert (
        script.count('--cpus-per-task="$SLURM_CPUS_PER_TASK"') == 2
    )  # the ranks', and that of both once-per-node steps
    assert all("once_per_node" in step or "--cpus-per-task" in step for step in steps)


def test_the_release_is_asked_where_slurm_is_set_up(project, stand_in, monkeypatch):
    stand_in("sbatch", "echo slurm 24.11.3")
    directive = "#SBATCH --output="
    monkeypatch.setattr(releases, "PLACES", ())
    assert releases.find_release() is None
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    assert releases.find_release() == "24.11"
    assert directive in run_hpcdist("render", "--", "true").out
    (project / "hpcdist.toml").write_text('slurm_version = "22.05"\n')
    assert directive not in run_hpcdist("render", "--", "true").out
    stand_in("sbatch", "exit 1")
    assert releases.find_release() is None


if __name__ == "__main__":
    import tempfile

    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            (GOLDEN / f"{case}.sbatch").write_text(render_case(case, Path(scratch)))
