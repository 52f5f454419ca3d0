"""Trains on random images with some ranks and a strategy; prints what each rank ended with, one JSON list per case.

The argument is a JSON list of cases: `ranks`, `training` (options), and optionally `images` (training samples),
`learnable`, `slow` (seconds that the last rank sleeps per step), `mnist` (a folder, in place of random images; any
other data are the training's), `checkpoints` (a folder), and `stop_after_s` (when rank 1 is asked to
stop), `die_after_s` (when the last rank is gone). Forks the ranks, so that torch is imported once.
"""

import contextlib
import io
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import nn

from hpcdist.config.job import Layout
from hpcdist.config.training import Training
from hpcdist.train.data.batches import ImageData, Split
from hpcdist.train.data.load import read_data
from hpcdist.train.distributed import join_process_group, open_store, use_threads
from hpcdist.train.environment import RankEnvironment, Slowdown
from hpcdist.train.failure import FailureReporter
from hpcdist.train.fit import fit
from hpcdist.train.module import Classifier
from hpcdist.train.options import Options
from hpcdist.train.outcome import Clock, Outcome

CPU = torch.device("cpu")


def random_split(count: int, seed: int, learnable: bool) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    if learnable:
        images //= 4
        for number in range(10):
            images[labels == number, 2 * number : 2 * number + 4] += 128
    return Split(images, labels)


def bring_data(case: dict, options: Options, rank: RankEnvironment) -> ImageData:
    if "mnist" in case or options.training.data:
        return read_data(options, rank, Path(case.get("mnist", "")), CPU, 2)
    learnable = case.get("learnable", False)
    splits = random_split(case.get("images", 200), 1, learnable), random_split(70, 2, learnable)
    return ImageData(*splits, batch_size=options.batch_size, seed=1, rank=rank.rank, world_size=rank.world_size)


def train(rank: int, case: dict, port: int, folder: Path) -> None:
    use_threads(1)
    ranks = case["ranks"]
    stop_file = folder / f"{rank}.stop"
    environment = RankEnvironment(
        rank=rank,
        world_size=ranks,
        node_rank=rank,
        main_port=port,
        started_at_s=time.time(),
        checkpoints=Path(case["checkpoints"]) if "checkpoints" in case else None,
        stop_file=stop_file,
        slowdown=Slowdown(rank=ranks - 1, compute_s=case.get("slow", 0.0)),
    )
    join_process_group(environment, CPU, open_store(environment))
    options = Options(layout=Layout(nodes=ranks, gpus=0), training=Training(**case["training"]))
    outcome = Outcome(folder / f"{rank}.metrics.json", Clock(time.time()))
    kept: list[nn.Module] = []
    build = Classifier.__init__

    def build_and_keep(self, *arguments, **named):
        build(self, *arguments, **named)
        kept.append(self)

    Classifier.__init__ = build_and_keep
    if rank == 1 and case.get("stop_after_s"):
        threading.Timer(case["stop_after_s"], stop_file.touch).start()
    if rank == ranks - 1 and "die_after_s" in case:
        threading.Timer(case["die_after_s"], lambda: os._exit(9)).start()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        data = bring_data(case, options, environment)
        fit(options, environment, data, device=CPU, outcome=outcome, reporter=FailureReporter(environment, outcome))
    weights = torch.cat([parameter.detach().flatten() for parameter in kept[0].parameters()])
    outcome.write()
    (folder / f"{rank}.json").write_text(json.dumps({"weights": weights.tolist(), "out": out.getvalue()}))


def run(case: dict) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder, children = Path(name), []
        for rank in range(case["ranks"]):
            child = os.fork()
            if not child:
                train(rank, case, port, folder)
                sys.stdout.flush()
                os._exit(0)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        ranks = []
        for rank, status in enumerate(statuses):
            found = {"status": status}
            for path in (folder / f"{rank}.metrics.json", folder / f"{rank}.json"):
                if path.exists():
                    found |= json.loads(path.read_text())
            ranks.append(found)
        return ranks


for one in json.loads(sys.argv[1]):
    print(json.dumps(run(one)), flush=True)
