"""Trains 4 steps on 10 random images with 1, 2 and 3 ranks at one global batch of 4, the third step's batch being 2.

Forks the ranks, so that torch is imported once. Prints one JSON object per world size: accuracy and weights.
"""

import contextlib
import io
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from hpcdist.config.job import Layout
from hpcdist.config.training import Training
from hpcdist.train.data.batches import ImageData, Split
from hpcdist.train.distributed import join_process_group, open_store
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.fit import fit
from hpcdist.train.module import Classifier
from hpcdist.train.options import Options
from hpcdist.train.outcome import Clock, Outcome

CPU = torch.device("cpu")


def random_split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


def train(rank: int, world_size: int, port: int, optimizer: str, folder: Path) -> None:
    torch.set_num_threads(1)
    environment = RankEnvironment(
        rank=rank, world_size=world_size, node_rank=rank, main_port=port, started_at_s=time.time()
    )
    join_process_group(environment, CPU, open_store(environment))
    options = Options(
        layout=Layout(nodes=world_size, gpus=0),
        training=Training(
            batch_size=4, epochs=2, max_steps=4, optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 5e-3
        ),
    )
    data = ImageData(random_split(10, 1), random_split(7, 2), batch_size=4, seed=1, rank=rank, world_size=world_size)
    outcome = Outcome(None, Clock(time.time()))
    kept: list[nn.Module] = []
    build = Classifier.__init__

    def build_and_keep(self, *arguments, **named):
        build(self, *arguments, **named)
        kept.append(self)

    Classifier.__init__ = build_and_keep
    with contextlib.redirect_stdout(io.StringIO()):
        fit(options, environment, data, device=CPU, outcome=outcome, reporter=FailureReporter(environment, outcome))
    weights = torch.cat([parameter.detach().flatten() for parameter in kept[0].parameters()])
    metrics = outcome.metrics()
    (folder / f"{rank}.json").write_text(
        json.dumps(
            {
                "samples": metrics.samples,
                "accuracy": metrics.accuracy,
                "loss": metrics.loss,
                "weights": weights.tolist(),
            }
        )
    )


def main(optimizer: str) -> None:
    for world_size in (1, 2, 3):
        with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            children = []
            for rank in range(world_size):
                child = os.fork()
                if not child:
                    train(rank, world_size, port, optimizer, Path(folder))
                    sys.stdout.flush()
                    os._exit(0)
                children.append(child)
            assert all(os.waitpid(child, 0)[1] == 0 for child in children)
            results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world_size)]
            print(json.dumps(results), flush=True)


main(sys.argv[1])
