"""Synthetic rows of sacct, and a stand-in for sacct that serves them to any program that asks."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

# fmt: off
COLUMNS = (
    "JobID", "JobIDRaw", "Cluster", "User", "Group", "GID", "Partition", "State", "ExitCode", "Submit", "Start",
    "End", "ElapsedRaw", "Elapsed", "TimelimitRaw", "Timelimit", "TotalCPU", "AllocCPUS", "NNodes", "NTasks",
    "ReqMem", "ReqTRES", "AllocTRES", "MaxRSS", "AveRSS", "TRESUsageInTot", "NodeList", "AdminComment", "JobName",
)
# fmt: on
GIB = 1024**3
SECONDS_BETWEEN_JOBS = 7

# Answers to a question are put together once per set of fields; then only the delimiter is put in, for every program
# in the same way: one that makes up a new delimiter for each call must not pay for the stand-in.
STAND_IN = """\
#!{python} -SE
import os, sys
folder = {folder!r}
fields, delimiter, closed = [], b"|", False
for word in sys.argv[1:]:
    if word == "--helpformat":
        print({columns!r}); sys.exit()
    if word.startswith("--format="): fields = word[9:].split(",")
    if word.startswith("--delimiter="): delimiter = os.fsencode(word[12:])
    closed = closed or word in ("--parsable", "-p")
path = os.path.join(folder, "answer-%s" % "-".join(fields))[:250]
if not os.path.exists(path):
    columns = {columns!r}.split()
    places = [columns.index(field) for field in fields]
    with open(os.path.join(folder, "recording"), "rb") as rows, open(path + ".new", "wb") as answer:
        for row in rows:
            cells = row.rstrip(b"\\n").split(b"\\x1f")
            answer.write(b"\\x1f".join([cells[place] for place in places]) + b"\\n")
    os.rename(path + ".new", path)
with open(path, "rb") as answer:
    while block := answer.read(1 << 18):
        if closed:
            block = block.replace(b"\\n", b"\\x1f\\n")
        sys.stdout.buffer.write(block.replace(b"\\x1f", delimiter))
"""


def write_recording(path: Path, jobs: int) -> None:
    """A row for each job, its batch and its extern step, as Slurm 23 has them; the same for the same number."""
    randomness = random.Random(1)
    with path.open("w") as file:
        for number in range(jobs):
            for row in _rows(number, randomness):
                file.write("\x1f".join(row.get(column, "") for column in COLUMNS) + "\n")


def _rows(number: int, randomness: random.Random) -> Iterator[dict[str, str]]:
    cores = randomness.choice((1, 2, 4, 8, 16, 32))
    wall_s = randomness.randrange(10, 90_000)
    cpu = _clock(cores * wall_s * randomness.uniform(0.05, 1))
    started_s = 1_790_000_000 + number * SECONDS_BETWEEN_JOBS
    minutes = wall_s // 60 + randomness.randrange(10, 600)
    used_bytes = int(2 * cores * GIB * randomness.uniform(0.1, 0.95))
    job_id = str(1000 + number)
    tres = f"billing={cores},cpu={cores},mem={2 * cores}G,node=1"
    common = {
        "Cluster": "c",
        "State": randomness.choice(("COMPLETED",) * 8 + ("FAILED", "TIMEOUT")),
        "ExitCode": "0:0",
        "Submit": str(started_s - 60),
        "Start": str(started_s),
        "End": str(started_s + wall_s),
        "ElapsedRaw": str(wall_s),
        "Elapsed": _clock(wall_s),
        "AllocCPUS": str(cores),
        "AllocTRES": tres,
        "NNodes": "1",
        "NodeList": f"n{number % 400}",
    }
    yield common | {
        "JobID": job_id,
        "JobIDRaw": job_id,
        "User": f"u{number % 90}",
        "Group": "users",
        "GID": "100",
        "Partition": "main",
        "TimelimitRaw": str(minutes),
        "Timelimit": _clock(minutes * 60),
        "TotalCPU": cpu,
        "ReqMem": f"{2 * cores}G",
        "ReqTRES": tres,
        "JobName": f"train-{number % 50}",
    }
    for step, step_cpu, memory in (("batch", cpu, used_bytes), ("extern", "00:00.001", 0)):
        yield common | {
            "JobID": f"{job_id}.{step}",
            "JobIDRaw": f"{job_id}.{step}",
            "TotalCPU": step_cpu,
            "NTasks": "1",
            "MaxRSS": f"{memory // 1024}K" if memory else "0",
            "AveRSS": f"{memory // 1024}K" if memory else "0",
            "TRESUsageInTot": f"cpu={_clock(wall_s)},energy=0,fs/disk=12345678,mem={memory},pages=3,vmem={2 * memory}",
            "JobName": step,
        }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:{rest:02}"


def write_stand_in(folder: Path) -> None:
    """Programs called sacct and scontrol in a folder that holds a `recording`."""
    text = STAND_IN.format(python=sys.executable, folder=str(folder), columns=" ".join(COLUMNS))
    for name, script in (("sacct", text), ("scontrol", "#!/bin/sh\necho PartitionName=main MaxTime=UNLIMITED\n")):
        path = folder / name
        path.write_text(script)
        path.chmod(0o755)
