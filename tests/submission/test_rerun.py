"""The same run again, through the program as a user runs it, without Slurm."""

import json
import sys

import pytest

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.submission.rerun import change_job, parse_changes
from tests.conftest import run_hpcdist

SAY = ("sh", "-c", 'echo "$SAID in $PWD, rank $RANK of $WORLD_SIZE"')


def submit(*options, command=SAY, cwd=None):
    done = run_hpcdist("submit", "--backend", "local", *options, "--wait", "--", *command, cwd=cwd)
    assert done.code == 0, done.err
    return done.out.strip()


def read_job(project, job_id):
    jobs = [json.loads(path.read_text()) for path in (project / "jobs" / "runs").glob("*/job.json")]
    (job,) = [one for one in jobs if one["job_id"] == job_id]
    return job


def test_a_rerun_is_the_same_script_under_another_name(project):
    submit("--env", "SAID=hello", "--run", "run-a", "--nodes", 2)
    (project / "elsewhere").mkdir()
    (project / "hpcdist.toml").write_text('[env]\nSAID = "something new"\n')  # changed since: must not count
    done = run_hpcdist("rerun", "run-a", "--run", "run-b", "--wait", cwd=project / "elsewhere")
    assert done.code == 0, done.err
    assert "run-b repeats run-a: nothing is different\n" in done.err
    runs = project / "jobs" / "runs"
    scripts = [(runs / name / "script.sbatch").read_text() for name in ("run-a", "run-b")]
    assert scripts[0].replace("run-a", "run-b") == scripts[1]
    assert run_hpcdist("logs", "run-b", "--rank", 1).out == f"hello in {project}, rank 1 of 2\n"
    assert read_job(project, "local-2")["rerun_of"] == "run-a"


def test_changes_are_shown_and_used(project):
    job_id = submit("--env", "SAID=hello", "--env", "KEPT=yes", "--time", "5")
    settings = ("--set", "nodes=2", "--set", "env=SAID=bye", "--set", "time=", "--set", "lr=0.5")
    done = run_hpcdist("rerun", job_id, *settings, "--wait")
    assert done.code == 0, done.err
    assert "  --nodes 1 -> 2\n" in done.err
    assert "  --time 5 -> (none)\n" in done.err
    assert "SAID=bye" in done.err
    again = read_job(project, "local-2")["job"]
    assert (again["layout"]["nodes"], again["layout"]["time"], again["training"]["lr"]) == (2, None, 0.5)
    assert again["env"] == {"SAID": "bye", "KEPT": "yes"}
    assert run_hpcdist("logs", "local-2", "--rank", 1).out.startswith("bye in")


def test_a_dry_run_submits_nothing(project):
    job_id = submit()
    done = run_hpcdist("rerun", job_id, "--dry-run")
    assert done.code == 0, done.err
    assert done.out.startswith("#!")
    assert len(list((project / "jobs" / "runs").glob("*/job.json"))) == 1


def test_json_is_the_new_run_s_record(project):
    job_id = submit()
    done = run_hpcdist("rerun", job_id, "--run", "again", "--json")
    assert json.loads(done.out)["run"] == "again"
    assert run_hpcdist("wait", "again").code == 0


def test_what_changed_around_a_run_is_shown(project):
    job_id = submit("--run", "run-a")
    path = project / "jobs" / "runs" / "run-a" / "job.json"
    job = json.loads(path.read_text())
    path.write_text(
        json.dumps(job | {"versions": job["versions"] | {"torch": "0.1\x1b[31m"}, "python": "/gone/python"})
    )
    done = run_hpcdist("rerun", job_id, "--dry-run")
    assert done.code == 0, done.err
    assert "  torch 0.1 -> " in done.err
    assert "  --python /gone/python -> " in done.err
    assert "\x1b" not in done.err


