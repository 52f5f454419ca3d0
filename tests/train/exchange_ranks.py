"""A rank of two that connects, all-reduces, and connects once more where rank 1 can't listen: `RANK PORT`."""

import json
import sys

import torch
import torch.distributed as dist

from hpcdist.train import exchange
from hpcdist.train.environment import RankEnvironment

number, port = int(sys.argv[1]), int(sys.argv[2])
rank = RankEnvironment(
    rank=number,
    world_size=2,
    main_port=port,
    started_at_s=0.0,
)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
connected = exchange.connect(rank)
values = torch.full((3,), 1.0 + number)
connected.all_reduce(values)


def refuse(_):
    raise OSError("no port is free")


if number == 1:
    exchange._listen = refuse
print(json.dumps([values.tolist(), exchange.connect(rank) is None]))
