"""Two ranks of a training against two trainings at the same time, for `benchmarks/train.py`.

All run at once, as processes of their own, and train by turns of a third of a second: two ranks of one training, two
trainings, and, on one node, two trainings that are in step and share nothing. Where a machine's speed changes from one
second to the next, one training after the other would measure that.
"""

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec
import torch

from benchmarks.paced import CUT_SHORT, IN_STEP
from benchmarks.processes import Machine, finish, start
from hpcdist.records.ranks import RankUsage, TrainingMetrics

TOGETHER, APART = "together", "apart"
# Steps of a turn by samples of a rank's step; most of an epoch is whole turns, also where two ranks share it.
TURNS = {128: 45, 512: 14}
TURNS_PER_RUN = 20
_LONGEST_WAIT_S = 300.0

STEP_COLUMNS = ("step apart", "in step", "together", "compute", "together", "exposed", "all-reduce")
# "gloo alone" is the ratio if the ranks computed as fast as they do apart, and waited for each other no longer than
# gloo's all-reduce takes back to back, none of it hidden behind computing.
STEP_HEADER = f"""
Where a step of a rank goes, ms. "In step" are two trainings that begin each step together and share nothing. The
all-reduce is gloo's of as much as the gradients, back to back, before training; what is exposed in a step is the
exchange and waiting for the other rank.
{"":24} {" ".join(f"{name:>11}" for name in STEP_COLUMNS)}  hidden  gloo alone"""


class Run(NamedTuple):
    """What the pairs of processes measured that took turns.

    Attributes:
        step_s: Of each kind its two ranks' mean steps.
        metrics: Of each kind what its two ranks recorded.
    """

    step_s: dict[str, list[float]]
    metrics: dict[str, list[TrainingMetrics]]

    def ratio(self, kind: str) -> float | None:
        """Throughput of a kind over that of the trainings apart; None where it did not run."""
        if kind not in self.step_s:
            return None
        return sum(1 / one for one in self.step_s[kind]) / sum(1 / one for one in self.step_s[APART])


class Pair(NamedTuple):
    """Two processes of a kind, started."""

    kind: str
    processes: Sequence[subprocess.Popen[Any]]
    finish: Callable[[], list[TrainingMetrics]]


# Starts a pair of a kind, which is to train so at a batch size, by turns that come from the socket.
Start = Callable[[Machine, Path, str, Sequence[str]], Pair]


def show_ranks(machine: Machine, repeats: int) -> None:
    """Two ranks against two processes that have nothing to do with each other, running at the same time."""
    if machine.accelerator == "gpu" and torch.cuda.device_count() < 2:
        print(f"\ntwo ranks: left out, they need 2 GPUs and here is {torch.cuda.device_count()}")
        return
    print(f"\n{'two ranks, per rank':24} {'together':>12} {'apart':>12}  ratio  (lowest, highest)  in step")
    where: dict[str, tuple[Start, tuple[str, ...]]] = {"one node": (start_here, (TOGETHER, APART, IN_STEP))}
    if shutil.which("sbatch") and not subprocess.run(["sinfo", "-h"], check=False, capture_output=True).returncode:
        where["two nodes"] = start_on_slurm, (TOGETHER, APART)
    rows = []
    for place, (starter, kinds) in where.items():
        for batch_size in TURNS:
            label = f"{place}, batch {batch_size}"
            runs = [run_by_turns(machine, starter, kinds, batch_size) for _ in range(repeats)]
            speeds = [
                statistics.median(sum(batch_size / step_s for step_s in run.step_s[kind]) for run in runs)
                for kind in (TOGETHER, APART)
            ]
            ratios = sorted(run.ratio(TOGETHER) or 0.0 for run in runs)
            bounds = [ratio for run in runs if (ratio := run.ratio(IN_STEP)) is not None]
            middle = f"{speeds[0]:10,.0f}/s {speeds[1]:10,.0f}/s  {statistics.median(ratios):.3f}"
            bound = f"{statistics.median(bounds):7.3f}" if bounds else f"{'-':>7}"
            print(f"{label:24} {middle}  ({ratios[0]:.3f}, {ratios[-1]:.3f}) {bound:>11}", flush=True)
            rows.append((label, runs))
    print(STEP_HEADER)
    for label, runs in rows:
        print(f"{label:24} {describe_step(runs)}", flush=True)


def run_by_turns(machine: Machine, starter: Start, kinds: Sequence[str], batch_size: int) -> Run:
    """Starts a pair of each kind at once, and has them train by turns, which begin with another one each time."""
    turn = TURNS[batch_size]
    steps = TURNS_PER_RUN * (turn + 2)  # some at the end of an epoch are no whole turn
    options = ["--batch-size-per-rank", str(batch_size), "--max-steps", str(steps), "--epochs", "100"]
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as server:
        address = Path(name, "turns")
        server.bind(str(address))
        server.listen(2 * len(kinds))
        server.settimeout(_LONGEST_WAIT_S)
        Path(f"{address}.counts").write_bytes(bytes(16))
        pairs = []
        for kind in kinds:
            paced = ["benchmarks.paced", str(address), kind, str(turn), "--"]
            Path(name, kind).mkdir()
            pairs.append(starter(machine, Path(name, kind), kind, [*paced, *options]))
        try:
            links = _meet(server, kinds)
            turns_s = _take_turns(links)
            # One pair after the other: what is left of their trainings belongs to no turn.
            metrics = {pair.kind: _finish(pair, links[pair.kind]) for pair in pairs}
        except BaseException:
            for process in (process for pair in pairs for process in pair.processes):
                process.terminate()
            raise
    # The first has the first step in it, in which memory is asked for.
    step_s = {
        kind: [statistics.mean(of_rank) / turn for of_rank in zip(*turns_s[kind][1:], strict=True)] for kind in kinds
    }
    return Run(step_s, metrics)


