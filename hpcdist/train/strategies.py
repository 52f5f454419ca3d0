"""How ranks share what they learn: `--strategy` as Lightning's strategies, and what each sends per step."""

import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from hpcdist.train.environment import RankEnvironment
from hpcdist.train.options import Options
from hpcdist.train.parameter_server.flat import count_bytes, list_weights
from hpcdist.train.parameter_server.synchronous import SyncServer
from hpcdist.train.step_count import RankStrategy

BF16_BYTES = 2


class LoneRank(RankStrategy, SingleDeviceStrategy):
    """A single rank, which has nobody to share with."""

    is_process_of_its_own = True


class AllReduce(RankStrategy, DDPStrategy):
    """The mean of the ranks' gradients by DDP.

    Args:
        is_rounded: Whether gradients are rounded to bfloat16 to be sent: half the bytes, 8 bits of precision.
    """

    def __init__(self, *, is_rounded: bool) -> None:
        super().__init__(gradient_as_bucket_view=True)
        self._is_rounded = is_rounded

    def configure_ddp(self) -> None:
        """Register the rounding, which Lightning 2.6.6 does on GPUs only."""
        super().configure_ddp()
        if self._is_rounded and isinstance(self.model, DistributedDataParallel):
            self.model.register_comm_hook(None, bf16_compress_hook)

    def bytes_per_step(self, network: nn.Module) -> int:
        """Return the size of the gradients as they are sent."""
        weights = list_weights(network)
        return BF16_BYTES * sum(one.numel() for one in weights) if self._is_rounded else count_bytes(weights)


def build_strategy(options: Options, rank: RankEnvironment, device: torch.device) -> RankStrategy:
    """Build the strategy of `Training.strategy`, of ranks that wait for each other."""
    if rank.world_size == 1:
        return LoneRank(device=device)
    if options.training.strategy == "parameter-server":
        return SyncServer(device, rank)
    return AllReduce(is_rounded=options.training.strategy == "ddp-bf16")
