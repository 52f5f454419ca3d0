"""Studies through the program as a user runs it: on a stand-in for Slurm that remembers, and on this machine."""

import errno
import fcntl
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from hpcdist.config.job import build_job
from hpcdist.config.project import find_project
from hpcdist.errors import HpcdistError, NotReadyError, UsageError
from hpcdist.jobs.job import Job
from hpcdist.slurm import queue
from hpcdist.studies import batches
from hpcdist.studies.run import run_study
from hpcdist.studies.state import list_studies, load_study, locked
from hpcdist.studies.study_file import parse_study
from hpcdist.studies.trials import query_trials, read_records
from hpcdist.studies.variants import expand, list_trials
from tests.conftest import run_hpcdist

FAKE = Path(__file__).parents[1] / "fake_slurm.py"
TRUE = '[options]\ncommand = ["true"]\ntime = "6"\n'
TWO = 'name = "two"\nlayouts = ["1x1", "2x1"]\nrepeat = 3\n' + TRUE


class FakeSlurm:
    """What the stand-in was given, and what it is to say."""

    def __init__(self, folder):
        self.folder = folder

    def jobs(self):
        path = self.folder / "jobs.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def set(self, **states):
        self.write("states.json", {name.removeprefix("j"): state for name, state in states.items()})

    def write(self, name, value):
        (self.folder / name).write_text(value if isinstance(value, str) else json.dumps(value))

    def tasks(self):
        """How many tasks were submitted in all."""
        arrays = [job["array"] for job in self.jobs().values()]
        return sum(int(re.match(r"0-(\d+)", array)[1]) + 1 if array else 1 for array in arrays)


@pytest.fixture
def slurm(project, stand_in, monkeypatch):
    folder = project / "fake"
    folder.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    for command in ("sbatch", "squeue", "sacct", "scontrol", "scancel"):
        stand_in(command, f'exec {sys.executable} -S {FAKE} {command} "$@"')
    return FakeSlurm(folder)


def write(text, name="s.toml"):
    Path(name).write_text(text)
    return name


def study_run(text, *options):
    return run_hpcdist("study", "run", write(text), *options)


def run_here(text, **options):
    """As `study run`, in this process, which is quicker."""
    project = find_project(Path.cwd())
    return run_study(parse_study(text, "s.toml"), project, backend=options.pop("backend", "slurm"), **options)


def test_trials_of_one_shape_are_one_array(slurm):
    done = study_run(TWO)
    assert done.code == 0, done.err
    assert done.out == "101\n102\n"
    jobs = slurm.jobs()
    assert [job["array"] for job in jobs.values()] == ["0-2", "0-2"]
    assert [job["name"] for job in jobs.values()] == ["two", "two"]
    record = json.loads(next(Path("jobs/runs").glob("two-1x1-*/job.json")).read_text())
    assert (record["study"], record["job_id"]) == ("two", "101")
    assert re.fullmatch("two-1x1-[0-9a-f]{8}", record["run"])


def test_swept_options_are_the_array_s_tasks(slurm):
    text = 'name = "b"\nlayouts = ["1x1"]\nrepeat = 2\n[grid]\nbatch-size = [128, 512]\n'
    run_here(text)
    script = next(Path("jobs/runs").glob("b-1x1-*/script.sbatch")).read_text()
    assert "  0) set -- --batch-size 128 --seed 1 ;;\n  1) set -- --batch-size 512 --seed 1 ;;\n" in script
    assert "  2) set -- --batch-size 128 --seed 2 ;;\n  3) set -- --batch-size 512 --seed 2 ;;\n" in script


def test_layouts_of_one_shape_that_ask_for_other_nodes_are_jobs_of_their_own(slurm):
    run_here('name = "c"\n[[layouts]]\nconstraint = "a"\n[[layouts]]\nconstraint = "b"\n' + TRUE)
    assert [job["array"] for job in slurm.jobs().values()] == [None, None]


def test_run_again_sends_nothing_twice(slurm):
    first = study_run(TWO)
    again = study_run(TWO)
    assert (again.code, again.out, len(slurm.jobs())) == (0, first.out, 2)


