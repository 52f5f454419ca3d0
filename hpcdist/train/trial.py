"""The preflight alone: what `hpcdist doctor --deep` runs on the nodes."""

import os
import platform
import socket

import torch
import torch.distributed as dist
from pytorch_lightning.__version__ import version as lightning_version

from hpcdist.gpu import read_driver
from hpcdist.records.network import NodeFacts
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import LastWords
from hpcdist.train.options import Options
from hpcdist.train.outcome import Outcome
from hpcdist.train.preflight import preflight


def try_nodes(options: Options, rank: RankEnvironment, outcome: Outcome, last_words: LastWords) -> None:
    """Says what is on this node, checks it with the others and measures the network between them.

    Raises:
        HpcdistError: A node is not fit, or the ranks did not meet.
    """
    # First: it is told also of a node that turns out unfit.
    outcome.learn(node=read_node(rank.node_rank), world_size=rank.world_size)
    outcome.clock.enter("process_group")
    device = preflight(options, rank, outcome, last_words)
    if dist.is_initialized():
        # All are done with the measuring before the first one leaves.
        dist.barrier()
        dist.destroy_process_group()
    outcome.learn(finished=True)
    if rank.rank == 0:
        print(f"finished: {rank.world_size} rank(s) on {device.type} passed the preflight", flush=True)


def read_node(node_rank: int) -> NodeFacts:
    """What this process finds here."""
    driver, cuda_driver = read_driver() or (None, None)
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return NodeFacts(
        host=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        node_rank=node_rank,
        python=platform.python_version(),
        torch=str(torch.__version__),
        lightning=lightning_version,
        cuda_build=torch.version.cuda,
        cuda_driver=cuda_driver,
        driver=driver,
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(usable)),
    )