def _meet(server: socket.socket, kinds: Sequence[str]) -> dict[str, list[TextIO]]:
    """The lines to the two ranks of each kind, once all are there."""
    links: dict[str, list[TextIO]] = {kind: [] for kind in kinds}
    for _ in range(2 * len(kinds)):
        with server.accept()[0] as link:  # closed with its lines
            link.settimeout(_LONGEST_WAIT_S)
            lines: TextIO = link.makefile("rw")
        mine = links[lines.readline().rstrip("\n")]
        print(len(mine), file=lines, flush=True)
        mine.append(lines)
    return links


def _take_turns(links: dict[str, list[TextIO]]) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each turn of each kind, of its two ranks."""
    kinds = list(links)
    turns_s: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for number in range(TURNS_PER_RUN):
        first = number % len(kinds)
        for kind in (*kinds[first:], *kinds[:first]):
            turns_s[kind].append(_take_turn(links[kind]))
    return turns_s


def _finish(pair: Pair, links: Sequence[TextIO]) -> list[TrainingMetrics]:
    for lines in links:
        lines.close()
    return pair.finish()


def _take_turn(links: Sequence[TextIO]) -> tuple[float, ...]:
    """Seconds of a pair's turn; the end of an epoch makes it begin again."""
    while True:
        for link in links:
            print("go", file=link, flush=True)
        answers = [link.readline().rstrip("\n") for link in links]
        if not all(answers):
            raise RuntimeError("a training ended before its turns were over")
        if CUT_SHORT not in answers:
            return tuple(float(answer) for answer in answers)


def describe_step(runs: Sequence[Run]) -> str:
    """A row under `STEP_HEADER`: medians over the runs, of means over their two ranks."""
    rows = []
    for run in runs:
        together, apart = run.metrics[TOGETHER], run.metrics[APART]
        ours, theirs = ([one.split for one in several if one.split] for several in (together, apart))
        nearest = min(together[0].probe, key=lambda one: abs(one.size_bytes - (together[0].bytes_per_step or 0)))
        parts_s = [
            run.step_s[APART],
            run.step_s.get(IN_STEP, [0.0]),
            run.step_s[TOGETHER],
            [one.compute_s for one in theirs],
            [one.compute_s for one in ours],
            [one.communication_s for one in ours],
            [nearest.latency_s],
        ]
        rows.append([statistics.mean(part) for part in parts_s])
    columns_s = [statistics.median(column) for column in zip(*rows, strict=True)]
    apart_s, exposed_s, all_reduce_s = columns_s[0], columns_s[5], columns_s[6]
    hidden = max(0.0, 1 - exposed_s / all_reduce_s)
    cells = " ".join(f"{1e3 * seconds:11.2f}" if seconds else f"{'-':>11}" for seconds in columns_s)
    return f"{cells} {100 * hidden:5.0f} %  {apart_s / (apart_s + all_reduce_s):.3f}"


def start_here(machine: Machine, folder: Path, kind: str, arguments: Sequence[str]) -> Pair:
    """On this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(2):
        # Ranks of one training share its folder, as the preflight checks.
        own = folder if kind == TOGETHER else folder / str(number)
        own.mkdir(exist_ok=True)
        rank, ranks, gpu = (number, 2, None) if kind == TOGETHER else (0, 1, number)
        process = start(machine, own, arguments, rank=rank, ranks=ranks, port=port, gpu=gpu)
        started.append((own, process, rank))
    return Pair(kind, [process for _, process, _ in started], lambda: [finish(*one) for one in started])


def start_on_slurm(machine: Machine, folder: Path, kind: str, arguments: Sequence[str]) -> Pair:
    """Each on a node of its own, of a cluster that runs on this machine: an array's tasks, where they are apart."""
    shape = ["--nodes", "2"] if kind == TOGETHER else ["--nodes", "1", "--array", "0-1"]
    rank_shape = ["--nodes", "2" if kind == TOGETHER else "1", "--gpus", "1", "--cpus-per-task", str(machine.threads)]
    command = [sys.executable, "-m", "hpcdist.cli.main", "submit", "--wait", "--exclusive", "--gpus", "1", *shape]
    command += ["--cpus-per-task", str(machine.threads), "--name", "race", "--", sys.executable, "-m", *arguments]
    command += [*rank_shape, "--data-dir", str(machine.data_dir.absolute()), "--accelerator", machine.accelerator]
    env = machine.environment(PYTHONPATH=str(Path(__file__).parents[1]))
    process = subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def finish_job() -> list[TrainingMetrics]:
        said = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"a job failed: {said}")
        files = Path(folder, "jobs", "runs").glob("**/ranks/[01].json")
        usages = [msgspec.json.decode(path.read_bytes(), type=RankUsage) for path in files]
        if len({one.host for one in usages}) < 2:
            raise RuntimeError("both tasks ran on one node")
        return [one.training for one in sorted(usages, key=lambda one: one.rank) if one.training]

    return Pair(kind, [process], finish_job)
