"""All-reduce of small tensors between CPUs by sockets that the waiting rank itself reads, without a thread in between.

Gloo hands each message to threads that sleep between two steps, and waking them takes milliseconds, several times what
the message takes. Here every rank sends its values to every other and adds up what it gets, in the order of ranks, so
that all have the same bits. That is as much as a ring sends for two ranks, and little more for few: `fits` says where.
"""

import os
import secrets
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hpcdist.train.environment import RankEnvironment

MOST_BYTES = 1 << 20  # that a rank sends
# So long a rank asks again and again, which is longer than ranks are apart; then it sleeps until something comes.
POLL_S = 0.02
_CONNECT_S = 5.0
_TOKEN_BYTES = 16


class Exchange:
    """Connections to all other ranks.

    Args:
        rank: This rank.
        peers: A connected socket for each other rank.
    """

    def __init__(self, rank: int, peers: dict[int, socket.socket]) -> None:
        self._rank = rank
        self._peers = dict(sorted(peers.items()))
        for peer in self._peers.values():
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.settimeout(0)
        self._received = {peer: torch.empty(MOST_BYTES, dtype=torch.uint8) for peer in self._peers}

    def fits(self, values: Tensor) -> bool:
        """Whether they are few enough for it."""
        return values.device.type == "cpu" and values.nbytes * len(self._peers) <= MOST_BYTES

    def all_reduce(self, values: Tensor, combine: Callable[..., Tensor] = torch.add) -> None:
        """Combines the values, which must lie in one row and fit, with those of all ranks; all must call it.

        Args:
            values: Replaced by what comes out: their sums, unless `combine` says otherwise.
            combine: `torch.add` or `torch.maximum`, or what else takes two tensors and `out`.

        Raises:
            RuntimeError: The connection to a rank broke.
        """
        self._swap(values)
        others = {
            peer: buffer[: values.nbytes].view(values.dtype).view_as(values) for peer, buffer in self._received.items()
        }
        if len(others) == 1:
            combine(values, *others.values(), out=values)
            return
        first, *rest = (one for _, one in sorted({**others, self._rank: values}.items()))
        total = first.clone()
        for one in rest:
            combine(total, one, out=total)
        values.copy_(total)

    def _swap(self, values: Tensor) -> None:
        mine = _bytes_of(values)
        unsent = dict.fromkeys(self._peers, mine)
        unread = {peer: _bytes_of(buffer[: values.nbytes]) for peer, buffer in self._received.items()}
        deadline = time.perf_counter() + POLL_S
        while unsent or unread:
            if self._send(unsent) + self._read(unread):
                continue
            if time.perf_counter() < deadline:
                os.sched_yield()
            else:
                self._sleep(unsent, unread)

    def _send(self, unsent: dict[int, memoryview]) -> int:
        sent = 0
        for peer, left in list(unsent.items()):
            try:
                count = self._peers[peer].send(left)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _lost(peer, error) from None
            sent += count
            unsent[peer] = left[count:]
            if count == len(left):
                del unsent[peer]
        return sent

    def _read(self, unread: dict[int, memoryview]) -> int:
        read = 0
        for peer, left in list(unread.items()):
            try:
                count = self._peers[peer].recv_into(left)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _lost(peer, error) from None
            if not count:
                raise _lost(peer, "its end is closed")
            read += count
            unread[peer] = left[count:]
            if count == len(left):
                del unread[peer]
        return read

    def _sleep(self, unsent: dict[int, memoryview], unread: dict[int, memoryview]) -> None:
        poll = select.poll()
        for peer, one in self._peers.items():
            poll.register(one, (select.POLLIN if peer in unread else 0) | (select.POLLOUT if peer in unsent else 0))
        poll.poll(1000)


def _bytes_of(values: Tensor) -> memoryview:
    return memoryview(values.view(torch.uint8).numpy().data)


def _lost(peer: int, reason: object) -> RuntimeError:
    # In gloo's words, by which a lost rank is told.
    return RuntimeError(f"Connection closed by peer: rank {peer} ({reason})")


def connect(rank: RankEnvironment) -> Exchange | None:
    """Connects all ranks with each other, once they are in a process group; all must call it.

    Returns:
        None where any of them could not reach another: a firewall may leave open no more ports than gloo was given.
    """
    with ExitStack() as stack:
        peers: dict[int, socket.socket] = {}
        address: tuple[str, int] | None = None
        listener = None
        with suppress(OSError):
            listener = stack.enter_context(_listen(rank))
            address = listener.getsockname()[:2]
        offers: list[tuple[tuple[str, int] | None, bytes]] = [(None, b"")] * rank.world_size
        dist.all_gather_object(offers, (address, secrets.token_bytes(_TOKEN_BYTES)))
        addresses, token = [one for one, _ in offers if one], offers[0][1]
        if listener is not None and len(addresses) == rank.world_size:
            with suppress(OSError):
                for number in range(rank.rank):
                    peers[number] = socket.create_connection(addresses[number], _CONNECT_S)
                    peers[number].sendall(token + rank.rank.to_bytes(4, "big"))
                _accept(listener, token, rank, peers)
        is_whole = torch.tensor(len(peers) == rank.world_size - 1, dtype=torch.uint8)
        dist.all_reduce(is_whole, dist.ReduceOp.MIN)
        if is_whole:
            return Exchange(rank.rank, peers)
        for one in peers.values():
            one.close()
    return None


def _listen(rank: RankEnvironment) -> socket.socket:
    """At the address that the others reach: of the interface for gloo, else on the way to rank 0."""
    name = os.environ.get("GLOO_SOCKET_IFNAME")
    for one in psutil.net_if_addrs().get(name or "", []):
        if one.family in (socket.AF_INET, socket.AF_INET6):
            return socket.create_server((one.address, 0), family=one.family)
    family, kind, _, _, target = socket.getaddrinfo(rank.main_address, rank.main_port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(target)  # sends nothing
        here = way.getsockname()[0]
    return socket.create_server((here, 0), family=family)


def _accept(listener: socket.socket, token: bytes, rank: RankEnvironment, peers: dict[int, socket.socket]) -> None:
    """Takes the calls of the later ranks; who does not know the token is sent away."""
    deadline = time.monotonic() + _CONNECT_S
    while len(peers) < rank.world_size - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        caller, _ = listener.accept()
        caller.settimeout(_CONNECT_S)
        said = caller.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
        number = int.from_bytes(said[_TOKEN_BYTES:], "big")
        if secrets.compare_digest(said[:_TOKEN_BYTES], token) and rank.rank < number < rank.world_size:
            peers[number] = caller
        else:
            caller.close()
