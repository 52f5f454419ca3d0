"""hpcdist tune on this machine, for real, with the built-in network on made-up images."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from hpcdist.cli.tune import tune_command
from hpcdist.config.project import Project
from hpcdist.config.site import Site
from hpcdist.report.gather import report_on
from hpcdist.studies.run import Watch
from hpcdist.studies.tune import Measurement, Tuned, tune
from tests.conftest import run_hpcdist
from tests.studies import test_run as test_studies

slurm = test_studies.slurm  # the stand-in, as a fixture

STUDY = """# Two layouts.
name = "small"
layouts = [{ nodes = 1, gpus = 0, cpus-per-task = 1 }, "2x1"]

[options]
data = "synthetic:1x12x12x4@400"
batch-size = 16   # over all ranks
preflight = false
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study of which the first layout was tuned: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "small.toml").write_text(STUDY)
    words = ("--backend", "local", "--seconds", 1, "--most", 32, "--json")
    done = run_hpcdist("tune", "small.toml", *words, cwd=folder, timeout=240)
    printed = json.loads(done.out)
    # Where other programs took its CPUs meanwhile, it says so and changes nothing.
    printed["crowded"] = any(one["is_crowded"] for one in printed["tuned"]["attempts"])
    assert done.code == (1 if printed["crowded"] else 0), done.err
    assert ("nothing is written" in done.err) == printed["crowded"]
    return folder, printed


def test_what_was_found_is_in_the_study_and_was_measured(tuned):
    folder, printed = tuned
    attempts = printed["tuned"]["attempts"]
    assert [one["batch_size"] for one in attempts] == [16, 32]
    assert all(one["images_per_s"] > 0 and 0 < one["memory_share"] < 1 for one in attempts)
    assert all(0 < one["utilization"] < 1.5 for one in attempts if one["utilization"] is not None)
    chosen = printed["tuned"]["chosen"]["batch_size"]
    faster = attempts[1]["images_per_s"] > 1.05 * attempts[0]["images_per_s"]
    assert chosen == (32 if faster else 16)
    written = 16 if printed["crowded"] else chosen
    assert (folder / "small.toml").read_text() == STUDY.replace("16   #", f"{written}   #")
    assert (f"+batch-size = {chosen}   # over all ranks" in printed["difference"]) == faster
    assert "Not promised: accuracy" in printed["tuned"]["not_promised"]


def test_its_trials_are_a_study_that_can_be_reported_with_what_they_used(tuned):
    folder, printed = tuned
    comparison = report_on(printed["tuned"]["studies"], folder, details=True)
    assert [row.label for row in comparison.rows] == ["1x1cpu batch_size=16", "1x1cpu batch_size=32"]
    assert [row.accuracy for row in comparison.rows] == [None, None]
    used = comparison.usage["1x1cpu batch_size=16"].curves[0]
    assert used.cpu_cores
    assert report_on(printed["tuned"]["studies"], folder).usage == {}


def test_workers_are_tried_when_the_data_are_waited_for(project, monkeypatch):
    """The machinery around the trials, with the trials' records made up: the batch first, then the workers."""
    asked = []

    def measure(bench, stage, fixed, swept, values):
        asked.append((stage, dict(fixed), swept, values))
        if swept == "batch_size":
            return [Measurement(batch_size=value, images_per_s=100.0, data_share=0.5) for value in values]
        return [Measurement(batch_size=64, workers=value, images_per_s=100.0 + 50 * value) for value in values]

    monkeypatch.setattr("hpcdist.studies.tune._Bench.measure", measure)
    here = Project(root=project, config=None, site=Site(), defaults={})
    found = tune({"data": "./images", "batch_size": 64, "gpus": 0}, here, backend="local", seconds=1.0)
    assert asked == [
        ("batch", {}, "batch_size", [64]),
        ("batch", {}, "batch_size", [64, 128]),
        ("workers", {"batch_size": 64}, "workers", [0, 1, 2, 4]),
    ]
    assert found.options == {"batch_size": 64, "workers": 4}


@pytest.mark.parametrize(
    ("words", "crowded", "code", "written"),
    [((), False, 0, 1024), (("--dry-run",), False, 0, 512), ((), True, 1, 512)],
)
def test_the_difference_is_shown_and_written_unless_told_or_measured_in_a_crowd(
    project, monkeypatch, words, crowded, code, written
):
    """The command alone, with what was found made up."""
    chosen = Measurement(batch_size=1024, images_per_s=10.0, is_crowded=crowded)
    found = Tuned(
        layout="1x2", ranks=2, studies=("s",), attempts=(chosen,), chosen=chosen,
        options={"batch_size": 1024}, sentences=("Batch 1024.",),
    )  # fmt: skip
    monkeypatch.setattr("hpcdist.cli.tune.tune", lambda options, project, **rest: found)
    (project / "job.toml").write_text("batch-size = 512  # over all ranks\n")
    done = CliRunner().invoke(tune_command, ["job.toml", "--backend", "local", *words])
    assert done.exit_code == code
    assert "-batch-size = 512  # over all ranks\n+batch-size = 1024  # over all ranks\n" in done.output
    assert (project / "job.toml").read_text() == f"batch-size = {written}  # over all ranks\n"
    assert ("nothing is written" in done.output) == crowded


class Ranks(Watch):
    """Writes what the ranks of an array's tasks would, as soon as it is sent: made-up speeds by the batch size."""

    SPEEDS: ClassVar = {512: 1000.0, 1024: 1500.0, 2048: 1530.0, 4096: 1540.0}

    def sent(self, batch, done, total, refusal):
        for trial in batch.trials:
            speed = self.SPEEDS[int(trial.variant.partition("batch_size=")[2])]
            rank = {"rank": 0, "local_rank": 0, "node_rank": 0, "world_size": 1, "host": "n1", "started_at_s": 1.0}
            rank |= {"ended_at_s": 9.0, "exit_code": 0, "memory_peak_bytes": 2**30, "training": {"images_per_s": speed}}
            path = Path("jobs/runs", trial.run, trial.task, "ranks", "0.json")
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(rank))


def test_on_slurm_four_doublings_are_one_array_one_at_a_time(slurm, project):
    """On the stand-in for Slurm."""
    slurm.set(**{f"j101_{task}": "COMPLETED" for task in range(4)})
    here = Project(root=project, config=None, site=Site(), defaults={})
    found = tune({"gpus": 1, "mem": "4G", "time": "24:00:00"}, here, backend="slurm", seconds=5.0, watch=Ranks())
    (job,) = slurm.jobs().values()
    assert job["array"] == "0-3%1"
    (script,) = Path("jobs/runs").glob("*/script.sbatch")
    text = script.read_text()
    assert "#SBATCH --time=15\n" in text
    assert "--speed-trial 5s" in text
    assert "  3) set -- --batch-size 4096 ;;\n" in text
    assert [one.memory_share for one in found.attempts] == [0.25] * 4
    assert found.options == {"batch_size": 1024}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("swept.toml",), "sweeps batch_size"),
        (("--module", "a.b:C", "--datamodule", "a.b:D"), "a module's data has its own"),
        (("--strategy", "parameter-server", "--ps-mode", "async"), "ps_mode is async"),
    ],
)
def test_what_can_t_be_tuned_is_refused_before_anything_runs(project, words, said):
    (project / "swept.toml").write_text('name = "s"\nlayouts = ["1x1"]\n[grid]\nbatch-size = [1, 2]\n')
    done = run_hpcdist("tune", *words, "--backend", "local")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (project / "jobs").exists()
