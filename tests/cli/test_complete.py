"""What Tab completes, as the shells ask for it; and that every command's help shows how it is used."""

import json
import os
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from hpcdist.cli.main import COMMANDS, cli
from tests.conftest import HPCDIST, run_hpcdist


@pytest.fixture
def runs(project, stand_in):
    """Two runs, the later one first, a study, two sites, and a cluster with two partitions."""
    for at, (name, job_id) in enumerate((("mnist-2x1-aa", "1234"), ("train-1x1-bb", None))):
        folder = project / "jobs" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"job_id": job_id, "backend": "slurm"}))
        os.utime(folder, (at, at))
    (project / "jobs" / "studies" / "layouts").mkdir(parents=True)
    (project / "jobs" / "studies" / "layouts" / "study.json").write_text("{}")
    (project / "hpcdist.toml").write_text('[sites.alpha]\ncluster = "alpha*"\n[sites.beta]\n')
    stand_in("sinfo", "printf 'gpu\\ncpu\\ngpu\\n'")
    return project


def complete(line):
    """What is offered for the last word of a line."""
    *words, last = line.split(" ")
    return [one.value for one in ShellComplete(cli, {}, "hpcdist", "_X").get_completions(words, last)]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("wa", ["wait"]),
        ("wait ", ["train-1x1-bb", "1234", "mnist-2x1-aa"]),
        ("why 12", ["1234"]),
        ("seff 1234 mn", ["mnist-2x1-aa"]),
        ("rerun tr", ["train-1x1-bb"]),
        ("report l", ["layouts"]),
        ("report 1", ["1234"]),
        ("study status ", ["layouts"]),
        ("seff --study ", ["layouts"]),
        ("submit --partition ", ["cpu", "gpu"]),
        ("render --partition g", ["gpu"]),
        ("submit --site ", ["alpha", "beta"]),
        ("doctor --site b", ["beta"]),
        ("submit --dependency m", ["mnist-2x1-aa"]),
        ("submit --nod", ["--nodes", "--nodelist"]),
        ("lint --explain rank-", ["rank-death"]),
        ("lint --ignore port,rank-", ["port,rank-death"]),
        ("submit --launcher ", ["srun", "torchrun"]),
    ],
)
def test_tab_completes(runs, line, offered):
    assert complete(line) == offered


def test_files_are_left_to_the_shell(runs):
    for line in ("lint tr", "submit jobs/", "submit --nodes 2 -- tr"):
        (one,) = ShellComplete(cli, {}, "hpcdist", "_X").get_completions(line.split(" ")[:-1], line.split(" ")[-1])
        assert one.type == "file"


def test_tab_says_nothing_where_something_is_wrong(runs, stand_in):
    stand_in("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert complete("submit --partition ") == []
    (runs / "hpcdist.toml").write_text("partitoin = 'x'\n")
    assert complete("wait ") == []


# What the function that click gives each shell asks with, and the form of the answer that it reads (its source).
@pytest.mark.parametrize(
    ("shell", "asked", "answer"),
    [
        ("bash", {"COMP_WORDS": "hpcdist wait 12", "COMP_CWORD": "2"}, "plain,1234\n"),
        ("zsh", {"COMP_WORDS": "hpcdist wait 12", "COMP_CWORD": "2"}, "plain\n1234\nmnist-2x1-aa\n"),
        ("fish", {"COMP_WORDS": "hpcdist wait 12", "COMP_CWORD": "12"}, "plain,1234\tmnist-2x1-aa\n"),
    ],
)
def test_each_shell_is_answered(runs, shell, asked, answer):
    asked["_HPCDIST_COMPLETE"] = f"{shell}_complete"
    done = subprocess.run(HPCDIST, env=os.environ | asked, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (answer, "")


def test_bash_takes_the_line_that_switches_it_on(project, tmp_path):
    line = run_hpcdist("completion", "bash").out
    (tmp_path / "hpcdist").write_text(f'#!/bin/bash\nexec {sys.executable} -m hpcdist.cli.main "$@"\n')
    (tmp_path / "hpcdist").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = f"{line}\ncomplete -p hpcdist"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_hpcdist_completion" in done.stdout


def all_commands(command=cli, path=("hpcdist",)):
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from all_commands(command.get_command(context, name), (*path, name))


def test_every_command_s_help_has_a_line_and_an_example():
    for path, command in all_commands():
        assert "Example" in (command.epilog or ""), path
        assert path in command.epilog, path
        assert command.help, path
    for name, (_, line) in COMMANDS.items():
        assert line.endswith("."), name
        assert len(line) < 80, name


def test_every_option_s_help_is_there():
    for path, command in all_commands():
        for one in command.params:
            if isinstance(one, click.Option):
                assert one.help, f"{path} {one.name}"
