"""`sacct --json` gives the figures that `sacct -P` gives for the same jobs. tests/cluster asks a real cluster."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdist.errors import ParseError
from hpcdist.records.efficiency import Efficiency
from hpcdist.slurm.sacct import iter_sacct, parse_sacct

DATA = Path(__file__).parents[1] / "data" / "sacct-json"
ROWS = {job.job_id: job for job in parse_sacct((DATA / "22.05.rows").read_text())}
RELEASES = ("22.05", "23.02", "23.11")
# Not in both, or compared on its own.
APART = {"earlier_runs", "exit_code", "cpu_time_s", "cpu_efficiency", "gathering", "memory_per"}


def read(release: str) -> dict[str, Efficiency]:
    return {job.job_id: job for job in parse_sacct((DATA / f"{release}.json").read_text())}


def minimal(**job: object) -> str:
    """One job as `sacct --json` of 23.11 prints it, as far as it is read."""
    plain = {"job_id": 7, "state": {"current": ["COMPLETED"]}, "time": {"elapsed": 10, "start": 5, "end": 15}}
    return json.dumps({"jobs": [plain | job]})


def one(**job: object) -> Efficiency:
    (found,) = parse_sacct(minimal(**job))
    return found


@pytest.mark.parametrize("job_id", ROWS)
@pytest.mark.parametrize("release", RELEASES)
def test_figures_are_those_of_the_rows(release: str, job_id: str) -> None:
    found, expected = read(release)[job_id], ROWS[job_id]
    runs = zip([*found.earlier_runs, found], [*expected.earlier_runs, expected], strict=True)
    for run, row in runs:
        for field in set(Efficiency.__struct_fields__) - APART:
            assert getattr(run, field) == getattr(row, field), field
        # The rows are cut at milliseconds.
        assert run.cpu_time_s == (None if row.cpu_time_s is None else pytest.approx(row.cpu_time_s, abs=0.0021))


def test_the_rows_are_the_situations_they_are_said_to_be() -> None:
    assert {job_id: job.state for job_id, job in ROWS.items() if job.state != "COMPLETED"} == {
        "4318": "TIMEOUT",
        "4323": "CANCELLED",
        "4324": "FAILED",
    }
    assert {job_id for job_id, job in ROWS.items() if job.earlier_runs} == {"4319", "4340"}


@pytest.mark.parametrize("release", RELEASES)
def test_the_release_is_known(release: str) -> None:
    assert all(job.gathering and job.gathering.slurm_version[:5] == release for job in read(release).values())


@pytest.mark.parametrize("release", ["22.05", "23.02"])
def test_an_exit_status_the_json_has_lost_is_unknown(release: str) -> None:
    """These releases write SUCCESS and 0 for a job that exited with 3 [run with 22.05.8]."""
    found = read(release)
    assert (found["4324"].state, found["4324"].exit_code) == ("FAILED", None)
    assert found["4326"].exit_code == 0


def test_exit_statuses_since_23_11() -> None:
    assert {job_id: job.exit_code for job_id, job in read("23.11").items()} == {
        job_id: job.exit_code for job_id, job in ROWS.items()
    }


def test_a_signal_is_kept() -> None:
    code = {
        "status": ["SIGNALED"],
        "return_code": {"set": False, "number": 0},
        "signal": {"id": {"set": True, "number": 9}},
    }
    assert one(exit_code=code).extra["Signal"] == "9"
    old = {"status": "SIGNALED", "return_code": None, "signal": {"signal_id": 15, "name": "Terminated"}}
    assert one(exit_code=old).extra["Signal"] == "15"


def test_what_memory_was_asked_per_is_in_the_json_alone() -> None:
    asked = {"memory_per_cpu": {"set": True, "number": 500}, "memory_per_node": {"set": False, "number": 0}}
    tres = [{"type": "cpu", "count": 4}, {"type": "mem", "count": 2000}, {"type": "node", "count": 1}]
    job = one(required=asked, tres={"allocated": tres})
    assert (job.memory_per, job.memory_requested_bytes, job.cores) == ("core", 2000 * 1024**2, 4)


def test_gpus_and_their_peaks() -> None:
    tres = [{"type": "gres", "name": "gpu", "count": 2}, {"type": "gres", "name": "gpu:a100", "count": 2}]
    used = [{"type": "gres", "name": "gpuutil", "count": 150}, {"type": "gres", "name": "gpumem", "count": 4096}]
    job = one(tres={"allocated": tres}, steps=[{"tres": {"requested": {"total": used}}}])
    assert (job.gpus, job.gpu_efficiency, job.gpu_memory_used_bytes, job.extra) == (
        2,
        None,
        4096,
        {"gres/gpuutil": "150"},
    )


@pytest.mark.parametrize(
    ("current", "state"),
    [("RUNNING", "RUNNING"), (["RUNNING"], "RUNNING"), (["PENDING", "REQUEUED"], "REQUEUED"), ([], None)],
)
def test_states_as_a_word_and_as_a_list(current: object, state: str | None) -> None:
    assert one(state={"current": current}).state == state


def test_a_running_job_lives_and_has_no_figures() -> None:
    job = one(state={"current": ["RUNNING"]}, time={"elapsed": 10, "start": 5, "end": 0})
    assert (job.live, job.ended_at_s, job.cpu_time_s, job.memory_used_bytes) == (True, None, None, None)


def test_tasks_that_wait() -> None:
    array = {"job_id": 7, "task_id": {"set": False, "infinite": False, "number": 0}, "task": "[2-5]"}
    assert one(state={"current": ["PENDING"]}, array=array).array_job_id == "7_[2-5]"


@pytest.mark.parametrize("limit", [None, {"set": False, "infinite": True, "number": 0}])
def test_no_time_limit(limit: object) -> None:
    assert one(time={"limit": limit}).time_limit_s is None


def test_a_name_with_escapes_or_a_row_is_a_name() -> None:
    assert one(name="\x1b[31ma\n8\x1f8|b").name == "a 88|b"


def test_a_name_that_is_not_utf_8_can_be_written() -> None:
    (job,) = parse_sacct(minimal(name="caf#").replace("#", b"\xe9".decode(errors="surrogateescape")))
    assert job.name == "caf?"


def test_streamed_lines_are_understood_too() -> None:
    lines = (DATA / "23.11.json").read_text().splitlines(keepends=True)
    assert {job.job_id for job in iter_sacct(lines)} == set(ROWS)


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"jobs": 1}', '{"jobs": [{}]}', '{"jobs": [{"job_id": "x"}]}', "{" * 5000, '{"a":' * 100_000,
     minimal(tres={"allocated": [{"type": "mem", "count": -5}]}),
     minimal(time={"elapsed": "ages"})],
)  # fmt: skip
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises(ParseError):
        parse_sacct(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["set", "number", "type"]), inner),
    max_leaves=5,
)
KEYS = ("state", "time", "steps", "tres", "exit_code", "array", "het", "required", "name", "nodes", "allocation_nodes")


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_no_json_breaks_it(job: dict[str, object]) -> None:
    try:
        found = parse_sacct(minimal(**job))
    except ParseError:
        return
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Efficiency]) == found
