"""What hpcdist says of jobs in every situation, against figures computed by hand from raw `sacct -P` rows.

All jobs are submitted up front, and run while the one that hits its time limit waits for its minute to pass. Node n4
alone is preempted on, killed and healed. `pytest -s` prints the table of situations, raw beside ours.
"""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from hpcdist.jobs.efficiency import group_name
from hpcdist.records.efficiency import Efficiency
from hpcdist.slurm import commands
from hpcdist.slurm.sacct import parse_sacct
from hpcdist.slurm.sacct_query import TIME_ENVIRONMENT, sacct_arguments
from tests.cluster.by_hand import memory_bytes, seconds
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

# Holds so many MB for two seconds, long enough to be sampled, and works for 0.3 s of them.
EAT = """
import sys, time
end, held = time.time() + 2, bytearray(b"1") * (int(sys.argv[1]) * 1_000_000)
while time.process_time() < 0.3:
    pass
time.sleep(max(0, end - time.time()))
"""
NAME = "a|b\x1b[31m\n7777|7777|c|mallory"
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
FIELDS = "JobID,JobIDRaw,State,ExitCode,Submit,Start,End,TotalCPU,AllocCPUS,NNodes,AllocTRES,ReqTRES,TRESUsageInTot"

SITUATIONS = {
    "one core": (["--ntasks=1"], "srun $EAT 50"),
    "two nodes": (["--nodes=2", "--ntasks-per-node=1"], "srun $EAT 40"),
    "two tasks": (["--nodes=1", "--ntasks=2"], "srun $EAT 40"),
    "per-CPU memory": (["--cpus-per-task=2", "--mem-per-cpu=300M"], "srun --cpus-per-task=2 $EAT 30"),
    "batch only": (["--ntasks=1"], "$EAT 60"),
    "two steps": (["--ntasks=1"], "srun $EAT 20; srun $EAT 70"),
    "exit 3": (["--ntasks=1"], "srun true; exit 3"),
    "unequal memory": (["--nodes=1", "--ntasks=2"], "srun sh -c 'exec $EAT $((20 + 80 * SLURM_PROCID))'"),
    "array": (["--array=1-2"], "srun $EAT $((30 * SLURM_ARRAY_TASK_ID))"),
    "time limit": (["--time=1"], "sleep 300"),
    "cancelled": (["--ntasks=1"], "srun $EAT 20; sleep 300"),
    "cancelled while pending": (["--hold", "--nodes=2"], "true"),
    "hostile name": (["--ntasks=1", f"--job-name={NAME}"], "srun $EAT 20"),
    "heterogeneous": (["--mem=100M", ":", "--mem=200M"], "srun --het-group=0,1 $EAT 20"),
}
"""Options and script of those that need nothing done to them."""

ON_N4 = ("preempted", "node death", "node death, not requeued")
ALL = [*SITUATIONS, "never ran", *ON_N4]
AGAIN = '[ -n "$SLURM_RESTART_COUNT" ] || sleep 300; $EAT 20'


