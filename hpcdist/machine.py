"""A layout on this machine: how its ranks share what is here."""

import os
import socket

import msgspec

from hpcdist.config.job import JobSpec
from hpcdist.errors import SubmitError
from hpcdist.gpu import count_gpus


def fit_to_machine(job: JobSpec, nodes: int | None = None) -> tuple[JobSpec, str]:
    """The job as this machine can run it, and a sentence that says what that means.

    Ranks share this machine's cores; GPUs are used when there is one for each rank, else the CPUs.

    Args:
        job: The job.
        nodes: How many of its nodes this machine is; None is all of them.
    """
    nodes = nodes or job.layout.nodes
    cores = len(os.sched_getaffinity(0))
    world = nodes * job.layout.ranks_per_node
    cpus = max(1, min(job.layout.cpus_per_task, cores // world))
    layout = msgspec.structs.replace(job.layout, cpus_per_task=cpus)
    training = job.training
    gpus = count_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    needed = nodes * job.layout.gpus
    if training.accelerator == "gpu" and gpus < needed:
        raise SubmitError(
            f"accelerator is gpu, but the layout needs {needed} and this machine has {gpus}",
            "leave out --accelerator gpu to train on the CPUs",
        )
    if gpus < needed or training.accelerator == "cpu":
        training = msgspec.structs.replace(training, accelerator="cpu")
        device = f"CPU (gloo): {gpus} GPU(s) here, {needed} asked for"
    else:
        device = "GPUs (NCCL)" if needed else "CPU (gloo)"
    said = f"no Slurm here: {world} rank(s) on {socket.gethostname()} with {cpus} thread(s) each, {device}"
    return msgspec.structs.replace(job, layout=layout, training=training), said
