"""A parameter server for which no rank waits for another: the strategy of a rank that trains at its own pace.

Each rank sends the gradients of a part of a batch to the server, a thread of rank 0, and gets back the weights of that
moment and the next part to train. All meet only where something has to be done together: at the end of an epoch, when
the training is tested, for a checkpoint, and to stop.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn

from hpcdist.train.data.batches import Batch
from hpcdist.train.environment import RankEnvironment
from hpcdist.train.parameter_server.flat import (
    count_bytes,
    flatten,
    list_statistics,
    list_weights,
    spread,
    take_gradients,
)
from hpcdist.train.parameter_server.server import ANSWER_NUMBERS, QUESTION_NUMBERS, Message, Server
from hpcdist.train.parameter_server.synchronous import SERVER
from hpcdist.train.step_count import RankStrategy

# A server waits for its clients while they test; that a rank hangs is the watchdog's business.
TIMEOUT = timedelta(days=30)
ASK_INTERVAL_S = 0.5


class AsyncServer(RankStrategy, SingleDeviceStrategy):
    """Sends gradients, takes weights and the number of the next part.

    Args:
        server: On rank 0.
        parts_per_epoch: Parts that all ranks train in an epoch.
        parts_done: Parts that they have trained before.

    Attributes:
        is_paused: Whether this step ended in a pause in the middle of an epoch.
    """

    is_process_of_its_own = True

    def __init__(
        self,
        device: torch.device,
        rank: RankEnvironment,
        server: Server | None,
        *,
        parts_per_epoch: int,
        parts_done: int,
    ) -> None:
        super().__init__(device=device)
        self._rank = rank
        self._group: Any = None
        self._server, self._parts_per_epoch, self._parts_done = server, parts_per_epoch, parts_done
        self._question, self._answer = Message(QUESTION_NUMBERS, 0), Message(ANSWER_NUMBERS, 0)
        self._asked_at = 0.0
        self._is_asked = False
        self._part: int | None = None
        self._part_images = 0
        self._images = 0  # that all ranks trained since they started, as of the server's last answer
        self.is_paused = False

    @property
    def steps_done(self) -> int:
        """Whole batches that all ranks have trained."""
        return self._parts_done // self._rank.world_size

    @property
    def epochs_done(self) -> int:
        """Whole epochs that all ranks have trained."""
        return self._parts_done // self._parts_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the last part, counted from 1."""
        return math.ceil(self._parts_done / self._parts_per_epoch) or 1

    def count_images(self, batch: Batch, before: int) -> int:
        """Return what the server said: this rank knows nothing of the others' steps."""
        return self._images

    def bytes_per_step(self, network: nn.Module) -> int:
        """Return the size of the gradients and of the weights."""
        return 2 * count_bytes(list_weights(network))

    def setup_optimizers(self, trainer: Any) -> None:
        """Leave the learning rate to the server."""
        super().setup_optimizers(trainer)
        self.lr_scheduler_configs = []

    def on_train_start(self) -> None:
        """Start the server, and begin with its weights and a part for each rank."""
        # Lightning would test after a fixed number of this rank's steps; so it tests when an epoch is over.
        self.trainer.val_check_batch = float("inf")
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        size = sum(one.numel() for one in self._weights())
        self._question, self._answer = Message(QUESTION_NUMBERS, size), Message(ANSWER_NUMBERS, size)
        if self._server:
            self._server.serve([one for one in range(self._rank.world_size) if one != SERVER], self._group)
        self._meet()
        self.is_paused = False

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: nn.Module | None = None, **kwargs: Any
    ) -> Any:
        """Make a step: backward pass, gradients to the server, its weights back, and a pause when it says so."""
        self.is_paused = False

        def train_and_exchange() -> Any:
            loss = closure()
            self._exchange()
            return loss

        # It finds no gradients: the server has taken them.
        result = super().optimizer_step(optimizer, train_and_exchange, model, **kwargs)
        if self._part is None:
            is_epoch_over = self._meet()
            self.is_paused = not is_epoch_over
            self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = is_epoch_over
        for group in optimizer.param_groups:
            group["lr"] = self._answer.numbers[3].item()  # to be logged
        self.end_part("communication")
        return result

    def _exchange(self) -> None:
        question, answer = self._question, self._answer
        now = time.monotonic()
        if self._rank.stop_file and not self._is_asked and now - self._asked_at > ASK_INTERVAL_S:
            self._asked_at, self._is_asked = now, self._rank.stop_file.exists()
        question.floats.copy_(take_gradients(self._weights()))
        question.numbers[:] = torch.tensor([self._part_images, self._is_asked, False], dtype=torch.float64)
        if self._server:
            self._server.learn(question, answer)
        else:
            dist.send(question.data, SERVER, self._group)
            dist.recv(answer.data, SERVER, self._group)
        self._take(0)

    def _meet(self) -> bool:
        """Wait for all ranks, whose gradients are all in then; return whether the epoch is over."""
        dist.barrier(group=self._group)
        told = torch.zeros(1)
        if self._server:
            told[0] = self._server.deal(self._answer)
        dist.broadcast(self._answer.data, SERVER, group=self._group)
        dist.broadcast(told, SERVER, group=self._group)
        self._take(self._rank.rank)
        if statistics := list_statistics(self.network):
            # Each rank has seen other images: the mean is for all of them.
            flat = flatten(statistics).cpu()
            dist.all_reduce(flat, group=self._group)
            spread(flat.div_(self._rank.world_size), statistics)
        return bool(told[0])

    def _take(self, offset: int) -> None:
        part, self._parts_done, self._images = (int(number) for number in self._answer.numbers[:3].tolist())
        self._part = part + offset if part >= 0 else None
        spread(self._answer.floats, self._weights())

    def parts(self) -> Iterator[int]:
        """Yield the parts that this rank trains, one after the other, until the epoch is over."""
        while self._part is not None:
            yield self._part

    def note_images(self, count: int) -> None:
        """Note the images of the part that is trained next."""
        self._part_images = count

    def held(self) -> AbstractContextManager[Any]:
        """Let no rank change the server's weights for a while."""
        return self._server.held() if self._server else nullcontext()

    def server_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the server; empty where it is not."""
        return self._server.state() if self._server else {}

    def close(self) -> None:
        """Expect no rank to send anything any more."""
        if self._server:
            self._server.close()

    def on_train_end(self) -> None:
        """Take leave of the server."""
        if self._server:
            self._server.join()
            return
        self._question.numbers[2] = True
        dist.send(self._question.data, SERVER, self._group)

    def _weights(self) -> list[nn.Parameter]:
        return list_weights(self.network)
