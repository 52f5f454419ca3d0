"""How long the accounting of thousands of jobs takes: raw sacct, `hpcdist seff --parsable`, reportseff, in one run.

    eval "$(testbed/env)"; python benchmarks/accounting.py [--repeats 7] [--jobs 3000] [--recorded 50000]

On the cluster: finished jobs of one trivial array, submitted where there are none yet. From a recording: synthetic
rows that one stand-in for sacct serves to both programs; it says how fast they read, nothing about Slurm.
"""

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.recording import write_recording, write_stand_in
from hpcdist.slurm.sacct_query import TIME_ENVIRONMENT, sacct_arguments

NAME = "hpcdist-bench"
HPCDIST = [str(Path(sys.executable).parent / "hpcdist"), "seff"]
HOW = "reportseff is not on PATH and was left out: pip install reportseff into another environment, add its bin to PATH"
SUBMIT_TIMEOUT_S = 1800.0


class Sample(NamedTuple):
    """One run of a command: its wall-clock, its own CPU time and its highest resident memory."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def run(command: Sequence[str], env: Mapping[str, str]) -> Sample:
    """Runs a command to its end; the memory is that of the largest process among it and its children."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, env=dict(env), stdout=subprocess.DEVNULL, stderr=complaints)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            raise SystemExit(f"{command[:3]}: {complaints.read().decode(errors='replace')}")
    return Sample(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def by_turns(commands: Mapping[str, Sequence[str]], repeats: int, env: Mapping[str, str]) -> dict[str, list[Sample]]:
    """Every command once for warming up, then `repeats` times in turn."""
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for number in range(repeats + 1):
        for name, command in commands.items():
            sample = run(command, env)
            if number:
                samples[name].append(sample)
    return samples


def show(samples: Mapping[str, Sequence[Sample]], reference: str) -> None:
    """Prints the table; the ratio is of medians, to the reference's."""
    middle = statistics.median(one.seconds for one in samples[reference])
    print(f"{'':34} {'median':>8} {'min':>8} {'max':>8} {'ratio':>6} {'CPU':>8} {'peak RSS':>9}")
    for name, of_one in samples.items():
        seconds = [one.seconds for one in of_one]
        cpu_s = statistics.median(one.cpu_s for one in of_one)
        peak = max(one.peak_bytes for one in of_one) / 1024**2
        figures = f"{statistics.median(seconds):7.3f}s {min(seconds):7.3f}s {max(seconds):7.3f}s"
        print(f"{name:34} {figures} {statistics.median(seconds) / middle:6.2f} {cpu_s:7.3f}s {peak:6.1f}MiB")


def find_finished(jobs: int) -> list[str]:
    """Array jobs of an earlier run of this benchmark, newest first, until they hold so many finished tasks."""
    listed = ["sacct", "-X", "-n", "-P", "-S", "now-30days", f"--name={NAME}", "--format=JobID,State"]
    rows = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    counts: dict[str, int] = {}
    for row in rows:
        job_id, _, state = row.partition("|")
        base = job_id.partition("_")[0]
        counts[base] = counts.get(base, 0) + (state == "COMPLETED")
    found: list[str] = []
    for base in sorted(counts, key=int, reverse=True):
        if sum(counts[one] for one in found) < jobs:
            found.append(base)
    return found if sum(counts[one] for one in found) >= jobs else []


def submit_jobs(jobs: int) -> None:
    """Submits an array of `true` and waits until it is accounted for."""
    print(f"submitting an array of {jobs} trivial jobs, once", file=sys.stderr)
    options = [f"--array=0-{jobs - 1}", f"--job-name={NAME}", "--ntasks=1", "--mem=10M", "--output=/dev/null"]
    subprocess.run(["sbatch", *options, "--wrap", "true"], check=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + SUBMIT_TIMEOUT_S
    while not find_finished(jobs):
        if time.monotonic() > deadline:
            raise SystemExit(f"the array did not finish within {SUBMIT_TIMEOUT_S:.0f} s")
        time.sleep(5)


def measure_cluster(jobs: int, repeats: int) -> None:
    """The three on the cluster's own database."""
    if not find_finished(jobs):
        submit_jobs(jobs)
    ids = find_finished(jobs)
    release = subprocess.run(["sacct", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    commands = {"raw sacct, the same fields": ["sacct", *sacct_arguments(ids)]}
    commands["hpcdist seff --parsable"] = [*HPCDIST, "--parsable", *ids]
    if shutil.which("reportseff"):
        commands["reportseff --parsable"] = ["reportseff", "--parsable", *ids]
    env = os.environ | TIME_ENVIRONMENT
    count = subprocess.run(commands["raw sacct, the same fields"], env=env, capture_output=True, check=True).stdout
    print(
        f"\nA. {release}, {len(count.splitlines())} rows of at least {jobs} finished jobs, {repeats} repeats by turns"
        " (reportseff asks for 12 fields, the others for 25)"
    )
    show(by_turns(commands, repeats, env), "raw sacct, the same fields")


def measure_recording(jobs: int, repeats: int) -> None:
    """Both programs on synthetic rows from the stand-in, and their memory for a tenth of them."""
    with tempfile.TemporaryDirectory(prefix="hpcdist-bench-") as folder:
        for count, times in ((jobs, repeats), (jobs // 10, 1)):
            place = Path(folder, str(count))
            place.mkdir()
            write_recording(place / "recording", count)
            write_stand_in(place)
            env = os.environ | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
            commands = {
                f"hpcdist seff {form}": [*HPCDIST, form, "--since", "400d"] for form in ("--parsable", "--jsonl")
            }
            if shutil.which("reportseff"):
                commands["reportseff --parsable"] = ["reportseff", "--parsable", "--since", "d=400"]
            rows = 3 * count
            print(f"\nB. A STAND-IN for sacct with {count} synthetic jobs ({rows} rows), {times} repeat(s) by turns")
            show(by_turns(commands, times, env), next(iter(commands)))


def measure_start(repeats: int) -> None:
    """How long each takes to print its help, beside the library that both stand on."""
    commands = {"hpcdist seff --help": [*HPCDIST, "--help"]}
    if shutil.which("reportseff"):
        commands["reportseff --help"] = ["reportseff", "--help"]
    commands["import click"] = [sys.executable, "-c", "import click"]
    print(f"\nC. Starts, {repeats} by turns")
    show(by_turns(commands, repeats, os.environ), next(iter(commands)))


def describe() -> str:
    """Where and with what this was measured."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    words = [cpus[0] if cpus else platform.machine(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    asking: dict[str, Callable[[], str]] = {"hpcdist": lambda: HPCDIST[0], "reportseff": lambda: "reportseff"}
    for name, program in asking.items():
        if shutil.which(program()):
            said = subprocess.run([program(), "--version"], capture_output=True, text=True, check=False).stdout.split()
            words.append(f"{name} {said[-1] if said else '?'}")
    load = os.getloadavg()[0]
    return f"{datetime.date.today().isoformat()}, {', '.join(words)}, load {load:.1f} before it began"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--recorded", type=int, default=50_000)
    options = parser.parse_args()
    print(describe())
    if not shutil.which("reportseff"):
        print(HOW)
    if shutil.which("sacct") and os.environ.get("SLURM_CONF"):
        measure_cluster(options.jobs, options.repeats)
    else:
        print('A. left out: no cluster here; testbed/up starts one, eval "$(testbed/env)" finds it')
    measure_recording(options.recorded, options.repeats)
    measure_start(3 * options.repeats)


if __name__ == "__main__":
    main()