class Situations:
    """The submitted jobs by situation."""

    def __init__(self, testbed, folder):
        self.testbed, self.folder, self.ids = testbed, folder, {}
        (folder / "eat.py").write_text(EAT)
        self.eat = f"{sys.executable} -S -E {folder / 'eat.py'}"

    def submit(self, name, options, script):
        """Submits; each component of a heterogeneous job, parted by `:`, has options of its own."""
        parts = " ".join(options).split(" : ") if ":" in options else None
        components = [part.split() for part in parts] if parts else [options]
        command = ["sbatch", "--parsable", "--output=/dev/null", f"--chdir={self.folder}"]
        for number, component in enumerate(components):
            elsewhere = [] if "--nodelist=n4" in component else ["--exclude=n4"]
            command += [*([":"] if number else []), *component, *elsewhere]
        said = self.testbed.run(*command, "--wrap", script.replace("$EAT", self.eat))
        self.ids[name] = said.split(";")[0].strip()

    def state(self, name):
        """The last run's state, in sacct's first word."""
        return self.states(name)[-1]

    def states(self, name):
        job = self.ids[name]
        said = self.testbed.run("sacct", "-X", "-D", "-n", "-P", f"--jobs={job}", "--format=State,End")
        rows = [line.split("|") for line in said.splitlines()]
        return [state.split()[0] if end != "Unknown" else "LIVES" for state, end in rows] or ["LIVES"]

    def wait(self, name, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{name}: {self.states(name)}"
            time.sleep(0.5)

    def wait_until(self, name, word, seconds):
        """Waits for a state the queue shows."""
        ask = ["squeue", "-h", "-t", "all", f"--jobs={self.ids[name]}", "-o", "%T"]
        self.wait(name, lambda: self.testbed.run(*ask).strip() == word, seconds)


def preempt(jobs):
    """A job in `high` wants all of n4; the one in `main` is a batch script alone, so that TERM does not end it."""
    jobs.submit("preempted", ["--requeue", "--nodelist=n4", "--cpus-per-task=4"], AGAIN)
    jobs.wait_until("preempted", "RUNNING", 30)
    jobs.testbed.run("srun", "--partition=high", "--nodelist=n4", "--cpus-per-task=4", "true")
    jobs.wait("preempted", lambda: jobs.states("preempted") == ["PREEMPTED", "COMPLETED"], 40)


def kill(jobs):
    """A power cut on n4."""
    jobs.submit("node death", ["--requeue", "--nodelist=n4"], AGAIN)
    jobs.submit("node death, not requeued", ["--no-requeue", "--nodelist=n4"], "sleep 300")
    for name in ON_N4[1:]:
        jobs.wait_until(name, "RUNNING", 30)
    try:
        subprocess.run([REPOSITORY / "testbed" / "kill-node", "n4"], env=jobs.testbed.env, check=True)
        jobs.wait("node death", lambda: jobs.states("node death")[0] == "NODE_FAIL", 60)
        jobs.wait(ON_N4[2], lambda: jobs.state(ON_N4[2]) == "NODE_FAIL", 60)
    finally:
        subprocess.run([REPOSITORY / "testbed" / "heal-node", "n4"], env=jobs.testbed.env, check=True)


def break_n4(jobs):
    preempt(jobs)
    kill(jobs)


def cancel(jobs):
    jobs.wait_until("cancelled", "RUNNING", 30)
    jobs.testbed.run("scancel", jobs.ids["cancelled while pending"])
    time.sleep(4)
    jobs.testbed.run("scancel", jobs.ids["cancelled"])


@pytest.fixture(scope="module")
def jobs(testbed, tmp_path_factory):
    """All situations, over."""
    jobs = Situations(testbed, tmp_path_factory.mktemp("situations"))
    try:
        jobs.submit("time limit", *SITUATIONS["time limit"])
        with ThreadPoolExecutor(2) as pool:
            broken = pool.submit(break_n4, jobs)
            for name in SITUATIONS.keys() - {"time limit"}:
                jobs.submit(name, *SITUATIONS[name])
            dependency = [f"--dependency=afterok:{jobs.ids['exit 3']}", "--kill-on-invalid-dep=yes"]
            jobs.submit("never ran", dependency, "true")
            pool.submit(cancel, jobs).result()
            broken.result()
        for name in ALL:
            jobs.wait(name, lambda name=name: set(jobs.states(name)) <= OVER, 100)
        yield jobs
    finally:
        subprocess.run(["scancel", *jobs.ids.values()], env=testbed.env, check=False)


# By hand


def by_hand(rows):
    """One run's figures from its own row and its steps'."""
    job, steps = rows[0], rows[1:]
    ran = "Unknown" not in (job["Start"], job["End"]) and job["Start"] != "None"
    wall_s = int(job["End"]) - int(job["Start"]) if ran else 0
    sizes = [size for size in (memory_bytes(step["TRESUsageInTot"]) for step in steps) if size is not None]
    cpu_s, cores = seconds(job["TotalCPU"]), int(job["AllocCPUS"])
    return {
        "state": job["State"].split()[0],
        "exit_code": int(job["ExitCode"].split(":")[0]),
        "nodes": int(job["NNodes"]),
        "cores": cores,
        "wall_time_s": wall_s,
        "cpu_time_s": cpu_s if cpu_s or sizes else None,
        "cpu_efficiency": cpu_s / (cores * wall_s) if wall_s and (cpu_s or sizes) else None,
        "memory_used_bytes": max(sizes, default=None),
        "memory_requested_bytes": memory_bytes(job["AllocTRES"]) or memory_bytes(job["ReqTRES"]),
    }


@pytest.fixture(scope="module")
def raw(jobs):
    """The runs of every job by its raw id, oldest first; each run its row and its steps'."""
    asked = ",".join(jobs.ids.values())
    command = ["sacct", "-P", "-n", "-D", "--noconvert", f"--jobs={asked}", f"--format={FIELDS}"]
    environment = jobs.testbed.env | {"SLURM_TIME_FORMAT": "%s"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    runs = {}
    for line in said.splitlines():
        row = dict(zip(FIELDS.split(","), line.split("|"), strict=True))
        job_id, dot, _ = row["JobIDRaw"].partition(".")
        if dot:
            runs[job_id][-1].append(row)
        else:
            runs.setdefault(job_id, []).append([row])
    return {job_id: sorted(each, key=lambda rows: int(rows[0]["Submit"])) for job_id, each in runs.items()}


@pytest.fixture(scope="module")
def ours(jobs):
    """hpcdist's figures by raw id, of one call for all jobs."""
    done = jobs.testbed.hpcdist("seff", *jobs.ids.values(), "--source", "sacct", "--json", cwd=jobs.folder)
    assert done.code == 0, done.err
    return {one["job_id"]: one for one in json.loads(done.out)}


def of(jobs, raw, name):
    """The raw ids of a situation's jobs: an array's tasks and a heterogeneous job's components are several."""
    asked = jobs.ids[name]
    found = [job_id for job_id, runs in raw.items() if re.fullmatch(rf"{asked}(_\d+|\+\d+)?", runs[0][0]["JobID"])]
    assert len(found) == (2 if name in ("array", "heterogeneous") else 1)
    return found


@pytest.mark.parametrize("name", ALL)
def test_figures_are_those_of_the_raw_rows(jobs, raw, ours, name):
    for job_id in of(jobs, raw, name):
        one = ours[job_id]
        for ran, rows in zip([*one["earlier_runs"], one], raw[job_id], strict=True):
            expected = by_hand(rows)
            assert {key: ran[key] for key in expected} == pytest.approx(expected)


EXPECTED = {
    "exit 3": ("FAILED", 3, 0),
    "time limit": ("TIMEOUT", 0, 0),
    "cancelled": ("CANCELLED", 0, 0),
    "cancelled while pending": ("CANCELLED", 0, 0),
    "never ran": ("CANCELLED", 0, 0),
    "preempted": ("COMPLETED", 0, 1),
    "node death": ("COMPLETED", 0, 1),
    "node death, not requeued": ("NODE_FAIL", None, 0),
}
"""State, exit code and number of earlier runs, where they are not COMPLETED, 0 and none."""


@pytest.mark.parametrize("name", ALL)
def test_the_situation_is_the_one_meant(jobs, raw, ours, name):
    state, exit_code, earlier = EXPECTED.get(name, ("COMPLETED", 0, 0))
    for one in (ours[job_id] for job_id in of(jobs, raw, name)):
        assert one["state"] == state
        assert exit_code is None or one["exit_code"] == exit_code
        assert len(one["earlier_runs"]) == earlier


@pytest.mark.parametrize("name", ["preempted", "node death"])
def test_totals_are_over_all_runs(jobs, raw, ours, name):
    (job_id,) = of(jobs, raw, name)
    one = msgspec.convert(ours[job_id], Efficiency)
    spans = [int(rows[0]["End"]) - int(rows[0]["Start"]) for rows in raw[job_id]]
    runs = (*one.earlier_runs, one)
    assert sum(run.wall_time_s for run in runs) == sum(spans)
    known = [by_hand(rows)["cpu_time_s"] for rows in raw[job_id]]
    assert [run.cpu_time_s for run in runs] == [figure if figure is None else pytest.approx(figure) for figure in known]


def test_what_never_ran_has_no_usage(jobs, raw, ours):
    for name in ("never ran", "cancelled while pending"):
        (job_id,) = of(jobs, raw, name)
        figures = ("cpu_time_s", "cpu_efficiency", "memory_used_bytes", "memory_efficiency", "node_list")
        assert {ours[job_id][key] for key in figures} == {None}


def test_memory_is_what_the_programs_held(jobs, raw, ours):
    """As a check of the raw rows themselves; an interpreter takes some 10 MB."""
    held = {"one core": 50, "two nodes": 80, "two tasks": 80, "two steps": 70, "unequal memory": 120, "batch only": 60}
    for name, megabytes in held.items():
        (job_id,) = of(jobs, raw, name)
        assert megabytes <= ours[job_id]["memory_used_bytes"] / 1e6 <= megabytes + 30, name


def test_a_name_forges_no_row(jobs, raw, ours):
    (job_id,) = of(jobs, raw, "hostile name")
    assert ours[job_id]["name"] == "a|b 7777|7777|c|mallory"
    assert len(ours) == sum(len(of(jobs, raw, name)) for name in ALL)


@pytest.mark.parametrize("name", ["array", "heterogeneous"])
def test_each_part_can_be_asked_for_alone(jobs, raw, ours, name):
    for job_id in of(jobs, raw, name):
        asked = raw[job_id][0][0]["JobID"]
        done = jobs.testbed.hpcdist("seff", asked, "--source", "sacct", "--json", cwd=jobs.folder)
        assert done.code == 0, done.err
        assert [one["job_id"] for one in json.loads(done.out)] == [job_id]


def test_array_tasks_can_be_asked_for_in_brackets(jobs, raw):
    asked = f"{jobs.ids['array']}_[1-2]"
    done = jobs.testbed.hpcdist("seff", asked, "--source", "sacct", "--json", cwd=jobs.folder)
    assert done.code == 0, done.err
    assert {one["job_id"] for one in json.loads(done.out)} == set(of(jobs, raw, "array"))


def test_json_says_the_same_as_the_rows(jobs, monkeypatch):
    for key, value in jobs.testbed.env.items():
        monkeypatch.setenv(key, value)
    ids = list(jobs.ids.values())
    lines = commands.run_command(["sacct", *sacct_arguments(ids)], TIME_ENVIRONMENT)
    rows = parse_sacct(lines, group_name=group_name)
    found = parse_sacct(commands.run_command(["sacct", "--json", "-D", f"--jobs={','.join(ids)}"]))
    assert len(rows) == len(found)
    by_id = {one.job_id: one for one in found}
    for one in rows:
        same(one, by_id[one.job_id])


def same(row, found):
    assert len(row.earlier_runs) == len(found.earlier_runs)
    for one, other in zip(row.earlier_runs, found.earlier_runs, strict=True):
        same(one, other)
    known = {"earlier_runs", "exit_code", "cpu_time_s", "cpu_efficiency", "gathering"}
    for field in set(Efficiency.__struct_fields__) - known:
        assert getattr(found, field) == getattr(row, field), (row.job_id, field)
    # The text is cut at milliseconds; before Slurm 23.11 the exit status of what failed is not in the JSON.
    assert found.cpu_time_s == (None if row.cpu_time_s is None else pytest.approx(row.cpu_time_s, abs=0.002))
    assert found.exit_code in (None, row.exit_code)
    assert found.exit_code is not None or row.state != "COMPLETED"


def test_a_table_of_it_all(jobs, raw, ours):
    """For reading: `pytest -s`."""
    lines = [f"{'':26} {'raw sacct (by hand)':50} hpcdist seff --json"]
    for name in ALL:
        for job_id in of(jobs, raw, name):
            one = ours[job_id]
            for ran, rows in zip([*one["earlier_runs"], one], raw[job_id], strict=True):
                left, right = (figures(value) for value in (by_hand(rows), ran))
                lines.append(f"{name:26} {left:50} {right}")
                assert left == right
    print("\n" + "\n".join(lines))


def figures(one):
    """What the table shows of one run."""
    used = "-" if one["memory_used_bytes"] is None else f"{one['memory_used_bytes'] / 2**20:.2f}"
    cpu = "-" if one["cpu_time_s"] is None else f"{one['cpu_time_s']:.3f}s"
    asked = one["memory_requested_bytes"] / 2**20
    return f"{one['state']} {one['exit_code']} {one['cores']}c {one['wall_time_s']:.0f}s {cpu} {used}/{asked:.0f}MB"
