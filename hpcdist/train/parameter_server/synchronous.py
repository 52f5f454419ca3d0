"""A parameter server that waits for every rank: gradients go to rank 0, and its weights come back.

Rank 0 is the server and trains as well: nobody asks for a rank more. It holds the only optimizer that does anything;
that of the other ranks finds no gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn

from hpcdist.train.environment import RankEnvironment
from hpcdist.train.parameter_server.flat import (
    count_bytes,
    flatten,
    give_gradients,
    list_statistics,
    list_weights,
    spread,
    take_gradients,
)
from hpcdist.train.step_count import RankStrategy

SERVER = 0


class SyncServer(RankStrategy, SingleDeviceStrategy):
    """Each rank trains for Lightning's eyes alone; between backward pass and next step it talks to the server."""

    is_process_of_its_own = True

    def __init__(self, device: torch.device, rank: RankEnvironment) -> None:
        super().__init__(device=device)
        self._me, self._size = rank.rank, rank.world_size
        self._clients = [one for one in range(rank.world_size) if one != SERVER]

    def on_train_start(self) -> None:
        """Begin with the server's weights."""
        flat = flatten(self._state())
        dist.broadcast(flat, SERVER)
        spread(flat, self._state())

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any], model: nn.Module | None = None, **kwargs: Any
    ) -> Any:
        """Make a step: backward pass, gradients to the server, its optimizer, weights from the server."""

        def train_and_send() -> Any:
            loss = closure()
            self._send_gradients()
            self.end_part("communication")
            return loss

        result = super().optimizer_step(optimizer, train_and_send, model, **kwargs)
        self.end_part("other")
        self._fetch_weights()
        self.end_part("communication")
        return result

    def bytes_per_step(self, network: nn.Module) -> int:
        """Return the size of the gradients, the weights and batch normalisation's statistics."""
        return 2 * count_bytes(list_weights(network)) + count_bytes(list_statistics(network))

    def _send_gradients(self) -> None:
        weights = list_weights(self.network)
        flat = take_gradients(weights)
        if self._me != SERVER:
            dist.send(flat, SERVER)
            return
        theirs = {one: torch.empty_like(flat) for one in self._clients}
        arrivals = {one: dist.irecv(theirs[one], one) for one in self._clients}
        # In the order of ranks and not of arrival: the same sum each time.
        for one in self._clients:
            _wait(arrivals[one])
            flat += theirs[one]
        give_gradients(flat.div_(self._size), weights)

    def _fetch_weights(self) -> None:
        flat = flatten(self._state())
        if self._me == SERVER:
            for departure in [dist.isend(flat, one) for one in self._clients]:
                _wait(departure)
        else:
            dist.recv(flat, SERVER)
            spread(flat, self._state())

    def _state(self) -> list[torch.Tensor]:
        return [*list_weights(self.network), *list_statistics(self.network)]


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
