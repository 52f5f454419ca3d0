"""Whole trainings in this process: parts of batches, schedules, the target, checkpoints, modules of one's own."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule

from hpcdist.config.job import Layout
from hpcdist.config.training import Training
from hpcdist.datasets import parse_synthetic
from hpcdist.errors import NotReadyError, UsageError
from hpcdist.train import build, checkpoint
from hpcdist.train.checkpoint import Checkpoints, find_checkpoint, write_checkpoint
from hpcdist.train.data.batches import ImageData
from hpcdist.train.data.load import make_split
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter, StoppedError
from hpcdist.train.fit import fit
from hpcdist.train.loggers import describe_options, sum_up
from hpcdist.train.options import Options
from hpcdist.train.outcome import Clock, Outcome
from hpcdist.train.user_module import load_class, make

CPU = torch.device("cpu")
OWN = {"module": "tests.train.own_parts:Tiny", "datamodule": "tests.train.own_parts:Numbers"}


class RaisingWords(FailureReporter):
    """Leaves the process alone."""

    def end(self, error):
        raise error


class Trained:
    """A training of a few steps on made-up images, with its checkpoints in a folder."""

    def __init__(self, folder, stop_file=None, run_dir=None, **options):
        self.folder = folder
        made = parse_synthetic("synthetic:1x12x12x4@203")
        built_in = {} if "module" in options else {"batch_size": 32, "lr": 0.01}
        training = Training(**({"epochs": 2} | built_in | options))
        self.options = Options(layout=Layout(gpus=0), training=training)
        self.rank = RankEnvironment(
            checkpoints=folder, stop_file=stop_file, run_dir=run_dir, started_at_s=time.time() - 1
        )
        self.outcome = Outcome(None, Clock(time.time()))
        words = RaisingWords(self.rank, self.outcome)
        if training.module:
            fit(self.options, self.rank, None, device=CPU, outcome=self.outcome, reporter=words)
            return
        data = ImageData(
            make_split(made, CPU, train=True), make_split(made, CPU, train=False), seed=1, rank=0, world_size=1,
            batch_size=self.options.batch_size, accumulate=self.options.accumulate, class_count=4,
        )  # fmt: skip
        fit(self.options, self.rank, data, device=CPU, outcome=self.outcome, reporter=words)

    @property
    def content(self):
        return torch.load(find_checkpoint(self.folder), weights_only=True)

    @property
    def weights(self):
        return torch.cat([value.flatten() for value in self.content["state_dict"].values()])

    @property
    def last_lr(self):
        return self.content["optimizer_states"][0]["param_groups"][0]["lr"]

    @property
    def metrics(self):
        return self.outcome.metrics()


def test_a_batch_in_three_parts_trains_the_same_as_in_one(tmp_path):
    # 203 images in batches of 32: seven steps an epoch, the last of 11 images.
    whole = Trained(tmp_path / "whole", optimizer="sgd")
    parts = Trained(tmp_path / "parts", optimizer="sgd", accumulate=3)
    assert (whole.metrics.steps, parts.metrics.steps) == (14, 14)
    assert (whole.metrics.samples, parts.metrics.samples) == (406, 406)
    assert parts.metrics.global_batch_size is None  # learned by who calls it
    assert parts.weights.tolist() == pytest.approx(whole.weights.tolist(), rel=1e-4, abs=2e-6)


def test_parts_that_stopped_within_an_epoch_go_on_with_the_same_bits(tmp_path):
    options = {"accumulate": 3, "schedule": "cosine", "optimizer": "adadelta", "max_steps": 10}
    whole = Trained(tmp_path / "whole", **options)
    (tmp_path / "stop").touch()
    with pytest.raises(StoppedError, match="after step 1 of 10"):
        Trained(tmp_path / "parts", stop_file=tmp_path / "stop", **options)
    resumed = Trained(tmp_path / "parts", **options)
    assert resumed.metrics.steps == 10
    assert torch.equal(resumed.weights, whole.weights)


@pytest.mark.parametrize("options", [{}, OWN])
def test_nobody_watches_a_training_that_was_stopped(tmp_path, options):
    (tmp_path / "stop").touch()
    with pytest.raises(StoppedError):
        Trained(tmp_path / "parts", stop_file=tmp_path / "stop", **options)
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(timeout=5)
            assert not thread.is_alive()


@pytest.mark.parametrize("options", [{}, {"max_steps": 5}, {"accumulate": 3}])
def test_epochs_of_one_step_lose_nothing_when_it_is_stopped_after_each(tmp_path, options):
    # 203 images in batches of 256: the last step of an epoch is its first.
    options = {"batch_size": 256, "epochs": 6, "optimizer": "adadelta"} | options
    whole = Trained(tmp_path / "whole", **options)
    (tmp_path / "stop").touch()
    for step in range(1, whole.metrics.steps):
        with pytest.raises(StoppedError, match=f"saved after step {step} of"):
            Trained(tmp_path / "parts", stop_file=tmp_path / "stop", **options)
    resumed = Trained(tmp_path / "parts", **options)
    assert torch.equal(resumed.weights, whole.weights)
    for name in ("steps", "samples", "epochs", "accuracy"):
        assert getattr(resumed.metrics, name) == getattr(whole.metrics, name)
    assert [test.step for test in resumed.metrics.tests] == [test.step for test in whole.metrics.tests]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_steps": 10}, {}),
        ({"epochs": 1}, {"max_steps": 10}),
        ({"max_steps": 10, "accumulate": 3}, {"accumulate": 3}),
    ],
)
def test_what_ended_goes_on_with_the_same_bits_when_it_is_made_longer(tmp_path, first, then):
    # Seven steps an epoch: 10 are one and a part.
    whole = Trained(tmp_path / "whole", schedule="constant", **then)
    Trained(tmp_path / "parts", schedule="constant", **first)
    longer = Trained(tmp_path / "parts", schedule="constant", **then)
    assert torch.equal(longer.weights, whole.weights)
    for name in ("steps", "samples", "epochs"):
        assert getattr(longer.metrics, name) == getattr(whole.metrics, name)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_the_learning_rate_of_what_is_made_longer_is_that_of_the_longer_one(tmp_path, capsys, schedule):
    whole = Trained(tmp_path / "whole", schedule=schedule)
    Trained(tmp_path / "parts", schedule=schedule, epochs=1)
    longer = Trained(tmp_path / "parts", schedule=schedule)
    assert longer.metrics.steps == 14
    assert longer.last_lr == whole.last_lr
    assert "the learning rate goes on as in a training of 14 steps; that one had 7" in capsys.readouterr().out


def test_a_checkpoint_from_behind_the_end_is_refused(tmp_path):
    Trained(tmp_path, epochs=1)
    with pytest.raises(UsageError, match="made after step 7, and this training ends after 3"):
        Trained(tmp_path, max_steps=3)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_every_schedule_learns(tmp_path, schedule):
    assert Trained(tmp_path, schedule=schedule, epochs=4).metrics.accuracy > 0.5


def test_it_stops_at_the_target_and_says_when(tmp_path, capsys):
    trained = Trained(tmp_path, target_accuracy=0.3, epochs=50)
    metrics = trained.metrics
    assert metrics.finished
    assert metrics.steps < 50 * 7
    assert metrics.steps % 7 == 0
    assert metrics.accuracy >= 0.3 > max([0, *(test.accuracy for test in metrics.tests[:-1])])
    assert metrics.time_to_target_s == pytest.approx(metrics.tests[-1].at_s - trained.rank.started_at_s, abs=0.2)


def test_a_target_that_is_not_reached_trains_to_the_end(tmp_path):
    metrics = Trained(tmp_path, target_accuracy=1.0, epochs=1, lr=1e-9).metrics
    assert (metrics.steps, metrics.time_to_target_s, metrics.target_accuracy) == (7, None, 1.0)


def test_a_speed_trial_ends_after_its_time_and_tests_and_saves_nothing(tmp_path):
    trained = Trained(tmp_path, epochs=1000, speed_trial="0.5s")
    metrics = trained.metrics
    assert metrics.phases_s["steady"] >= 0.5
    assert (metrics.finished, metrics.accuracy, metrics.tests) == (True, None, ())
    assert 1 < metrics.steps < 7000
    assert metrics.images_per_s > 0
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_size_and_scaling_are_told(tmp_path, capsys):
    metrics = Trained(tmp_path, epochs=1, scale_lr=True, lr_batch=16, schedule="constant").metrics
    printed = capsys.readouterr().out
    assert metrics.model == "cnn"
    assert sum_up(metrics)["parameters"] == metrics.parameters > 0
    assert sum_up(metrics)["flops_per_image"] == metrics.flops_per_image > 0
    assert f"model cnn: {metrics.parameters:,} parameters" in printed
    # Twice the batch that 0.01 is for; a fifth of 7 steps, rounded up.
    assert "learning rate 0.02 after 2 steps from 0.01" in printed


def test_a_checkpoint_is_due_so_early_that_it_is_written_within_the_interval(tmp_path, monkeypatch):
    kept, begin = [], Checkpoints.__init__

    def begin_and_keep(self, *arguments):
        begin(self, *arguments)
        kept.append(self)

    def write_slowly(folder, step, data):
        time.sleep(0.4)
        return write_checkpoint(folder, step, data)

    monkeypatch.setattr(Checkpoints, "__init__", begin_and_keep)
    monkeypatch.setattr(checkpoint, "write_checkpoint", write_slowly)
    Trained(tmp_path, max_steps=1)
    (one,) = kept

    def is_due(after_s, interval_s):
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: one.taken_at + after_s))
        return one.is_due(interval_s)

    assert [is_due(after_s, 3.0) for after_s in (2.0, 2.65, 3.0)] == [False, True, True]
    # Half of the interval is left for training.
    assert [is_due(after_s, 0.5) for after_s in (0.2, 0.3)] == [False, True]


@pytest.mark.parametrize(
    ("option", "value"), [("model", "shufflenet"), ("optimizer", "sgd"), ("schedule", "step"), ("accumulate", 2)]
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path_factory, option, value):
    folder = tmp_path_factory.getbasetemp() / "refusing"
    if not folder.exists():
        Trained(folder, max_steps=1)
    with pytest.raises(UsageError, match=f"made with {option} .* and this training has {value}") as caught:
        Trained(folder, **{option: value})
    assert caught.value.hint.startswith(f"use --{option} ")


def test_a_checkpoint_of_release_0_1_says_nothing_of_new_options(tmp_path):
    trained = Trained(tmp_path, max_steps=1)
    path = find_checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    content["hpcdist"] = {name: content["hpcdist"][name] for name in ("ranks", "tests", "batch_size", "seed")}
    torch.save(content, tmp_path / "step-00000001-old.ckpt")
    checkpoints = Checkpoints(tmp_path, trained.rank, trained.options, trained.outcome)
    assert checkpoints.load(tmp_path / "step-00000001-old.ckpt")["global_step"] == 1


def test_what_is_compiled_keeps_the_names_of_its_weights(tmp_path, monkeypatch):
    compiled = []

    def compile_nothing(forward, **options):
        compiled.append(options)
        return forward

    monkeypatch.setattr(torch, "compile", compile_nothing)
    Trained(tmp_path / "compiled", compile=True, max_steps=2)
    assert compiled == [{"dynamic": False}]
    Trained(tmp_path / "plain", max_steps=2)
    states = [
        torch.load(find_checkpoint(tmp_path / name), weights_only=True)["state_dict"] for name in ("compiled", "plain")
    ]
    assert list(states[0]) == list(states[1])
    assert len(compiled) == 1


def test_without_a_compiler_it_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(NotReadyError, match="C\\+\\+ compiler"):
        Trained(tmp_path, compile=True, max_steps=2)


class TestOwn:
    def test_it_is_trained_measured_and_goes_on(self, tmp_path, capsys):
        whole = Trained(tmp_path / "whole", **OWN)
        metrics = whole.metrics
        # 320 samples in batches of 16, two epochs.
        assert (metrics.finished, metrics.steps, metrics.samples, metrics.epochs) == (True, 40, 640, 2)
        assert metrics.global_batch_size == 16
        assert metrics.parameters == 10
        assert metrics.accuracy > 0.9
        assert [test.step for test in metrics.tests] == [20, 40]
        assert metrics.images_per_s > 0
        assert "epoch 2/2  step 40/40" in capsys.readouterr().out
        assert metrics.split is None  # not measured: nobody knows where its network begins

    def test_after_an_epoch_it_goes_on_with_the_same_bits(self, tmp_path):
        whole = Trained(tmp_path / "whole", **OWN)
        Trained(tmp_path / "cut", **OWN | {"epochs": 1})
        resumed = Trained(tmp_path / "cut", **OWN)
        assert resumed.metrics.steps == 40
        assert torch.equal(resumed.weights, whole.weights)

    def test_random_numbers_of_every_kind_go_on(self, tmp_path):
        whole = Trained(tmp_path / "whole", **OWN | {"module": "tests.train.own_parts:Noisy"})
        Trained(tmp_path / "cut", **OWN | {"module": "tests.train.own_parts:Noisy", "epochs": 1})
        resumed = Trained(tmp_path / "cut", **OWN | {"module": "tests.train.own_parts:Noisy"})
        assert torch.equal(resumed.weights, whole.weights)

    @pytest.mark.parametrize("option", ["batch_size", "batch_size_per_rank"])
    def test_a_batch_is_refused_which_its_data_decide(self, option):
        with pytest.raises(UsageError, match=f"{option} is for the built-in networks"):
            Training(**OWN, **{option: 32})

    def test_hyperparameters_are_only_those_that_it_has(self):
        shown = describe_options(Options(layout=Layout(gpus=0), training=Training(**OWN)))
        assert shown["module"] == OWN["module"]
        assert not {"batch_size", "lr", "optimizer"} & set(shown)

    def test_what_needs_arguments_is_refused(self):
        with pytest.raises(
            UsageError, match="Sized can't be made without arguments: missing a required argument: 'size'"
        ):
            make("tests.train.own_parts:Sized", LightningModule)

    def test_without_a_compiler_it_is_said_before_the_first_step(self, tmp_path, monkeypatch):
        monkeypatch.setattr(build.shutil, "which", lambda name: None)
        with pytest.raises(NotReadyError, match="C\\+\\+ compiler"):
            Trained(tmp_path, **OWN, compile=True)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("tests.train.no_such:Tiny", "there is no module 'tests.train.no_such'"),
            ("tests.train.own_parts:Tyni", "is no LightningModule"),
            ("tests.train.own_parts:no_class", "is no LightningModule"),
            ("tests.train.own_parts:Numbers", "is no LightningModule"),
        ],
    )
    def test_what_is_no_module_is_refused(self, name, expected):
        with pytest.raises(UsageError, match=expected):
            load_class(name, LightningModule)
