"""The same jobs as sacct of every Slurm release from 20.11 to 26.05 has them; see tests/data/releases/README.md."""

from pathlib import Path

import pytest

from hpcdist.records.efficiency import Efficiency
from hpcdist.slurm.sacct import iter_sacct, parse_sacct
from hpcdist.slurm.sacct_query import ASKED_FIELDS

DATA = Path(__file__).parents[1] / "data" / "releases"
RELEASES = ("20.11", "21.08", "22.05", "23.02", "23.11", "24.05", "24.11", "25.05", "25.11", "26.05")
FILES = [*[f"{release}.rows" for release in RELEASES], *[f"{release}.json" for release in RELEASES[4:]]]
MIB = 1024**2

# By hand from the README's description: state, nodes, cores, wall-clock s, CPU s, CPU efficiency, memory used and asked
# for in MiB, memory efficiency.
EXPECTED = {
    "101": ("COMPLETED", 1, 2, 100, 150.25, 0.75125, 400, 1000, 0.4),  # 150.25 / (2 * 100)
    "102": ("COMPLETED", 2, 4, 200, 400, 0.5, 500, 2000, 0.25),  # 1.5 + 198.5 + 200; the second step's tasks, summed
    "104": ("COMPLETED", 1, 1, 50, 25, 0.5, 50, 100, 0.5),
    "103": ("FAILED", 1, 1, 40, 10, 0.25, 25, 100, 0.25),
    "105": ("COMPLETED", 1, 4, 60, 120, 0.5, 500, 2000, 0.25),  # 4 * 500 MB
    "106": ("COMPLETED", 1, 8, 200, 400, 0.25, 1000, 4000, 0.25),
    "107": ("COMPLETED", 1, 1, 30, 24, 0.8, 100, 200, 0.5),
    "108": ("COMPLETED", 1, 2, 50, 90, 0.9, 60, 1000, 0.06),
    "109": ("CANCELLED", 1, 2, 0, None, None, None, 1000, None),
    "110": ("RUNNING", 1, 2, 87, None, None, None, 1000, None),
    "111": ("PENDING", 2, 6, None, None, None, None, 2000, None),
}


def lines_of(name: str) -> list[str]:
    return [line for line in (DATA / name).read_text().split("\n") if not line.startswith("#")]


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def jobs(name: str) -> dict[str, Efficiency]:
    return {job.job_id: job for job in parse_sacct(lines_of(name))}


def test_every_release_prints_the_fields_that_are_asked_for() -> None:
    assert {lines_of(name)[0] for name in FILES if name.endswith(".rows")} == {"|".join(ASKED_FIELDS)}


def test_figures(jobs: dict[str, Efficiency]) -> None:
    assert {
        job.job_id: (
            job.state,
            job.nodes,
            job.cores,
            job.wall_time_s,
            job.cpu_time_s,
            job.cpu_efficiency,
            job.memory_used_bytes and job.memory_used_bytes / MIB,
            job.memory_requested_bytes and job.memory_requested_bytes / MIB,
            job.memory_efficiency,
        )
        for job in jobs.values()
    } == EXPECTED
    assert not any(job.memory_is_estimate for job in jobs.values())


def test_streamed_they_are_the_same(name: str, jobs: dict[str, Efficiency]) -> None:
    assert {job.job_id: job for job in iter_sacct(lines_of(name))} == jobs


def test_times(jobs: dict[str, Efficiency]) -> None:
    began = 1790000000
    assert [(jobs[one].submitted_at_s, jobs[one].started_at_s, jobs[one].ended_at_s) for one in ("101", "109")] == [
        (began, began + 5, began + 105),
        (began + 7, None, began + 30),  # cancelled while pending, so it never started
    ]
    assert [(jobs[one].started_at_s, jobs[one].ended_at_s, jobs[one].live) for one in ("110", "111")] == [
        (began + 13, None, True),
        (None, None, False),
    ]
    assert {job.time_limit_s for job in jobs.values()} == {600}


def test_an_array_s_tasks(jobs: dict[str, Efficiency]) -> None:
    assert (jobs["104"].array_job_id, jobs["103"].array_job_id) == ("103_1", "103_2")


def test_exit_status(name: str, jobs: dict[str, Efficiency]) -> None:
    """Up to 25.05 sacct's text has 130 as 2."""
    is_cut = name.endswith(".rows") and name < "25.11"
    assert jobs["103"].exit_code == (2 if is_cut else 130)
    assert jobs["101"].exit_code == 0
    assert (jobs["110"].exit_code, jobs["111"].exit_code) == (None, None)


def test_what_memory_was_asked_per(name: str, jobs: dict[str, Efficiency]) -> None:
    is_said = name == "20.11.rows" or name.endswith(".json")
    assert (jobs["101"].memory_per, jobs["105"].memory_per) == (("node", "core") if is_said else (None, None))


def test_gpus_since_23_02_with_their_memory_and_a_peak(name: str, jobs: dict[str, Efficiency]) -> None:
    job = jobs["106"]
    assert (job.gpus, job.gpu_efficiency) == (2, None)
    if name < "23.02":
        assert (job.gpu_memory_used_bytes, job.extra) == (None, {})
    else:
        assert (job.gpu_memory_used_bytes, job.extra) == (6000 * MIB, {"gres/gpuutil": "150"})


def test_unequal_tasks(jobs: dict[str, Efficiency]) -> None:
    """The largest against the mean: 300 / 250 and, in the job that is its own step, 40 / 30."""
    differs = [jobs[one].extra["The task which had the largest memory consumption"] for one in ("102", "108")]
    assert [text.split()[2] for text in differs] == ["120.00%", "133.33%"]


def test_a_requeued_job_keeps_its_first_run(jobs: dict[str, Efficiency]) -> None:
    (first,) = jobs["107"].earlier_runs
    assert (first.state, first.wall_time_s, first.cpu_time_s, first.memory_used_bytes) == ("NODE_FAIL", 30, None, None)
