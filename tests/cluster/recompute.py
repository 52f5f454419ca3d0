"""A trial's figures once more, from raw `sacct` rows and the ranks' files, without hpcdist's own code."""

import json
import statistics
from pathlib import Path

from tests.cluster.by_hand import memory_bytes, seconds

FIELDS = "JobID,ElapsedRaw,AllocCPUS,TotalCPU,AllocTRES,TRESUsageInTot,Submit,Start,End,NodeList"
PARTS = ("data_s", "compute_s", "communication_s", "other_s", "step_s")
STARTING = ("imports", "process_group", "preflight", "data", "first_step")


def read_rows(testbed, job_id):
    """The raw rows of a job or array task, by what comes after its id ("" is the job itself)."""
    sacct = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "-n", "-P", "-j", job_id, f"--format={FIELDS}")
    rows = [line.split("|") for line in testbed.run(*sacct).splitlines()]
    return {row[0].removeprefix(job_id): dict(zip(FIELDS.split(","), row, strict=True)) for row in rows}


def recompute_trial(testbed, folder: Path, job_id, *, target, per_gpu_hour):
    """What one completed trial's row must say, by the same names; None is a figure that nobody can know.

    `target` and `per_gpu_hour` are those of the study, or None. What predictions need is under names with a `_`.
    """
    rows = read_rows(testbed, job_id)
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("ranks/[0-9].json"))]
    figures = account(rows) | train(ranks)
    tests = [test for rank in ranks for test in rank["training"]["tests"]]
    reached = [test["at_s"] for test in tests if target and test["accuracy"] >= target]
    hours = figures["gpu_hours"]
    to_target_s = min(reached) - figures["started_at_s"] if reached else None
    gpus = hours * 3600 / figures["wall_s"]
    phases_s = ranks[0]["training"]["phases_s"]
    asked_to_end_s = int(rows[""]["End"]) - int(rows[""]["Submit"])
    return figures | {
        "time_to_target_s": to_target_s,
        "cost": per_gpu_hour and hours * per_gpu_hour,
        "cost_to_target": gpus * to_target_s / 3600 * per_gpu_hour if per_gpu_hour and reached else None,
        "starting_s": starting_s(ranks[0], figures),
        "ettr": phases_s["steady"] / asked_to_end_s,
        "loader_cpu_share": sum(rank["children_cpu_time_s"] for rank in ranks) / figures["_core_s"],
    }


def account(rows):
    """What Slurm's rows alone say. No GPU of the testbed is real, so no row has its utilisation."""
    job, steps = rows[""], [row for name, row in rows.items() if name]
    assert not any("gpuutil" in row["TRESUsageInTot"] for row in rows.values())
    wall_s, started_at_s = int(job["ElapsedRaw"]), int(job["Start"])
    core_s = int(job["AllocCPUS"]) * wall_s
    busy = seconds(job["TotalCPU"]) / core_s
    used = max(memory_bytes(step["TRESUsageInTot"]) or 0 for step in steps)
    return {
        "wall_s": wall_s,
        "queued_s": started_at_s - int(job["Submit"]),
        "started_at_s": started_at_s,
        "ended_at_s": int(job["End"]),
        "nodes": job["NodeList"],
        "cpu_efficiency": busy,
        "cpu_busy": busy,
        "memory_efficiency": used / memory_bytes(job["AllocTRES"]),
        "gpu_efficiency": None,
        "gpu_hours": int(job["AllocTRES"].partition("gres/gpu=")[2].split(",")[0]) * wall_s / 3600,
        "_core_s": core_s,
        "_cpus": int(job["AllocCPUS"]),
    }


def starting_s(rank, figures):
    """From the allocation through the first step; Slurm's start can be up to a second before the true one."""
    phases_s = rank["training"]["phases_s"]
    launch_s = rank["started_at_s"] - figures["started_at_s"]
    too_long_s = max(0, launch_s + sum(phases_s.values()) - figures["wall_s"])
    return launch_s - too_long_s + sum(phases_s.get(name, 0) for name in STARTING)


def train(ranks):
    """What the ranks' files alone say."""
    trainings = [rank["training"] for rank in ranks]
    first, world = trainings[0], len(ranks)
    images = sum(training["samples"] for training in trainings) - first["global_batch_size"]
    splits = [training["split"] for training in trainings]
    probe = sorted(first.get("probe", ()), key=lambda one: one["size_bytes"])
    return {
        "ranks_worked": world,
        # The first step is start-up.
        "images_per_s": images / first["phases_s"]["steady"],
        "accuracy": first["tests"][-1]["accuracy"],
        "tests": first["tests"],
        "global_batch_size": first["global_batch_size"],
        "bytes_per_step": first["bytes_per_step"],
        "split": {name: statistics.mean(split[name] for split in splits) for name in PARTS},
        "waiting_s": waiting_s([split["communication_s"] for split in splits]),
        "straggler": straggler(ranks),
        "latency_s": probe[0]["latency_s"] if probe else None,
        "bandwidth_bytes_per_s": probe[-1]["size_bytes"] / probe[-1]["latency_s"] if probe else None,
        "_probe": [(one["size_bytes"], one["latency_s"]) for one in probe],
        "_steps": first["steps"],
        "_per_node": world / len({rank["host"] for rank in ranks}),
    }


def waiting_s(communication_s):
    """The rank that comes last waits for nobody; what the others spend beyond it is waiting."""
    return statistics.mean(communication_s) - min(communication_s) if len(communication_s) > 1 else None


def straggler(ranks):
    """The rank with the most work of its own in a step, over the median of the others."""
    if len(ranks) < 2:
        return None
    own_s = {}
    for rank in ranks:
        split = rank["training"]["split"]
        own_s[rank["rank"]] = split["data_s"] + split["compute_s"] + split["other_s"]
    slowest = max(own_s, key=own_s.get)
    others_s = statistics.median(value for rank, value in own_s.items() if rank != slowest)
    return {"rank": slowest, "host": ranks[slowest]["host"], "slowdown": own_s[slowest] / others_s}
