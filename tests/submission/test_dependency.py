"""What jobs wait for: Slurm's own words, and runs by their names, wherever a dependency can be given."""

import json

import pytest

from hpcdist.errors import NotFoundError, UsageError
from hpcdist.submission.prepare import resolve_dependency
from tests.conftest import run_hpcdist


@pytest.fixture
def runs(project):
    """Two runs that Slurm has, and one that it has not."""
    for name, job_id, backend in (("first-2x1", "77", "slurm"), ("next", "78", "slurm"), ("here", "local-1", "local")):
        folder = project / "jobs" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"job_id": job_id, "backend": backend}))
    return project


# The words of sbatch(1), --dependency, of Slurm 22.05.
@pytest.mark.parametrize(
    "words",
    ["afterok:12", "afterany:12_3:14+5,afternotok:9", "singleton", "after:1?afterok:2", "aftercorr:7", "expand:3"],
)
def test_slurm_s_own_words_stay(project, words):
    assert resolve_dependency(words, project) == words


def test_a_job_alone_has_to_end_well(runs):
    assert resolve_dependency("12", runs) == "afterok:12"
    assert resolve_dependency("first-2x1", runs) == "afterok:77"


def test_runs_are_replaced_by_their_jobs(runs):
    assert resolve_dependency("afterany:first-2x1:5,afterok:next", runs) == "afterany:77:5,afterok:78"


def test_a_run_that_no_job_can_wait_for_is_refused(runs):
    with pytest.raises(NotFoundError, match="nobody"):
        resolve_dependency("afterok:nobody", runs)
    with pytest.raises(UsageError, match="run here has no Slurm job"):
        resolve_dependency("here", runs)


@pytest.mark.parametrize("words", [("--dependency", "first-2x1"), ("job.toml",)])
def test_a_script_has_the_job_s_id_from_the_command_line_and_from_a_file(runs, words):
    (runs / "job.toml").write_text('dependency = "first-2x1"\n')
    assert "#SBATCH --dependency=afterok:77\n" in run_hpcdist("render", *words, "--", "true").out


def test_a_rerun_waits_for_a_run(runs):
    done = run_hpcdist("submit", "--backend", "local", "--gpus", 0, "--run", "again", "--wait", "--", "true")
    assert done.code == 0, done.err
    path = runs / "jobs" / "runs" / "again" / "job.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"backend": "slurm", "job_id": "79"}))
    from hpcdist.records.store import Store
    from hpcdist.submission.rerun import prepare_rerun

    again = prepare_rerun(Store(runs).run("again").record(), runs, {"dependency": "next"})
    assert "#SBATCH --dependency=afterok:78\n" in again.prepared.script
    assert again.differences["dependency"] == (None, "afterok:78")


def test_without_slurm_nothing_waits(runs):
    done = run_hpcdist("submit", "--backend", "local", "--dependency", "12", "--", "true")
    assert done.code == 2
    assert "dependency: only Slurm's jobs wait" in done.err