def test_an_edited_file_sends_only_what_is_new(slurm):
    run_here(TWO)
    state = run_here(TWO.replace("repeat = 3", "repeat = 4").replace('"2x1"', '"1x2", "2x1"'))
    # The new layout's four repeats, and a fourth of each of the others.
    assert [job["array"] for job in list(slurm.jobs().values())[2:]] == ["0-3", None, None]
    assert slurm.tasks() == 12 == len({(trial.run, trial.task) for trial in state.trials})
    fewer = run_here(TWO.replace('"1x1", ', "").replace("repeat = 3", "repeat = 1"))
    assert (len(fewer.trials), len(fewer.former), len(slurm.jobs())) == (1, 11, 5)


def test_other_prices_limits_or_baselines_send_nothing(slurm):
    run_here(TWO)
    state = run_here('baseline = "2x1"\n' + TWO + "[prices]\nper-gpu-hour = 2\n[limits]\nmax-concurrent = 2\n")
    assert len(slurm.jobs()) == 2
    assert (state.study.baseline, load_study("two", Path.cwd()).study.prices.per_gpu_hour) == ("2x1", 2)


@pytest.mark.parametrize("moment", ["kill-before", "kill-after"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_study_killed_while_it_is_sent_goes_on_with_no_job_twice_and_none_missing(slurm, moment, number):
    slurm.write(moment, number)
    assert study_run(TWO).code == -9
    assert len(slurm.jobs()) == (number if moment == "kill-after" else number - 1)
    slurm.write(moment, 0)
    done = study_run(TWO)
    assert done.code == 0, done.err
    assert (len(slurm.jobs()), slurm.tasks()) == (2, 6)
    assert done.out.split() == list(slurm.jobs())


def test_a_study_killed_while_it_is_sent_and_edited_then_sends_no_job_twice(slurm):
    slurm.write("kill-after", 1)
    assert study_run(TWO).code == -9
    slurm.write("kill-after", 0)
    assert study_run(TWO.replace("repeat = 3", "repeat = 4")).code == 0
    # 1x1 was sent with three repeats and gets its fourth alone; 2x1 was not, and goes whole.
    assert sorted(job["array"] or "" for job in slurm.jobs().values()) == ["", "0-2", "0-3"]


def test_a_script_that_was_never_sent_may_be_another_one_now(slurm, project):
    slurm.write("kill-before", 1)
    assert study_run(TWO).code == -9
    slurm.write("kill-before", 0)
    write('setup = ["echo site changed"]\n', "hpcdist.toml")
    done = study_run(TWO)
    assert done.code == 0, done.err
    assert slurm.tasks() == 6


def test_two_at_once_do_not_send_twice(slurm):
    import subprocess

    from tests.conftest import HPCDIST

    write(TWO)
    both = [subprocess.Popen([*HPCDIST, "study", "run", "s.toml"], stdout=subprocess.PIPE) for _ in range(2)]
    outcomes = {one.communicate()[0] for one in both}
    assert len(outcomes) == 1
    assert slurm.tasks() == 6


def test_a_study_that_another_process_runs_is_left_alone(project, monkeypatch):
    monkeypatch.setattr("hpcdist.studies.state.LOCK_PATIENCE_S", 0)
    with locked("two", project), pytest.raises(NotReadyError, match="another hpcdist"), locked("two", project):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_the_disk_locks_nothing_a_study_runs_all_the_same(slurm, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_here(TWO)
    assert slurm.tasks() == 6


def test_a_study_s_lock_that_fails_otherwise_is_an_error(project, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(HpcdistError, match="Input/output error"), locked("two", project):
        pass


def test_a_refused_layout_is_a_row_and_the_others_are_sent(slurm):
    slurm.write("refuse", "--nodes=2")
    done = study_run(TWO)
    assert done.code == 1
    assert "2x1 and others was refused: sbatch: Batch job submission failed" in done.err
    shown = run_hpcdist("study", "status", "two", "--json")
    states = [one["status"]["state"] for one in json.loads(shown.out)]
    assert states == ["PENDING", "REFUSED"] * 3
    assert study_run(TWO).code == 1  # nothing is tried again by itself
    assert len(slurm.jobs()) == 1
    slurm.write("refuse", "nothing")
    done = study_run(TWO, "--retry")
    assert done.code == 0, done.err
    assert slurm.tasks() == 6
    assert list(Path("jobs/runs").glob("two-2x1-*-retry1"))


def test_failed_trials_are_run_again_only_when_asked(slurm):
    run_here(TWO)
    slurm.set(j101_0="COMPLETED", j101_1="FAILED", j101_2="TIMEOUT", j102_0="RUNNING")
    run_here(TWO)
    assert len(slurm.jobs()) == 2
    state = run_here(TWO, retry=True)
    assert (len(slurm.jobs()), slurm.jobs()["103"]["array"]) == (3, "0-1")
    again = [trial for trial in state.trials if trial.run.endswith("-retry1")]
    assert [(trial.variant, trial.repeat) for trial in again] == [("1x1", 2), ("1x1", 3)]
    assert [trial.task for trial in state.former] == ["1", "2"]
    run_here(TWO)
    assert len(slurm.jobs()) == 3


def test_no_more_run_at_once_than_the_limit(slurm):
    run_here(TWO + "[limits]\nmax-concurrent = 1\n")
    jobs = slurm.jobs()
    assert [job["array"] for job in jobs.values()] == ["0-2%1", "0-2%1"]
    assert [job["dependency"] for job in jobs.values()] == [None, "afterany:101"]
    run_here(TWO.replace('"2x1"', '"2x1", "1x2"') + "[limits]\nmax-concurrent = 1\n")
    assert slurm.jobs()["103"]["dependency"] == "afterany:101:102"
    slurm.set(**{f"j{job}_{task}": "COMPLETED" for job in (101, 102, 103) for task in range(3)})
    run_here(TWO.replace('"2x1"', '"2x1", "1x2", "2x2"') + "[limits]\nmax-concurrent = 1\n")
    assert slurm.jobs()["104"]["dependency"] is None  # Slurm may have forgotten jobs that are over


@pytest.mark.parametrize(
    ("widths", "width", "most", "expected"),
    [
        ([], 1, 1, ()),
        ([1], 1, 1, ("0",)),
        ([1], 1, 2, ()),
        ([1, 1, 1], 1, 2, ("0", "1")),
        ([2, 1], 1, 2, ("0",)),
        ([1, 2], 2, 2, ("0", "1")),
        ([3, 1, 1], 2, 4, ("0",)),
    ],
)
def test_which_jobs_to_wait_for(widths, width, most, expected):
    living = [(str(place), one) for place, one in enumerate(widths)]
    assert batches.jobs_to_wait_for(living, width, most) == expected


def test_a_study_above_its_gpu_hours_sends_nothing(slurm):
    # By hand: 3 repeats of 6 minutes on 1 GPU and on 2: 3 x 0.1 x (1 + 2) = 0.9 GPU-hours.
    done = study_run(TWO + "[limits]\nmax-gpu-hours = 0.89\n")
    assert done.code == 2
    assert "may take 0.90 GPU-hours by its time limits; max-gpu-hours is 0.89" in done.err
    assert (slurm.jobs(), list_studies(Path.cwd())) == ({}, [])
    run_here(TWO + "[limits]\nmax-gpu-hours = 0.9\n")
    assert slurm.tasks() == 6


def test_a_limit_on_gpu_hours_needs_time_limits(slurm):
    with pytest.raises(UsageError, match="1x1 has no time limit") as caught:
        run_here(TWO.replace('time = "6"\n', "") + "[limits]\nmax-gpu-hours = 1\n")
    assert "time" in caught.value.hint


def test_trials_made_again_count_for_the_limit(slurm):
    text = TWO + "[limits]\nmax-gpu-hours = 1.0\n"
    run_here(text)
    slurm.set(j101_0="FAILED", j102_0="FAILED")
    with pytest.raises(UsageError, match=r"1\.20 GPU-hours by its time limits, 0\.30 of them in former trials"):
        run_here(text, retry=True)
    assert len(slurm.jobs()) == 2


def test_gpu_hours_of_a_cpu_layout_are_rank_hours():
    job = build_job({"nodes": 2, "gpus": 0, "tasks_per_node": 3, "time": "1:00:00", "command": ["true"]})
    assert batches.most_gpu_hours(job) == 6
    training = build_job({"nodes": 2, "time": "1:00:00", "max_requeues": 2})
    assert batches.most_gpu_hours(training) == 6  # it may begin again twice at its limit


def test_an_array_is_no_larger_than_the_cluster_allows(slurm):
    slurm.write("MaxArraySize", "4")
    run_here('name = "many"\nlayouts = ["1x1"]\nrepeat = 10\n' + TRUE)
    assert [job["array"] for job in slurm.jobs().values()] == ["0-3", "0-3", "0-1"]


def test_a_study_is_continued_where_and_how_it_was_begun(slurm, project, monkeypatch):
    run_here(TWO)
    with pytest.raises(UsageError, match="begun with --backend slurm"):
        run_here(TWO, backend="local")
    (project / "below").mkdir()
    (project / "hpcdist.toml").write_text("")
    monkeypatch.chdir(project / "below")
    with pytest.raises(UsageError, match=f"begun in {project}"):
        run_here(TWO)


def test_two_files_with_one_name_are_told_apart(slurm):
    study_run(TWO)
    done = run_hpcdist("study", "run", write(TWO, "other.toml"))
    assert done.code == 2
    assert "s.toml is a study called two too" in done.err
    Path("s.toml").unlink()  # it was renamed
    assert run_hpcdist("study", "run", "other.toml").code == 0


def test_a_dry_run_writes_and_sends_nothing(slurm):
    done = study_run(TWO, "--dry-run")
    assert done.code == 0, done.err
    assert re.search(r"^3 +2x1 +3 +two-2x1-[0-9a-f]{8} +2x1 \(3 times\)$", done.out, re.MULTILINE)
    assert "6 trials, GPU-hours: 0.90 at most; nothing was sent" in done.err
    assert (slurm.jobs(), Path("jobs").exists()) == ({}, False)


def test_the_name_of_a_study_is_completed_and_its_table_shown(slurm):
    study_run(TWO)
    slurm.set(j101_0="COMPLETED", j101_1="RUNNING", j101_2="FAILED")
    done = run_hpcdist("study", "list")
    assert re.search(r"^two +2 +6 +6 trials: 1 done, 1 running, 3 pending, 1 failed", done.out, re.MULTILINE)
    words = run_hpcdist(
        env={"_HPCDIST_COMPLETE": "bash_complete", "COMP_WORDS": "hpcdist study status t", "COMP_CWORD": "3"}
    )
    assert words.out == "plain,two\n"
    table = run_hpcdist("study", "status", "two")
    assert re.search(r"^1x1 +3 +FAILED +00:01:00 +101_2", table.out, re.MULTILINE)


def test_waiting_ends_with_how_many_did_what(slurm):
    run_here(TWO)
    slurm.set(**{f"j{job}_{task}": "COMPLETED" for job in (101, 102) for task in range(3)})
    done = study_run(TWO, "--wait")
    assert done.code == 0, done.err
    assert "two: 6 trials: 6 done" in done.err
    assert "hpcdist report two" in done.err
    slurm.set(**{f"j{job}_{task}": "FAILED" for job in (101, 102) for task in range(3)})
    assert study_run(TWO, "--wait").code == 1


def test_a_cancelled_study_is_over(slurm):
    run_here(TWO)
    slurm.set(**{f"j101_{task}": "COMPLETED" for task in range(3)})
    done = run_hpcdist("study", "cancel", "two")
    assert (done.code, done.err) == (0, "cancelled 102\n")
    states = [status.state for _, status in query_trials(load_study("two", Path.cwd()))]
    assert states == ["COMPLETED", "CANCELLED"] * 3
    assert run_hpcdist("study", "cancel", "two").err == "two has no job that is not over\n"


def test_records_are_read_for_all_trials_at_once(slurm):
    slurm.write("refuse", "--nodes=2")
    state = run_here(TWO)
    slurm.set(j101_0="COMPLETED", j101_1="FAILED")
    (slurm.folder / "asked").unlink(missing_ok=True)
    records = read_records(state)
    found = [record.status.state if record else None for _, record in records]
    assert found == ["COMPLETED", "REFUSED", "FAILED", "REFUSED", "PENDING", "REFUSED"]
    assert records[0][1].efficiency.wall_time_s == 60
    assert records[0][1].failure is None
    assert records[2][1].failure is not None
    assert records[4][1].efficiency is None
    assert not list(Path("jobs/runs").rglob("record.json"))
    # States, figures, and how the failed ones ended: three questions, however many trials.
    assert (slurm.folder / "asked").read_text().count("sacct") == 3


def test_a_thousand_trials_are_sent_and_read_in_seconds(slurm):
    text = 'name = "many"\nlayouts = ["1x1"]\nrepeat = 1000\n' + TRUE + "[grid]\nargs = [['a']]\n"
    began = time.monotonic()
    state = run_here(text)
    sent_s = time.monotonic() - began
    (run,) = Path("jobs/runs").glob("many-*")
    assert (run / "script.sbatch").stat().st_size < 4_000_000
    slurm.set(**{f"j101_{task}": "FAILED" if task % 10 == 0 else "COMPLETED" for task in range(1000)})
    began = time.monotonic()
    records = read_records(state)
    read_s = time.monotonic() - began
    assert sum(record.status.state == "COMPLETED" for _, record in records) == 900
    # Generous: other tests may have the machine.
    assert (sent_s < 10, read_s < 10) == (True, True), (sent_s, read_s)


def test_figures_of_a_study_are_a_table(slurm):
    run_here(TWO)
    slurm.set(j101_0="COMPLETED", j101_1="COMPLETED")
    done = run_hpcdist("seff", "--study", "two")
    assert done.code == 0, done.err
    assert [line.split()[:3] for line in done.out.splitlines()[1:]] == [
        ["101_0", "1x1", "COMPLETED"],
        ["101_1", "1x1", "COMPLETED"],
    ]
    assert "4 trial(s) have no figures yet" in done.err
    assert run_hpcdist("seff", "--study", "two", "101").code == 2
    assert run_hpcdist("seff", "--study", "nobody").code == 1


def test_figures_that_accounting_does_not_have_yet_are_waited_for(slurm):
    """Of two arrays of three tasks each, sacct had four rows a moment after all had left the queue [22.05.8]."""
    state = run_here(TWO)
    slurm.set(**{f"j{job}_{task}": "COMPLETED" for job in (101, 102) for task in range(3)})
    slurm.write("behind", {"101_2": 2, "102_1": 3})
    done = run_hpcdist("seff", "--study", "two", "--json")
    assert (done.code, done.err, len(json.loads(done.out))) == (0, "", 6)
    slurm.write("behind", {"101_2": 2, "102_1": 3})
    assert all(record.efficiency.wall_time_s == 60 for _, record in read_records(state))
    slurm.write("behind", {"101_2": 2, "102_1": 3})
    assert study_run(TWO, "--wait").code == 0
    assert len(json.loads(run_hpcdist("seff", "101", "102", "--json").out)) == 6
    slurm.write("behind", {"101_0": 2})
    assert Job.find("101").wait().state == "COMPLETED"
    assert len(json.loads(run_hpcdist("seff", "101", "--source", "sacct", "--json").out)) == 3


def test_a_trial_that_slurm_lost_ends_the_waiting_and_is_run_again(slurm):
    run_here(TWO)
    slurm.set(**{f"j{job}_{task}": "COMPLETED" for job in (101, 102) for task in range(3)} | {"j101_1": "LOST"})
    done = study_run(TWO, "--wait")
    assert done.code == 1
    assert "6 trials: 5 done, 1 failed" in done.err
    assert "Slurm does not know it any more" in done.out
    assert study_run(TWO, "--retry").code == 0
    assert slurm.tasks() == 7


def test_figures_that_accounting_never_has_are_not_waited_for_long(slurm, monkeypatch):
    monkeypatch.setattr(queue, "ACCOUNTING_LAG_S", 0.5)
    state = run_here(TWO)
    slurm.set(**{f"j{job}_{task}": "COMPLETED" for job in (101, 102) for task in range(3)})
    slurm.write("behind", {"101_2": 1000})
    began = time.monotonic()
    records = read_records(state)
    assert time.monotonic() - began < 5
    assert [record.efficiency is None for _, record in records] == [False] * 4 + [True, False]


def test_a_study_is_no_job_and_a_job_no_study(project):
    done = run_hpcdist("submit", write(TWO))
    assert (done.code, done.err.splitlines()[1]) == (2, "hint: hpcdist study run s.toml")
    done = run_hpcdist("study", "run", write("nodes = 2\n", "job.toml"))
    assert done.code == 2
    assert "nodes is an option of the jobs" in done.err
    done = run_hpcdist("study", "run", write('name = "x"\n', "job.toml"))
    assert (done.code, "a job: hpcdist submit FILE" in done.err) == (2, True)


def test_here_trials_run_one_after_the_other(project):
    text = 'name = "here"\nlayouts = ["1x1", "2x1"]\nrepeat = 2\n[options]\ncommand = ["sh", "-c", "echo $1", "x"]\n'
    text += '[zip]\nargs = [["a"], ["b"]]\n'
    done = study_run(text, "--backend", "local", "--wait")
    assert done.code == 0, done.err
    assert "8 trials: 8 done" in done.err
    assert "2x1 args=b, repeat 2 (8 of 8): local-8 COMPLETED" in done.err
    logs = sorted(path.read_text() for path in Path("jobs/runs").glob("*/logs/*_0_log.out"))
    assert logs == ["a\n"] * 4 + ["b\n"] * 4
    states = [json.loads(path.read_text()) for path in Path("jobs/runs").glob("*/local.json")]
    states.sort(key=lambda state: state["started_at_s"])
    assert all(one["ended_at_s"] <= next_["started_at_s"] for one, next_ in itertools.pairwise(states))
    assert study_run(text, "--backend", "local").code == 0
    assert len(list(Path("jobs/runs").glob("here-*"))) == 8
    records = read_records(load_study("here", project))
    assert {record.status.state for _, record in records} == {"COMPLETED"}


def test_here_a_killed_study_goes_on(project):
    import signal
    import subprocess

    from tests.conftest import HPCDIST

    text = 'name = "here"\nlayouts = ["1x1"]\nrepeat = 3\n[options]\ncommand = ["sleep", "2"]\n'
    write(text)
    begun = subprocess.Popen([*HPCDIST, "study", "run", "s.toml", "--backend", "local"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(Path("jobs/runs").glob("*/local.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    done = run_hpcdist("study", "run", "s.toml", "--backend", "local")
    assert done.code == 0, done.err
    assert "3 trials: 3 done" in done.err
    assert len(list(Path("jobs/runs").glob("here-*"))) == 3


def test_here_each_repeat_of_the_training_has_another_seed(project):
    study = parse_study('name = "s"\nlayouts = ["1x1"]\nrepeat = 2\n[options]\nseed = 7\n', "s.toml")
    variants = expand(study, {})
    made = batches.make_batches(study, variants, list_trials(study, variants), largest_array=1)
    assert [batch.options["seed"] for batch in made] == [7, 8]
    again = [replace(trial, run="old") for trial in made[0].trials]
    (retried,) = batches.make_batches(study, variants, list_trials(study, variants)[:1], again, largest_array=1)
    assert re.fullmatch("s-1x1-[0-9a-f]{8}-retry1", retried.run)
