"""What a finished training leaves behind, and how an unfinished one ends."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.train.conftest import run_python

BROKEN_RANK = [sys.executable, str(Path(__file__).with_name("broken_rank.py"))]
END_WITHIN_S = 10  # of a busy machine; on an idle one it is well under a second


def run_alone(*arguments, env=None):
    return run_python("-m", "hpcdist.train", *arguments, env=env)


def assert_two_lines(text: str) -> tuple[str, str]:
    lines = text.splitlines()
    assert len(lines) == 2, text
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    return lines[0], lines[1]


class TestFinished:
    def test_default_options_reach_98_percent_and_every_rank_says_the_same(self, finished):
        accuracies = [finished.metrics(rank)["accuracy"] for rank in (0, 1)]
        assert accuracies[0] == accuracies[1]
        assert accuracies[0] >= 0.98
        assert finished.metrics(0)["loss"] == finished.metrics(1)["loss"]

    def test_metrics_count_what_was_trained(self, finished):
        for rank in (0, 1):
            metrics = finished.metrics(rank)
            assert metrics["finished"] is True
            assert (metrics["epochs"], metrics["steps"], metrics["world_size"]) == (3, 3 * 118, 2)
            assert metrics["global_batch_size"] == 512
            assert metrics["samples"] == 3 * 30_000
            assert metrics["images_per_s"] > 0
            assert metrics["step_time_s"] == pytest.approx(512 / metrics["images_per_s"], rel=0.8)

    def test_phases_fill_the_time_of_the_process(self, finished):
        phases_s = finished.metrics(0)["phases_s"]
        expected = {
            "imports",
            "process_group",
            "preflight",
            "data",
            "first_step",
            "steady",
            "validation",
            "checkpoint",
            "other",
        }
        assert set(phases_s) == expected
        assert all(seconds >= 0 for seconds in phases_s.values())
        assert phases_s["imports"] > 0.5

    def test_progress_ends_at_the_last_step(self, finished):
        progress = json.loads((finished.folder / "progress.json").read_text())
        assert (progress["epoch"], progress["epochs"]) == (3, 3)
        assert (progress["step"], progress["steps"]) == (354, 354)
        assert progress["accuracy"] == finished.metrics(0)["accuracy"]

    def test_rank_0_prints_a_line_per_epoch_and_the_others_nothing(self, finished):
        lines = finished.output(0).splitlines()
        assert [line.split()[1] for line in lines if "test accuracy" in line and line.startswith("epoch")] == [
            "1/3",
            "2/3",
            "3/3",
        ]
        assert lines[-1].startswith("finished: test accuracy 9")
        assert finished.output(1) == ""

    def test_nothing_is_warned_of(self, finished):
        assert finished.errors(0) == ""
        assert finished.errors(1) == ""

    def test_last_two_checkpoints_are_kept_whole(self, finished):
        import torch

        checkpoints = sorted((finished.folder / "checkpoints").iterdir())
        assert len(checkpoints) == 2
        assert checkpoints[-1].name.startswith("step-00000354-")
        content = torch.load(checkpoints[-1], weights_only=True)
        assert content["global_step"] == 354
        assert {"state_dict", "optimizer_states", "lr_schedulers"} <= set(content)

    def test_curves_are_in_exactly_the_given_folder(self, finished):
        events = finished.folder / "events"
        assert [path.is_file() and "tfevents" in path.name for path in events.iterdir()] == [True]

    def test_curves_have_every_figure(self, finished):
        scalars = read_events(finished.folder / "events")
        curves = {"train/loss", "train/accuracy", "train/images_per_s", "train/step_time_s", "lr"}
        whole = {"val/accuracy", "val/loss", "images_per_s", "step_time_s", "phases/imports_s", "phases/steady_s"}
        whole |= {"split/data_s", "split/compute_s", "split/communication_s", "split/other_s", "split/step_s"}
        assert curves | whole <= set(scalars.Tags()["scalars"])
        assert [event.step for event in scalars.Scalars("val/accuracy")] == [118, 236, 354]
        assert scalars.Scalars("val/accuracy")[-1].value == pytest.approx(finished.metrics(0)["accuracy"])
        assert scalars.Scalars("images_per_s")[-1].value == pytest.approx(finished.metrics(0)["images_per_s"], rel=1e-4)
        assert max(event.value for event in scalars.Scalars("lr")) <= 1e-2 + 1e-9

    def test_hyperparameters_have_options_layout_and_metrics(self, finished):
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        metadata = read_events(finished.folder / "events").summary_metadata
        plugin = {name: HParamsPluginData.FromString(data.plugin_data.content) for name, data in metadata.items() if
                  data.plugin_data.plugin_name == "hparams"}  # fmt: skip
        experiment = plugin["_hparams_/experiment"].experiment
        names = {info.name.tag for info in experiment.metric_infos}
        assert {"val/accuracy", "images_per_s", "efficiency/cpu", "efficiency/memory", "wall_time_s"} <= names
        chosen = plugin["_hparams_/session_start_info"].session_start_info.hparams
        assert chosen["nodes"].number_value == 2
        assert chosen["batch_size"].number_value == 512
        assert chosen["optimizer"].string_value == "adamw"
        assert chosen["layout"].string_value == "2x1cpu"


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


class TestMaxSteps:
    def test_training_that_stops_within_an_epoch_is_tested_and_finished(self, mnist_dir, tmp_path):
        metrics = tmp_path / "metrics.json"
        options = ["--gpus", 0, "--max-steps", 5, "--epochs", 2, "--data-dir", mnist_dir]
        done = run_alone(*options, env={"HPCDIST_METRICS": str(metrics), "HPCDIST_RUN_DIR": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        reached = json.loads(metrics.read_text())
        assert reached["finished"] is True
        assert reached["steps"] == 5
        assert 0.1 < reached["accuracy"] < 0.98
        assert reached.get("epochs") is None  # no whole one
        progress = json.loads((tmp_path / "progress.json").read_text())
        assert (progress["epoch"], progress["step"], progress["accuracy"]) == (1, 5, reached["accuracy"])


def test_it_trains_where_transformers_is_installed_that_looks_for_torchvision(tmp_path, mnist_dir):
    # torchmetrics, which Lightning imports, imports it where it is found in such a version.
    package, metadata = tmp_path / "transformers", tmp_path / "transformers-4.57.1.dist-info"
    package.mkdir()
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.1\n")
    (package / "__init__.py").write_text(
        "import importlib.util\nfrom pathlib import Path\n"
        "HAS_TORCHVISION = importlib.util.find_spec('torchvision') is not None\n"
        "class AutoModel: pass\nclass AutoTokenizer: pass\n"
        "class CLIPModel: pass\nclass CLIPProcessor: pass\n"
        "Path(__file__).with_name('imported').touch()\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run_alone("--gpus", 0, "--max-steps", 2, "--data-dir", mnist_dir, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert (package / "imported").exists()


class TestEnding:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_sigterm_to_one_rank_ends_it_by_that_signal_at_once(self, start_ranks, mnist_dir, rank):
        ranks = start_ranks(2, "--epochs", 1000, "--data-dir", mnist_dir)
        ranks.wait_for_progress()
        ranks.processes[rank].send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert ranks.processes[rank].wait(END_WITHIN_S) == -signal.SIGTERM
        # The other one lost its peer: not 0 either, and later, so that it is not taken for the cause.
        assert ranks.processes[1 - rank].wait(END_WITHIN_S + 5) == 69
        assert time.monotonic() - started > 2
        assert "ended by SIGTERM" in ranks.errors(rank)
        error, _ = assert_two_lines(ranks.errors(1 - rank))
        assert "lost its connection to another rank" in error
        metrics = ranks.metrics(rank)
        assert metrics["finished"] is False
        assert metrics["steps"] > 0

    def test_sigint_to_a_stuck_rank_ends_it_by_that_signal(self, start_ranks, mnist_dir):
        ranks = start_ranks(2, "--epochs", 1000, "--data-dir", mnist_dir)
        ranks.wait_for_progress()
        ranks.processes[1].send_signal(signal.SIGSTOP)  # rank 0 now waits inside gloo, where no handler would run
        time.sleep(1)
        ranks.processes[0].send_signal(signal.SIGINT)
        assert ranks.processes[0].wait(END_WITHIN_S) == -signal.SIGINT

    def test_sigterm_during_the_imports_ends_it_too(self, start_ranks, mnist_dir):
        ranks = start_ranks(1, "--data-dir", mnist_dir, anew=True)
        time.sleep(1)
        ranks.processes[0].send_signal(signal.SIGTERM)
        assert ranks.processes[0].wait(END_WITHIN_S) == -signal.SIGTERM
        assert "finished" in ranks.metrics(0)

    def test_a_raising_rank_ends_with_its_traceback_under_its_name(self, start_ranks, mnist_dir):
        ranks = start_ranks(2, "--epochs", 1000, "--data-dir", mnist_dir, program=BROKEN_RANK)
        assert ranks.processes[1].wait(120) == 1
        lines = ranks.errors(1).splitlines()
        assert all(line.startswith(f"rank 1 on {socket.gethostname()}: ") for line in lines)
        assert lines[0].endswith("Traceback (most recent call last):")
        assert lines[-1].endswith("ValueError: broken on purpose")
        assert ranks.processes[0].wait(END_WITHIN_S + 5) == 69
        assert ranks.metrics(1)["finished"] is False
        assert ranks.metrics(1)["steps"] == 4


class TestRefused:
    def test_missing_data_names_the_command_that_fetches_it(self, tmp_path):
        done = run_alone("--gpus", 0, "--data-dir", tmp_path)
        error, hint = assert_two_lines(done.stderr)
        assert "is missing" in error
        assert hint == f"hint: hpcdist data fetch mnist --data-dir {tmp_path}"
        assert done.returncode == 3

    def test_granted_gpus_that_cannot_be_used_are_an_error(self, mnist_dir):
        done = run_alone("--gpus", 1, "--data-dir", mnist_dir, env={"CUDA_VISIBLE_DEVICES": ""})
        error, hint = assert_two_lines(done.stderr)
        assert "needs 1 GPU(s) and can use 0: CUDA_VISIBLE_DEVICES is ''; this torch is built for" in error
        assert "--accelerator cpu" in hint
        assert done.returncode == 3

    @pytest.mark.parametrize(
        ("arguments", "env", "figures"),
        [
            (["--nodes", "2", "--gpus", "1"], {}, ["2 ranks", "WORLD_SIZE is not set"]),
            (["--gpus", "1"], {"SLURM_NNODES": "2"}, ["1 nodes", "SLURM_NNODES is 2"]),
            (["--gpus", "1"], {"SLURM_NTASKS_PER_NODE": "4"}, ["1 tasks per node", "SLURM_NTASKS_PER_NODE is 4"]),
            (["--nodes", "2"], {"RANK": "0"}, ["WORLD_SIZE is not set, expected a number"]),
            (["--nodes", "many"], {}, ["--nodes"]),
            (["--optimizer", "lion"], {}, ["lion"]),
            (["--batch-size", "64", "--batch-size-per-rank", "32"], {}, ["exclude each other"]),
            (["--gpus", "0", "--checkpoint-every", "soon"], {}, ["'soon' is not an interval"]),
            (["--gpus", "0", "--epoch", "3"], {}, ["--epoch"]),
        ],
    )
    def test_what_cannot_be_meant_is_said_in_two_lines(self, arguments, env, figures):
        done = run_alone(*arguments, env=env)
        error, _ = assert_two_lines(done.stderr)
        assert all(figure in error for figure in figures)
        assert done.returncode == 2
