"""A study's figures once more, from raw `sacct` rows and the ranks' files, without hpcdist's own code."""

import json
import statistics
from pathlib import Path

from tests.slurm.by_hand import memory_bytes, seconds

FIELDS = "JobID,ElapsedRaw,AllocCPUS,TotalCPU,ReqMem,AllocTRES,TRESUsageInTot,Start"


def read_rows(testbed, job_id):
    """The raw rows of a job or array task, by what comes after its id ("" is the job itself)."""
    sacct = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "-n", "-P", "-j", job_id, f"--format={FIELDS}")
    rows = [line.split("|") for line in testbed.run(*sacct).splitlines()]
    return {row[0].removeprefix(job_id): dict(zip(FIELDS.split(","), row, strict=True)) for row in rows}


def recompute_trial(testbed, folder: Path, job_id, *, target, per_gpu_hour):
    """What one trial's row must say, by the same names."""
    rows = read_rows(testbed, job_id)
    job, steps = rows[""], [row for name, row in rows.items() if name]
    wall_s = int(job["ElapsedRaw"])
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("ranks/[0-9].json"))]
    trainings = [rank["training"] for rank in ranks]
    gpus = int(job["AllocTRES"].partition("gres/gpu=")[2].split(",")[0])
    reached = [test["at_s"] for training in trainings for test in training["tests"] if test["accuracy"] >= target]
    communication = [training["split"]["communication_s"] for training in trainings]
    figures = {
        "wall_s": wall_s,
        "images_per_s": trainings[0]["images_per_s"],
        "accuracy": trainings[0]["accuracy"],
        "ranks_worked": trainings[0]["world_size"],
        "global_batch_size": trainings[0]["global_batch_size"],
        "cpu_efficiency": seconds(job["TotalCPU"]) / (int(job["AllocCPUS"]) * wall_s),
        "gpu_hours": gpus * wall_s / 3600,
        "cost": gpus * wall_s / 3600 * per_gpu_hour,
        "time_to_target_s": min(reached) - int(job["Start"]) if reached else None,
        "memory_used": max(memory_bytes(step["TRESUsageInTot"]) or 0 for step in steps),
        "memory_asked": memory_bytes(job["AllocTRES"]),
        "waiting_s": statistics.mean(communication) - min(communication) if len(ranks) > 1 else None,
    }
    for part in ("data_s", "compute_s", "communication_s", "other_s", "step_s"):
        figures[part] = statistics.mean(training["split"][part] for training in trainings)
    return figures
