"""How ranks share what they learn: `--strategy` as Lightning's strategies, and what each sends per step."""

import os
import time

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hpcdist.train.async_server import AsyncServer
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.exchange import POLL_S, Exchange, connect
from hpcdist.train.flat import list_statistics, list_weights
from hpcdist.train.options import Options
from hpcdist.train.sync_server import SyncServer

BF16_BYTES = 2


class PolledStrategy(DDPStrategy):
    """All-reduce between CPUs, which the ranks poll for where they would wait for it.

    Args:
        rank: This rank.
        is_rounded: Whether gradients are rounded to bfloat16 before they are sent and added up.
    """

    def __init__(self, rank: RankEnvironment, *, is_rounded: bool) -> None:
        # Gradients live in the all-reduce's buckets: two copies less in each step.
        super().__init__(gradient_as_bucket_view=True)
        self._rank = rank
        self.is_rounded = is_rounded
        self.exchange: Exchange | None = None

    def configure_ddp(self) -> None:
        """Registers the hook, which Lightning 2.6.6 leaves out on CPUs."""
        super().configure_ddp()
        if isinstance(self.model, DistributedDataParallel):
            self.exchange = connect(self._rank)
            if self.exchange is None and self._rank.rank == 0:
                print("the ranks open no ports to each other: all gradients go through gloo", flush=True)
            self.model.register_comm_hook(self, reduce_and_poll)


def reduce_and_poll(strategy: PolledStrategy, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    """The mean of the ranks' gradients, as DDP has it; rounded as PyTorch's `bf16_compress_hook` does it.

    Only the last bucket is polled for: at the others the backward pass goes on meanwhile.
    """
    gradients = bucket.buffer()
    values = gradients.to(torch.bfloat16) if strategy.is_rounded else gradients
    values.div_(dist.get_world_size())
    if strategy.exchange is not None and bucket.is_last() and strategy.exchange.fits(values):
        strategy.exchange.all_reduce(values)
        done: Future[Tensor] = Future()
        done.set_result(gradients.copy_(values))  # copies nothing where they are the same
        return done
    work = dist.all_reduce(values, async_op=True)
    if work is None:
        raise RuntimeError("this rank is in no process group")
    if bucket.is_last():
        deadline = time.perf_counter() + POLL_S
        while not work.is_completed() and time.perf_counter() < deadline:
            os.sched_yield()
    return work.get_future().then(lambda future: gradients.copy_(future.value()[0]))


def all_reduce(strategy: Strategy, values: Tensor, *, is_largest: bool = False) -> None:
    """Replaces a few numbers by their sums over all ranks, or the largest, in the quickest way; all must call it."""
    exchange = strategy.exchange if isinstance(strategy, PolledStrategy) else None
    if exchange is not None and exchange.fits(values):
        exchange.all_reduce(values, torch.maximum if is_largest else torch.add)
    else:
        dist.all_reduce(values, dist.ReduceOp.MAX if is_largest else dist.ReduceOp.SUM)


class CompressedStrategy(DDPStrategy):
    """All-reduce between GPUs of gradients rounded to bfloat16: half the bytes, 8 bits of precision."""

    def __init__(self) -> None:
        super().__init__(gradient_as_bucket_view=True, ddp_comm_hook=bf16_compress_hook)


def build_strategy(options: Options, rank: RankEnvironment, device: torch.device) -> Strategy:
    """The strategy of `Training.strategy`; a single rank has nobody to share with."""
    if rank.world_size == 1:
        return SingleDeviceStrategy(device=device)
    if options.training.strategy == "parameter-server":
        return AsyncServer(device, rank) if options.is_async else SyncServer(device, rank)
    is_rounded = options.training.strategy == "ddp-bf16"
    if device.type == "cpu":
        return PolledStrategy(rank, is_rounded=is_rounded)
    return CompressedStrategy() if is_rounded else DDPStrategy(gradient_as_bucket_view=True)


def count_bytes(strategy: Strategy, network: nn.Module) -> int:
    """Bytes that one rank sends per step, and with a parameter server also gets back; see `TrainingMetrics`."""
    weights = list_weights(network)
    gradient_bytes = sum(one.numel() * one.element_size() for one in weights)
    if isinstance(strategy, SyncServer):
        return 2 * gradient_bytes + sum(one.numel() * one.element_size() for one in list_statistics(network))
    if isinstance(strategy, AsyncServer):
        return 2 * gradient_bytes
    if isinstance(strategy, CompressedStrategy) or (isinstance(strategy, PolledStrategy) and strategy.is_rounded):
        return BF16_BYTES * sum(one.numel() for one in weights)
    return gradient_bytes if isinstance(strategy, DDPStrategy) else 0
