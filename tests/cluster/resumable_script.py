"""A user's own script that can go on: plain PyTorch, nothing of hpcdist in it. Prints the sum of its weights."""

import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
last = os.path.join(os.environ["HPCDIST_CHECKPOINT_DIR"], "last.pt")
begin = 0
if os.path.exists(last):
    saved = torch.load(last)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    begin = saved["step"]
print(f"begins at step {begin}", flush=True)


def save(step):
    if dist.get_rank() == 0:
        os.makedirs(os.path.dirname(last), exist_ok=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, last + ".new")
        os.replace(last + ".new", last)


def train(step):
    inputs = torch.full((8, 4), float(dist.get_rank() + step) / 400)
    optimizer.zero_grad()
    model(inputs).sum().backward()
    optimizer.step()
    time.sleep(0.02)
    stop = torch.tensor([os.path.exists(os.environ["HPCDIST_STOP_FILE"])], dtype=torch.int)
    dist.all_reduce(stop, dist.ReduceOp.MAX)
    if stop or step % 100 == 99:
        save(step + 1)
    if stop:
        dist.barrier()
        sys.exit(75)


for step in range(begin, 400):
    try:
        train(step)
    except RuntimeError as error:
        if "gloo/transport" in str(error):
            os._exit(69)
        raise
print(f"weights {[parameter.sum().item() for parameter in model.parameters()]}", flush=True)
dist.destroy_process_group()