def test_a_record_of_an_older_hpcdist_is_rerun_too(project):
    submit("--run", "run-a")
    path = project / "jobs" / "runs" / "run-a" / "job.json"
    job = json.loads(path.read_text())
    for name in ("python", "template", "rerun_of"):
        del job[name]
    path.write_text(json.dumps(job))
    assert run_hpcdist("rerun", "run-a", "--wait").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("run-a", "--set", "nodez=2"), 2, "unknown key 'nodez'\nhint: did you mean 'nodes'?"),
        (("run-a", "--set", "nodes=two"), 2, "--set nodes='two'"),
        (("run-a", "--set", "nodes=0"), 2, "nodes is 0"),
        (("run-a", "--set", "nodes"), 2, "has no '='"),
        (("run-a", "--set", "optimizer=magic"), 2, "optimizer"),
        (("run-a", "--set", "env=x"), 2, "second '='"),
        (("run-a", "--set", "command=[1"), 2, "command"),
        (("run-a", "--set", "mem=1G", "--set", "mem-per-cpu=1G"), 2, "exclude each other"),
        (("run-a", "--run", "../x"), 2, "../x"),
        (("nobody",), 1, "nobody"),
    ],
)
def test_what_can_t_be_rerun_ends_with_two_lines(project, arguments, code, expected):
    submit("--run", "run-a", command=("true",))
    done = run_hpcdist("rerun", *arguments)
    assert done.code == code
    assert done.err.startswith("error: ")
    assert expected in done.err
    assert "\nhint: " in done.err
    assert "Traceback" not in done.err


def test_values_are_typed_as_on_the_command_line_and_in_toml():
    texts = ["nodes=2", "lr=1e-3", "exclusive=true", "--cpus-per-task=3", "name=a=b", "setup=module load x"]
    texts += ["env=A=1", "env=B=x=y", 'sbatch={ hint = "nomultithread" }', "command=python 'my script.py'", "mem="]
    assert parse_changes(texts) == {
        "nodes": 2,
        "lr": 0.001,
        "exclusive": True,
        "cpus_per_task": 3,
        "name": "a=b",
        "setup": ["module load x"],
        "env": {"A": "1", "B": "x=y"},
        "sbatch": {"hint": "nomultithread"},
        "command": ["python", "my script.py"],
        "mem": None,
    }


def test_one_of_two_that_exclude_each_other_replaces_the_other():
    job = JobSpec(name="a", layout=Layout(mem="4G"), training=Training(batch_size=64))
    changed = change_job(job, {"mem_per_cpu": "1G", "batch_size_per_rank": 8})
    assert (changed.layout.mem, changed.layout.mem_per_cpu) == (None, "1G")
    assert (changed.training.batch_size, changed.training.batch_size_per_rank) == (None, 8)
    with pytest.raises(UsageError):
        change_job(job, {"mem": "1G", "mem_per_cpu": "1G"})


def test_a_local_run_is_advised_from_its_ranks(project):
    """Two ranks that slept: one CPU and little memory are enough."""
    job_id = submit(
        "--nodes", 2, "--mem", "4G", "--time", "60", command=(sys.executable, "-c", "import time; time.sleep(1)")
    )
    done = run_hpcdist("advise", job_id)
    assert done.code == 0, done.err
    assert "--mem 4G -> 128M" in done.out
    assert "--time 60 -> 5" in done.out
    assert "note: one job of 1 s" in done.out or "note: one job of 2 s" in done.out
    again = run_hpcdist("rerun", job_id, "--advised", "--set", "time=7", "--wait")
    assert again.code == 0, again.err
    layout = read_job(project, "local-2")["job"]["layout"]
    assert (layout["mem"], layout["time"]) == ("128M", "7")
    listed = json.loads(run_hpcdist("advise", job_id, "local-2", "--json").out)
    assert [one["advice"]["jobs"] for one in listed["requests"]] == [["local-1"], ["local-2"]]


def test_the_record_of_a_local_run_has_its_timeline(project):
    submit("--nodes", 2, command=("sleep", "1"))
    (path,) = (project / "jobs" / "runs").glob("*/record.json")
    record = json.loads(path.read_text())
    timeline = record["timeline"]
    assert timeline["unsplit_s"] == pytest.approx(1, abs=0.5)
    assert timeline["steady_s"] is None
    parts = sum(timeline[f"{name}_s"] for name in ("queued", "lost", "launch", "unsplit", "shutdown"))
    assert parts == pytest.approx(timeline["total_s"])
    assert record["audit"]["ranks"] == 2
