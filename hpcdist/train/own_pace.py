"""Put together a training whose ranks do not wait for each other."""

from typing import Any

import torch

from hpcdist.train.async_server import AsyncServer
from hpcdist.train.checkpoints import OWN_KEY, Checkpoints
from hpcdist.train.data import ImageData
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.failure import LastWords
from hpcdist.train.module import Classifier
from hpcdist.train.options import Options
from hpcdist.train.part_batches import PartBatches
from hpcdist.train.server import Server
from hpcdist.train.tickets import Tickets


def share_out(
    module: Classifier,
    data: ImageData,
    device: torch.device,
    *,
    options: Options,
    rank: RankEnvironment,
    steps: int,
    checkpoints: Checkpoints,
    last_words: LastWords,
    content: dict[str, Any] | None,
) -> AsyncServer:
    """Build the strategy of a rank that the server tells what to train, and give it the batches for it.

    Args:
        module: What is trained.
        data: The training set; its batches are replaced.
        device: Of this rank.
        options: What was asked for.
        rank: This rank.
        steps: Batches in all.
        checkpoints: What knows when one is due.
        last_words: What ends this process when another rank is lost.
        content: The checkpoint to go on from; None begins anew.
    """
    steps_per_epoch, ranks = data.train_batches.steps_per_epoch, rank.world_size
    parts_per_epoch = ranks * steps_per_epoch
    optimizer_state: dict[str, Any] | None = None
    parts_done = 0
    if content is not None:
        module.load_state_dict(content["state_dict"])
        state = content[OWN_KEY]["server"]
        optimizer_state = state["optimizer"]
        parts_done = _convert_parts(state["parts_done"], len(content[OWN_KEY]["ranks"]), ranks)
    server = None
    if rank.rank == 0:
        server = Server(
            module,
            Tickets(ranks=ranks, batches_per_epoch=steps_per_epoch, batches=steps, done=parts_done),
            lambda: checkpoints.is_due(options.checkpoint_interval_s),
            last_words,
            optimizer_state=optimizer_state,
            parts_done=parts_done,
        )
    strategy = AsyncServer(device, rank, server, parts_per_epoch=parts_per_epoch, parts_done=parts_done)
    strategy.own_epochs = -(-steps // steps_per_epoch) - parts_done // parts_per_epoch
    data.train_batches = PartBatches(data.train_batches, strategy, ranks, options.accumulate)
    return strategy


def _convert_parts(parts_done: int, ranks_before: int, ranks: int) -> int:
    """Parts done, where a batch has another number of them now: what of a batch was done is done again."""
    return parts_done if ranks_before == ranks else parts_done // ranks_before * ranks
