"""Puts together a training whose ranks do not wait for each other."""

from typing import Any

import pytorch_lightning as pl

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
    trainer: pl.Trainer,
    strategy: AsyncServer,
    module: Classifier,
    data: ImageData,
    *,
    options: Options,
    rank: RankEnvironment,
    steps: int,
    checkpoints: Checkpoints,
    last_words: LastWords,
    content: dict[str, Any] | None,
) -> None:
    """Has the server say who trains what, and Lightning go on until it says that all is done.

    Args:
        trainer: What trains.
        strategy: Its strategy.
        module: What is trained.
        data: The training set; its batches are replaced.
        options: What was asked for.
        rank: This rank.
        steps: Batches in all.
        checkpoints: What knows when one is due.
        last_words: What ends this process when another rank is lost.
        content: The checkpoint to go on from; None begins anew.
    """
    steps_per_epoch, ranks = data.train_batches.steps_per_epoch, rank.world_size
    state: dict[str, Any] | None = None
    parts_done = 0
    if content is not None:
        module.load_state_dict(content["state_dict"])
        state = content[OWN_KEY]["server"]
        parts_done = _convert_parts(content[OWN_KEY]["server"]["parts_done"], len(content[OWN_KEY]["ranks"]), ranks)
    server = None
    if rank.rank == 0:
        tickets = Tickets(ranks=ranks, batches_per_epoch=steps_per_epoch, batches=steps, done=parts_done)
        server = Server(
            module,
            tickets,
            lambda: checkpoints.is_due(options.checkpoint_interval_s),
            last_words,
            optimizer_state=state["optimizer"] if state else None,
            parts_done=parts_done,
        )
    strategy.plan(server, parts_per_epoch=ranks * steps_per_epoch, parts_done=parts_done)
    data.train_batches = PartBatches(data.train_batches, strategy, ranks, options.accumulate)
    # This rank's own steps and epochs say nothing of the training.
    trainer.fit_loop.epoch_loop.max_steps = -1
    trainer.fit_loop.max_epochs = -(-steps // steps_per_epoch) - parts_done // (ranks * steps_per_epoch)


def _convert_parts(parts_done: int, ranks_before: int, ranks: int) -> int:
    """Parts done, where a batch has another number of them now: what of a batch was done is done again."""
    return parts_done if ranks_before == ranks else parts_done // ranks_before * ranks
