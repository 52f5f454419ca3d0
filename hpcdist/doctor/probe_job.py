"""A short job on two nodes that trains nothing, and what its nodes said, judged."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import msgspec

from hpcdist.config.job import Backend
from hpcdist.config.project import Project
from hpcdist.doctor.check import Check
from hpcdist.doctor.cluster import PLACE_WORDS, choose_partition
from hpcdist.errors import HpcdistError
from hpcdist.jobs.job import Job
from hpcdist.records.job import JobStatus, Progress
from hpcdist.records.network import AllReduce, NodeFacts, Probe, write_probe
from hpcdist.records.ranks import RankUsage
from hpcdist.records.store import new_run_name
from hpcdist.slurm.cluster import Partition
from hpcdist.submission.prepare import PreparedJob, complete_job, prepare
from hpcdist.submission.render import task_command
from hpcdist.submission.send import read_versions, send

# Half of what gigabit Ethernet carries (125 MB/s): below, gradients of any size take longer than a step.
SLOW_BYTES_PER_S = 60e6
# A round over Ethernet takes some 0.1 ms; tens of it are a wrong route or a busy node.
SLOW_LATENCY_S = 10e-3
WARN_SKEW_S = 1.0


class ProbeJobResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial job went.

    Attributes:
        run: Its run.
        job_id: Its job.
        state: Slurm's word for how it ended; not an ended one where it was given up.
        is_over: Whether it ended.
        nodes: Nodes asked for.
        gpus: GPUs per node asked for.
        device: What it was to use: "auto", "cpu" or "gpu".
        cluster: Slurm's name of the cluster; None on this machine.
        partition: The partition that was named.
        trouble: What ended it, where it did not complete.
        hint: What to do about that.
        waits_for: Why it did not start, in Slurm's words.
        ranks: What its ranks wrote.
        versions: What is installed here, by package.
        ended_at_s: Seconds since the epoch.
    """

    run: str
    job_id: str | None
    state: str
    is_over: bool
    nodes: int
    gpus: int
    device: str = "auto"
    cluster: str | None = None
    partition: str | None = None
    trouble: str = ""
    hint: str = ""
    waits_for: str | None = None
    ranks: tuple[RankUsage, ...] = ()
    versions: Mapping[str, str] = {}
    ended_at_s: float = 0.0


def judge_trial(trial: ProbeJobResult) -> list[Check]:
    """Everything that a trial job tells about the nodes."""
    checks = [_judge_job(trial)]
    if not trial.ranks:
        return checks
    checks.append(_judge_shared(trial))
    facts = [rank.training.node for rank in trial.ranks if rank.training and rank.training.node]
    if facts:
        checks += [_judge_software(trial, facts), judge_cuda(facts), _judge_gpus(trial, facts)]
    probe = find_probe(trial)
    if probe is not None:
        checks += [_judge_clocks(probe), judge_network(probe)]
    elif trial.state == "COMPLETED" and trial.nodes == 1:
        checks.append(Check("network", "unknown", "one node: there is no network to measure"))
    return checks


def find_probe(trial: ProbeJobResult) -> Probe | None:
    """What the ranks measured of their network; None where they did not."""
    measured = [rank.training for rank in trial.ranks if rank.training and rank.training.probe]
    if not measured:
        return None
    # All leave an all-reduce together; the slowest rank's figure holds its whole time.
    training = max(measured, key=lambda one: one.probe[0].latency_s)
    hosts = {rank.node_rank: _host(rank) for rank in trial.ranks}
    return Probe(
        cluster=trial.cluster,
        partition=trial.partition,
        nodes=trial.nodes,
        gpus=trial.gpus,
        device="cuda" if trial.gpus and trial.device != "cpu" else "cpu",
        hosts=tuple(hosts[node] for node in sorted(hosts)),
        run=trial.run,
        measured_at_s=trial.ended_at_s,
        all_reduce=training.probe,
        clock_skew_s=training.clock_skew_s,
    )


def _host(rank: RankUsage) -> str:
    return rank.training.node.host if rank.training and rank.training.node else rank.host


def _judge_job(trial: ProbeJobResult) -> Check:
    name = "job on the nodes"
    if not trial.is_over:
        why = f" ({trial.waits_for})" if trial.waits_for else ""
        sentence = f"job {trial.job_id} was still {trial.state}{why} and was cancelled: nothing is known of the nodes"
        return Check(name, "unknown", sentence, "hpcdist doctor --deep --timeout 2h")
    if trial.state != "COMPLETED":
        sentence = f"job {trial.job_id} ended {trial.state}: {trial.trouble or 'why is not known'}"
        return Check(name, "error", sentence, trial.hint or f"hpcdist why {trial.run}")
    hosts = ", ".join(dict.fromkeys(_host(rank) for rank in trial.ranks))
    evidence = (f"hpcdist logs {trial.run}",)
    return Check(name, "ok", f"job {trial.job_id} ran well on {hosts or 'its nodes'}", evidence=evidence)


