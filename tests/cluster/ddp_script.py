"""A user's own script: plain PyTorch DDP, nothing of hpcdist in it. Prints the sum that all ranks agree on."""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    optimizer.zero_grad()
    inputs = torch.full((8, 4), float(rank + step))
    model(inputs).sum().backward()
    optimizer.step()
weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
gathered = [torch.zeros_like(weights) for _ in range(world)]
dist.all_gather(gathered, weights)
same = all(torch.equal(gathered[0], other) for other in gathered)
print(f"rank {rank} of {world} on node {os.environ['NODE_RANK']}: weights agree: {same}", flush=True)
dist.barrier()
dist.destroy_process_group()
