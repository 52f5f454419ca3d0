"""What commands load, and how long they take to start."""

import subprocess
import sys

import pytest

from benchmarks import startup

HEAVY = {
    "matplotlib",
    "numpy",
    "pytorch_lightning",
    "rich",
    "submitit",
    "tensorboard",
    "torch",
    "tree_sitter",
    "tree_sitter_bash",
}


def loaded_by(program, project):
    code = f"import sys\n{program}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "program",
    [
        "import hpcdist",
        "import hpcdist; hpcdist.Layout(nodes=2)",
        "import hpcdist; hpcdist.submit",
        "import hpcdist.cli.main",
        "from hpcdist.cli.main import cli; cli.main(['render'], standalone_mode=False)",
        "from hpcdist.cli.main import cli; cli.main(['status'], standalone_mode=False)",
        "from hpcdist.cli.main import cli; cli.main(['seff', '--help'], standalone_mode=False)",
    ],
)
def test_neither_torch_nor_submitit_is_loaded(project, program):
    assert not loaded_by(program, project) & HEAVY


def test_to_look_for_the_project_no_template_engine_is_loaded(project):
    assert "jinja2" not in loaded_by(
        "from hpcdist.submission.open_project import open_project; open_project()", project
    )


def test_render_starts_about_as_fast_as_its_libraries():
    starts = startup.measure(runs=15)
    # In CPU time, and the quickest of each: what other processes on the machine add is not the program's.
    cpu_s = {name: min(start.cpu_s for start in starts[name]) for name in starts}
    assert cpu_s["hpcdist render --nodes 2"] <= 1.5 * cpu_s["import click, jinja2, msgspec"]