def _judge_shared(trial: ProbeJobResult) -> Check:
    """Each rank's file was written on its node and read here; the nodes saw each other's in the preflight."""
    seen = {rank.node_rank for rank in trial.ranks}
    if trial.cluster is None:
        sentence = f"{len(seen)} emulated node(s) on this machine: nothing is shared over a network"
        return Check("shared folder", "ok", sentence)
    if len(seen) < trial.nodes and trial.state == "COMPLETED":
        sentence = f"only {len(seen)} of {trial.nodes} node(s) wrote where this machine sees it"
        hint = "put the project on a disk that all nodes share and may write to"
        return Check("shared folder", "error", sentence, hint)
    if len(seen) < trial.nodes:
        sentence = f"{len(seen)} of {trial.nodes} node(s) wrote where this machine sees it, before the job failed"
        return Check("shared folder", "unknown", sentence)
    return Check("shared folder", "ok", f"what {len(seen)} node(s) wrote was read here")


def _judge_software(trial: ProbeJobResult, facts: Sequence[NodeFacts]) -> Check:
    first = facts[0]
    said = f"Python {first.python}, torch {first.torch}, Lightning {first.lightning}"
    here = trial.versions
    names = {"python": first.python, "torch": first.torch, "pytorch-lightning": first.lightning}
    # torch's own version carries its build (+cu130), its package's need not.
    odd = {
        name: (there, here[name])
        for name, there in names.items()
        if name in here and there.partition("+")[0] != here[name].partition("+")[0]
    }
    if odd:
        differences = ", ".join(f"{name} {there} there and {mine} here" for name, (there, mine) in odd.items())
        hint = "jobs start another interpreter than yours: see python in hpcdist.toml"
        return Check("nodes' software", "warning", differences, hint)
    return Check("nodes' software", "ok", f"{said} on the nodes, as here")


def judge_cuda(facts: Sequence[NodeFacts]) -> Check:
    """The driver against what torch was built for: a driver runs programs built for its own major CUDA release.

    Source: NVIDIA's CUDA Compatibility, "minor version compatibility".
    """
    name = "cuda"
    first = next((one for one in facts if one.driver), facts[0])
    if first.driver is None:
        return Check(name, "ok", "the nodes have no NVIDIA driver: training is on CPUs")
    said = f"driver {first.driver} runs CUDA {first.cuda_driver}"
    if first.cuda_build is None:
        hint = "install torch's CUDA build: https://pytorch.org/get-started/locally"
        return Check(name, "error", f"{said} on {first.host}, and this torch is built for CPUs only", hint)
    old = [one for one in facts if one.driver and _major(one.cuda_driver) < _major(one.cuda_build)]
    if old:
        one = old[0]
        sentence = f"driver {one.driver} on {one.host} runs CUDA {one.cuda_driver}, torch is built for {one.cuda_build}"
        hint = f"install a torch built for CUDA {_major(one.cuda_driver)}, or have the driver renewed"
        return Check(name, "error", sentence, hint)
    return Check(name, "ok", f"{said}, torch is built for {first.cuda_build}")


def _major(version: str | None) -> int:
    text = (version or "").partition(".")[0]
    return int(text) if text.isdecimal() else 0


def _judge_gpus(trial: ProbeJobResult, facts: Sequence[NodeFacts]) -> Check:
    if not trial.gpus or trial.device == "cpu":
        why = "none were asked for" if not trial.gpus else "accelerator is cpu, so they are not used"
        return Check("gpus", "ok", f"GPUs: {why}")
    few = [one for one in facts if len(one.gpus) < trial.gpus]
    if few:
        sentence = f"torch can use {len(few[0].gpus)} GPU(s) on {few[0].host}, expected {trial.gpus}"
        hint = 'gpu_flag and gpu_type in hpcdist.toml say how to ask; accelerator = "cpu" trains on CPUs'
        return Check("gpus", "error", sentence, hint)
    return Check("gpus", "ok", f"{trial.gpus} x {facts[0].gpus[0]} on each node")


def _judge_clocks(probe: Probe) -> Check:
    skew_s = probe.clock_skew_s or 0.0
    if skew_s <= WARN_SKEW_S:
        return Check("nodes' clocks", "ok", f"within {1e3 * skew_s:.0f} ms of each other")
    sentence = f"the nodes' clocks are {skew_s:.1f} s apart: times in logs and records don't fit together"
    return Check("nodes' clocks", "warning", sentence, "have the nodes' time synchronised (chronyc tracking)")


