"""README says what is so."""

import re
import subprocess
import sys
from pathlib import Path

from hpcdist.cli.main import COMMANDS
from hpcdist.config.project import Project
from hpcdist.config.site import Site
from hpcdist.submission.prepare import complete_job, prepare
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
HOME = Path("/home/ada/study")


def readme_script():
    """The script that README shows."""
    project = Project(root=HOME, config=None, site=Site(python=str(HOME / ".venv/bin/python")), defaults={})
    options = {"nodes": 2, "gpus": 1, "command": ["python", "train.py"]}
    return prepare(complete_job(options, project), project, backend="slurm", run=None, workdir=HOME).script


def test_the_script_shown_is_the_script_rendered():
    assert readme_script() in README


def test_every_command_is_named_and_no_other():
    named = set(re.findall(r"\| `hpcdist ([a-z]+)", README)) | set(re.findall(r", `hpcdist ([a-z]+)", README))
    assert named == set(COMMANDS)


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_python_shown_runs():
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", f"import ast; ast.parse({program!r})"], check=True)
    assert "hpcdist.submit(hpcdist.Layout(" in program


def test_every_make_target_shown_exists():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
