"""A stand-in for Slurm's commands that remembers what was submitted: `python fake_slurm.py COMMAND ARGS`.

Its folder, $FAKE_SLURM, holds `jobs.json` (what sbatch was given, by job id), `states.json` (states of jobs and array
tasks, by id; PENDING without one, LOST where nobody knows it) and, for faults, `kill-before` or `kill-after` (the
number of the submission that kills its parent before or after the job exists), `refuse` (a word: scripts that hold it
are refused) and `behind` (jobs and tasks, by how often accounting is still asked in vain; the queue shows them at their
end too).
"""

import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])


def read(name, default):
    path = FOLDER / name
    return json.loads(path.read_text()) if path.exists() else default


def directive(script, option):
    match = re.search(rf"^#SBATCH --{option}=(.*)$", script, re.MULTILINE)
    return match[1].strip('"') if match else None


def sbatch(arguments):
    script = Path(arguments[-1]).read_text()
    if "--test-only" in arguments:
        print("sbatch: Job 9 to start at 2026-11-21T10:00:00 using 2 processors on nodes n1", file=sys.stderr)
        return 0
    if (FOLDER / "refuse").exists() and (FOLDER / "refuse").read_text() in script:
        print(
            "sbatch: error: Batch job submission failed: Requested node configuration is not available", file=sys.stderr
        )
        return 1
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jobs = read("jobs.json", {})
        number = read("count.json", 0) + 1
        (FOLDER / "count.json").write_text(json.dumps(number))
        if read("kill-before", 0) == number:
            os.kill(os.getppid(), signal.SIGKILL)
            return 1
        job_id = str(100 + number)
        dependency = next((word.partition("=")[2] for word in arguments if word.startswith("--dependency")), None)
        jobs[job_id] = {
            "comment": directive(script, "comment"),
            "array": directive(script, "array"),
            "name": directive(script, "job-name"),
            "workdir": os.getcwd(),
            "dependency": dependency,
        }
        (FOLDER / "jobs.json").write_text(json.dumps(jobs))
    if read("kill-after", 0) == number:
        os.kill(os.getppid(), signal.SIGKILL)
        return 1
    print(f"Submitted batch job {job_id}")
    return 0


def tasks_of(job_id, job):
    if not job["array"]:
        return [job_id]
    first, last = job["array"].partition("%")[0].split("-")
    return [f"{job_id}_{task}" for task in range(int(first), int(last) + 1)]


def squeue(arguments):
    jobs, states, behind = read("jobs.json", {}), read("states.json", {}), read("behind", {})
    if "-u" in arguments:
        for job_id, job in jobs.items():
            print("\x1f".join((job_id, job["workdir"], job["comment"])))
        return 0
    for job_id in arguments[arguments.index("-j") + 1].split(","):
        for task in tasks_of(job_id, jobs[job_id]):
            state = states.get(task, "PENDING")
            if state in ("PENDING", "RUNNING") or task in behind:
                print("\x1f".join((task, state, "None", "0:00", "", jobs[job_id]["name"])))
    return 0


def sacct(arguments):
    jobs, states = read("jobs.json", {}), read("states.json", {})
    (FOLDER / "asked").open("a").write("sacct\n")
    words = dict(word.lstrip("-").split("=", 1) for word in arguments if "=" in word)
    if "-j" in arguments:
        words["jobs"] = arguments[arguments.index("-j") + 1]
    if "jobs" not in words:
        return 0
    behind = read("behind", {})
    (FOLDER / "behind").write_text(json.dumps({name: left - 1 for name, left in behind.items()}))
    began = int(time.time()) - 100
    for asked in words["jobs"].split(","):
        job_id = asked.partition("_")[0]
        for task in [asked] if "_" in asked else tasks_of(job_id, jobs[job_id]):
            number = task.partition("_")[2]
            state = states.get(task, "PENDING")
            if state in ("PENDING", "LOST") or behind.get(task, 0) > 0:
                continue
            row = {
                "JobID": task,
                "JobIDRaw": f"{job_id}{int(number) + 1:04}" if number else job_id,
                "State": state,
                "ExitCode": "0:0" if state == "COMPLETED" else "1:0",
                "Submit": str(began - 10),
                "Start": str(began),
                "End": str(began + 60),
                "ElapsedRaw": "60",
                "TotalCPU": "00:00:30",
                "AllocCPUS": "1",
                "NNodes": "1",
                "NodeList": "n1",
                "JobName": jobs[job_id]["name"],
            }
            print(words["delimiter"].join(row.get(field, "") for field in words["format"].split(",")))
    return 0


def scontrol(arguments):
    if arguments[:2] == ["show", "config"]:
        size = (FOLDER / "MaxArraySize").read_text() if (FOLDER / "MaxArraySize").exists() else "1001"
        print(f"ClusterName = fake\nSLURM_VERSION = 23.02.1\nMaxArraySize = {size}")
        return 0
    print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
    return 1


def scancel(arguments):
    jobs, states = read("jobs.json", {}), read("states.json", {})
    for task in tasks_of(arguments[0], jobs[arguments[0]]):
        if states.get(task, "PENDING") in ("PENDING", "RUNNING"):
            states[task] = "CANCELLED"
    (FOLDER / "states.json").write_text(json.dumps(states))
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
