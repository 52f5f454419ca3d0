"""What logs beside TensorBoard: a CSV, and Weights & Biases through a stand-in for its package, which is not installed.

With wandb 0.31.0 itself the same was run by hand, offline, over a run that was stopped and went on.
"""

import csv
import sys
import types

import pytest

from hpcdist.config import job
from hpcdist.config.training import Training
from hpcdist.errors import NotReadyError, UsageError
from hpcdist.train.environment import RankEnvironment, check_logger
from hpcdist.train.failure import StoppedError
from hpcdist.train.loggers import RunWandb, open_loggers, why_offline
from hpcdist.train.options import Options
from tests.train.test_fit import Trained


def read_curve(folder, name):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(line["step"]), line[name]) for line in csv.DictReader(file) if line[name]]


def test_a_csv_holds_one_curve_over_attempts_that_overlap(tmp_path):
    options = {"logger": "csv", "log_every": 1, "max_steps": 10}
    Trained(tmp_path / "whole", run_dir=tmp_path / "a", **options)
    whole = read_curve(tmp_path / "a", "train/loss")
    assert [step for step, _ in whole] == list(range(1, 11))
    stop = tmp_path / "stop"
    stop.touch()
    with pytest.raises(StoppedError, match="after step 1 of 10"):
        Trained(tmp_path / "parts", stop_file=stop, run_dir=tmp_path / "b", **options)
    stop.unlink()
    # As a killed attempt leaves it: steps after its last checkpoint, and half a line.
    with (tmp_path / "b" / "metrics.csv").open("a") as file:
        names = (tmp_path / "b" / "metrics.csv").read_text().splitlines()[0].split(",")
        file.writelines(f"{','.join('9' if name == 'step' else '123.0' for name in names)}\n" for _ in range(2))
        file.write("0.5")
    Trained(tmp_path / "parts", stop_file=stop, run_dir=tmp_path / "b", **options)
    assert read_curve(tmp_path / "b", "train/loss") == whole
    assert len(read_curve(tmp_path / "b", "phases/steady_s")) == 1


def test_a_logger_that_has_no_run_to_write_into_is_refused():
    options = Options(layout=job.Layout(gpus=0), training=Training(logger="csv"))
    with pytest.raises(UsageError, match="this is no run"):
        open_loggers(options, RankEnvironment(started_at_s=0.0), 1)


def test_without_the_package_the_error_says_what_to_type(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # what a run of wandb leaves in the folder it ran in
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotReadyError, match="not installed") as error:
        check_logger("wandb")
    assert error.value.hint == "pip install 'hpcdist[wandb]'"
    check_logger("csv")


class StandInRun:
    """Records what it is told, and drops points of steps that it has passed, as wandb does (Run.log, `step`)."""

    def __init__(self, settings):
        self.settings, self.points, self.config, self.finished = settings, [], {}, False

    def log(self, data, step):
        if not self.points or step >= self.points[-1][0]:
            self.points.append((step, data))

    def define_metric(self, *names, **options):
        pass

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: as much of it as Lightning's WandbLogger calls."""
    package = types.ModuleType("wandb")
    package.run, package.runs = None, []

    def init(**settings):
        known = [run for run in package.runs if run.settings["id"] == settings["id"]]
        package.runs += [] if known else [StandInRun(settings)]
        return known[0] if known else package.runs[-1]

    package.init = init
    lib, runs = types.ModuleType("wandb.sdk.lib"), types.ModuleType("wandb.wandb_run")
    lib.RunDisabled, runs.Run = type("RunDisabled", (), {}), StandInRun
    StandInRun.config = {}
    for name, module in (("wandb", package), ("wandb.sdk.lib", lib), ("wandb.wandb_run", runs)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return package


def test_wandb_has_one_run_of_the_run_s_name_over_all_attempts(tmp_path, wandb):
    options = {"logger": "wandb", "log_every": 1, "max_steps": 10, "run_dir": tmp_path / "mnist-1x1-3f"}
    stop = tmp_path / "stop"
    stop.touch()
    with pytest.raises(StoppedError):
        Trained(tmp_path / "c", stop_file=stop, **options)
    stop.unlink()
    wandb.runs[0].points += [(2, {"train/loss": 1.0}), (3, {"train/loss": 1.0})]  # logged after the last checkpoint
    Trained(tmp_path / "c", stop_file=stop, **options)
    (run,) = wandb.runs
    assert (run.settings["id"], run.settings["name"], run.settings["resume"]) == (*["mnist-1x1-3f"] * 2, "allow")
    assert run.settings["dir"] == str(tmp_path / "mnist-1x1-3f")
    assert [step for step, data in run.points if "train/loss" in data] == [1, 2, 3, *range(3, 11)]
    assert all(data["trainer/global_step"] == step for step, data in run.points if "trainer/global_step" in data)
    assert (run.config["batch_size"], run.config["layout"], run.finished) == (32, "1x1cpu", True)


def test_the_task_of_an_array_is_a_run_of_its_own(tmp_path, wandb):
    assert RunWandb(tmp_path / "sweep-1x1-3f" / "4").version == "sweep-1x1-3f-4"


def test_it_is_offline_without_a_key_or_a_way_to_the_server(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert why_offline({"WANDB_MODE": "online"}) is None
    assert "no API key" in why_offline({})
    # Port 1 of this machine: nobody listens there.
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:1"}
    assert "127.0.0.1 can't be reached" in why_offline({"WANDB_API_KEY": "k", **closed})
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password k\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert "can't be reached" in why_offline(closed)