def judge_network(probe: Probe) -> Check:
    """The all-reduce between the nodes, as measured."""
    smallest, largest = probe.all_reduce[0], probe.all_reduce[-1]
    rate = largest.bandwidth_bytes_per_s
    said = f"all-reduce over {', '.join(probe.hosts)}: {1e3 * smallest.latency_s:.2f} ms, {rate / 1e6:,.0f} MB/s"
    evidence = tuple(_describe(one) for one in probe.all_reduce)
    judged = {"much latency": smallest.latency_s > SLOW_LATENCY_S, "little bandwidth": rate < SLOW_BYTES_PER_S}
    slow = [word for word, is_so in judged.items() if is_so]
    if not slow:
        return Check("network", "ok", said, evidence=evidence)
    hint = "network_interface in hpcdist.toml chooses the fast network (ip -br link on a node lists them)"
    return Check("network", "warning", f"{said}: {' and '.join(slow)} for training on several nodes", hint, evidence)


def _describe(one: AllReduce) -> str:
    rate = one.bandwidth_bytes_per_s / 1e6
    return f"{one.size_bytes} bytes: {1e3 * one.latency_s:.3f} ms, {rate:.1f} MB/s"


# It takes some ten seconds; the rest is for imports from a slow disk, and for the preflight to name who is missing.
TIME_LIMIT = "3"
WAIT_S = 600.0

Tell = Callable[[JobStatus, Progress | None], None]


def probe_between_nodes(
    project: Project,
    *,
    backend: Backend,
    nodes: int = 2,
    gpus: int = 1,
    on_change: Tell | None = None,
    timeout_s: float = WAIT_S,
) -> ProbeJobResult:
    """Submit the job, wait for it, and keep what it measured where `read_probes` finds it.

    A job that does not end in time is cancelled.

    Raises:
        SubmitError: The scheduler refused it.
    """
    prepared = prepare_trial(project, backend=backend, nodes=nodes, gpus=gpus)
    job = Job(send(prepared))
    try:
        status = job.wait(on_change, timeout_s)
    except BaseException:
        with contextlib.suppress(HpcdistError):
            job.cancel()
        raise
    if not status.is_over:
        job.cancel()
    trial = _sum_up(job, status, prepared)
    probe = find_probe(trial)
    if probe is not None:
        # The measurement is told all the same where it can't be kept.
        with contextlib.suppress(OSError):
            write_probe(project.root, probe)
    return trial


def prepare_trial(project: Project, *, backend: Backend, nodes: int, gpus: int) -> PreparedJob:
    """The job: the preflight in the layout, with what the project's defaults say of place and surroundings.

    Raises:
        UsageError: A default can't be used.
    """
    options = {key: project.defaults[key] for key in PLACE_WORDS if key in project.defaults}
    options |= {"name": "doctor", "nodes": nodes, "gpus": gpus, "time": TIME_LIMIT}
    bare = Project(root=project.root, site=project.site)
    job = complete_job(options, bare)
    first = prepare(job, bare, backend=backend, run=new_run_name(job), workdir=project.root)
    training = msgspec.structs.replace(first.spec.training, data_dir=None)  # no data is read
    words = chain.from_iterable(task_command(msgspec.structs.replace(first.spec, training=training), first.paths))
    job = msgspec.structs.replace(job, command=(*words, "--preflight-only"))
    return prepare(job, bare, backend=backend, run=first.paths.run, workdir=project.root)


def choose_shape(partition: str | None, partitions: Sequence[Partition], wanted_gpus: object) -> tuple[int, int]:
    """Return nodes and GPUs per node of a trial: two of the partition's nodes, a GPU on each where it has any.

    No partition is the default one; `wanted_gpus` is the project's default of GPUs per node.
    """
    chosen = choose_partition(partition, partitions)
    if chosen is None:
        return 2, 0 if wanted_gpus == 0 else 1
    gpus = 1 if chosen.has_gpus and wanted_gpus != 0 else 0
    return min(2, max(1, chosen.usable_nodes)), gpus


def _sum_up(job: Job, status: JobStatus, prepared: PreparedJob) -> ProbeJobResult:
    layout = prepared.spec.layout
    if status.state == "COMPLETED":
        job.run.wait_for_ranks(layout.world_size)
    ranks = tuple(job.run.ranks())
    fault = next((one.training.fault for one in ranks if one.training and one.training.fault), None)
    trouble, hint = (fault.sentence, fault.hint) if fault else ("", "")
    if status.is_over and status.state != "COMPLETED" and fault is None:
        cause = job.why()[0].cause
        trouble, hint = cause.sentence, cause.hint
    return ProbeJobResult(
        run=job.run.name,
        job_id=job.id,
        state=status.state,
        is_over=status.is_over,
        nodes=layout.nodes,
        gpus=layout.gpus,
        device="cpu" if "--accelerator cpu" in " ".join(prepared.spec.command) else "auto",
        cluster=job.run.record().cluster or (None if prepared.backend == "local" else "slurm"),
        partition=prepared.spec.partition,
        trouble=trouble,
        hint=hint,
        waits_for=status.reason,
        ranks=ranks,
        versions=read_versions(),
        ended_at_s=time.time(),
    )
