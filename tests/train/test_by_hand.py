"""Training without a scheduler: one command per machine, or torchrun. The machines are three commands on this one."""

import json
import os
import subprocess
import sys

import msgspec
import pytest

from hpcdist.config.job import JobSpec, Layout
from hpcdist.errors import UsageError
from hpcdist.submission.by_hand import parse_master
from tests.conftest import HPCDIST, run_hpcdist
from tests.train.conftest import clean_environment, free_port

TRAINING = ("--max-steps", "8", "--batch-size", "96", "--accelerator", "cpu", "--log-every", "4")


def start_node(number, port, *arguments, cwd):
    command = [*HPCDIST, "train", "--nodes", "3", "--node-rank", str(number), "--master", f"127.0.0.1:{port}"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    outputs = [process.communicate(timeout=200) for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory, mnist_dir):
    """The project's folder, and what each of three nodes said, which share it and were given one name."""
    folder, port = tmp_path_factory.mktemp("shared"), free_port()
    nodes = [
        start_node(number, port, "--run", "mine", "--data-dir", mnist_dir, *TRAINING, cwd=folder) for number in range(3)
    ]
    codes, outputs = finish(nodes)
    assert codes == [0, 0, 0], outputs
    return folder, outputs


def test_three_commands_train_together_and_leave_one_run(three_nodes):
    folder, _ = three_nodes
    ranks = [json.loads((folder / f"jobs/runs/mine/ranks/{rank}.json").read_text()) for rank in range(3)]
    assert [(rank["node_rank"], rank["world_size"], rank["exit_code"]) for rank in ranks] == [
        (0, 3, 0),
        (1, 3, 0),
        (2, 3, 0),
    ]
    assert [(rank["training"]["steps"], rank["training"]["finished"]) for rank in ranks] == [(8, True)] * 3
    assert sum(rank["training"]["samples"] for rank in ranks) == 8 * 96
    assert len({rank["training"]["accuracy"] for rank in ranks}) == 1


def test_node_0_shows_the_log_while_it_runs_and_the_figures_at_the_end(three_nodes):
    _, ((out, err), (second_out, _), _) = three_nodes
    assert "layout 3x1cpu: 3 rank(s)" in out
    assert "finished: test accuracy" in out
    assert "Test accuracy:" in err
    assert "finished:" not in second_out


def test_its_report_and_logs_are_those_of_any_run(three_nodes):
    folder, _ = three_nodes
    reported = run_hpcdist("report", "mine", cwd=folder)
    assert reported.code == 0, reported.err
    assert "3x1cpu" in reported.out
    assert "COMPLETED" in run_hpcdist("status", "mine", cwd=folder).out
    assert "finished: test accuracy" in run_hpcdist("logs", "mine", cwd=folder).out
    assert list((folder / "tb_logs" / "mnist" / "3x1cpu-mine").glob("events.*"))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (("--lr", "0.1"), "other options: lr 0.01, not 0.1\n"),
        (("--model", "vgg"), "other options: model unset, not vgg\n"),
        (("--nodes", "2"), "other options: nodes 3, not 2\n"),
        (
            ("--env", "A=1", "--", "python", "own.py"),
            "other options: command unset, not python own.py; env unset, not A=1\n",
        ),
    ],
)
def test_a_run_does_not_go_on_under_other_options(three_nodes, mnist_dir, changed, expected):
    folder, _ = three_nodes
    words = ("--nodes", "3", "--node-rank", "0", "--master", "127.0.0.1:9955", "--run", "mine", "--data-dir", mnist_dir)
    done = run_hpcdist("train", *words, *TRAINING, *changed, cwd=folder)
    assert done.code == 2
    assert done.err.splitlines()[-2].startswith("error: run mine exists with ")
    assert expected in done.err
    assert done.err.splitlines()[-1].startswith("hint: give the same options, or another name")


def test_machines_that_share_nothing_have_a_run_each_and_end_with_their_own_ranks_status(tmp_path):
    script = "import os, sys, time; time.sleep(0.5); sys.exit(7 if os.environ['RANK'] == '1' else 0)"
    folders = [tmp_path / str(number) for number in range(3)]
    nodes = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        nodes.append(start_node(number, 9955, "--procs-per-node", 2, "--", sys.executable, "-c", script, cwd=folder))
    codes, outputs = finish(nodes)
    assert codes == [7, 0, 0], outputs
    for number, folder in enumerate(folders):
        (run,) = [path for path in (folder / "jobs" / "runs").iterdir() if path.is_dir()]
        assert run.name.endswith(f"-n{number}")
        assert sorted(path.name for path in (run / "ranks").iterdir()) == [
            f"{2 * number}.json",
            f"{2 * number + 1}.json",
        ]
        shown = run_hpcdist("status", run.name, "--json", cwd=folder)
        (one,) = json.loads(shown.out)
        assert (one["status"]["state"], one["status"]["exit_code"]) == (
            ("FAILED", 7) if number == 0 else ("COMPLETED", 0)
        )
    assert "the other machines have their ranks' figures" in outputs[0][1]


def test_torchrun_starts_the_training_and_it_leaves_a_run(tmp_path, mnist_dir):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "hpcdist.train", "--data-dir", str(mnist_dir), *TRAINING]
    environment = clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "layout 1x2cpu: 2 rank(s)" in done.stdout
    (run,) = [path for path in (tmp_path / "jobs" / "runs").iterdir() if path.is_dir()]
    ranks = [json.loads((run / "ranks" / f"{rank}.json").read_text()) for rank in range(2)]
    assert [rank["training"]["finished"] for rank in ranks] == [True, True]
    assert "COMPLETED" in run_hpcdist("status", run.name, cwd=tmp_path).out
    assert run_hpcdist("report", run.name, cwd=tmp_path).code == 0


def test_what_torchrun_starts_on_another_machine_has_a_status_there(tmp_path):
    """The first rank of torchrun's second machine; an option that can't be used ends it before it trains."""
    job = JobSpec(name="mnist", layout=Layout(nodes=2, gpus=0))
    place = {"GROUP_RANK": "1", "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    environment = clean_environment() | place | {"PYTHONPATH": os.pathsep.join(sys.path), "HPCDIST_RUN": "second"}
    command = [
        sys.executable,
        "-m",
        "hpcdist.submission.by_hand",
        msgspec.json.encode(job).decode(),
        "--",
        "--lr",
        "-1",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "run second" in done.stderr
    shown = run_hpcdist("status", "second", "--json", cwd=tmp_path)
    assert [one["status"]["state"] for one in json.loads(shown.out)] == ["FAILED"]
    assert (tmp_path / "jobs/runs/second/local.1.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--node-rank", 0), "--master"),
        (("--master", "10.0.0.1:9955"), "--node-rank"),
        (("--nodes", 2, "--node-rank", 2, "--master", "10.0.0.1:9955"), "node_rank is 2 of 2"),
        (("--node-rank", 0, "--master", "10.0.0.1"), "HOST:PORT"),
    ],
)
def test_what_can_not_be_started_is_said_in_two_lines(project, arguments, expected):
    done = run_hpcdist("train", *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert expected in done.err
    assert "Traceback" not in done.err


def test_a_master_may_be_an_address_of_either_kind():
    assert parse_master("10.10.1.1:9955") == ("10.10.1.1", 9955)
    assert parse_master("[fd00::1]:29400") == ("fd00::1", 29400)
    for wrong in ("n1", ":9955", "n1:port", "n1:70000"):
        with pytest.raises(UsageError):
            parse_master(wrong)
