"""The all-reduce by sockets: sums, the same bits everywhere, late and lost ranks."""

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hpcdist.train.exchange import MOST_BYTES, POLL_S, Exchange
from tests.train.conftest import free_port


@pytest.fixture
def connected():
    """As many exchanges as asked for, all in this process."""
    opened = []

    def connect(count):
        peers = [{} for _ in range(count)]
        for one, other in itertools.combinations(range(count), 2):
            peers[one][other], peers[other][one] = pair = _tcp_pair()
            opened.extend(pair)
        return [Exchange(rank, sockets) for rank, sockets in enumerate(peers)]

    yield connect
    for one in opened:
        one.close()


def _tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def all_reduce(exchanges, tensors):
    with ThreadPoolExecutor(len(exchanges)) as pool:
        list(pool.map(Exchange.all_reduce, exchanges, tensors))
    return tensors


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_every_rank_has_the_sum_in_the_order_of_ranks(connected, ranks, kind):
    torch.manual_seed(ranks)
    tensors = [torch.randn(50_000).to(kind) for _ in range(ranks)]
    expected = tensors[0].clone()
    for one in tensors[1:]:
        expected += one
    exchanges = connected(ranks)
    for _ in range(3):  # one after the other: nothing of the last is left
        for found in all_reduce(exchanges, [one.clone() for one in tensors]):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_largest_of_all_ranks_is_found_too(connected, ranks):
    tensors = [torch.tensor([rank, -rank, 7.0], dtype=torch.float64) for rank in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(lambda one, values: one.all_reduce(values, torch.maximum), connected(ranks), tensors))
    assert [one.tolist() for one in tensors] == [[ranks - 1, 0, 7]] * ranks


def test_the_most_that_fits_passes_though_it_is_more_than_a_socket_holds(connected):
    exchanges = connected(2)
    most = torch.arange(MOST_BYTES // 4, dtype=torch.float32)
    assert exchanges[0].fits(most)
    assert not exchanges[0].fits(torch.zeros(MOST_BYTES // 4 + 1))
    assert not connected(3)[0].fits(most)
    assert all(torch.equal(one, 2 * most) for one in all_reduce(exchanges, [most.clone(), most.clone()]))


def test_a_late_rank_is_waited_for_asleep(connected):
    first, second = connected(2)
    values = torch.ones(4)
    with ThreadPoolExecutor(1) as pool:
        busy_s = time.process_time()
        waiting = pool.submit(first.all_reduce, values)
        time.sleep(1)
        assert time.process_time() - busy_s < POLL_S + 0.3
        assert not waiting.done()
        second.all_reduce(torch.ones(4))
        waiting.result(10)
    assert values.tolist() == [2.0] * 4


def test_a_rank_that_goes_is_named_in_the_words_by_which_lost_ranks_are_told(connected):
    first, second = connected(2)
    threading.Timer(0.1, second._peers[0].close).start()
    with pytest.raises(RuntimeError, match="Connection closed by peer: rank 1"):
        first.all_reduce(torch.ones(4))


def test_ranks_connect_or_all_of_them_do_without():
    script, port = Path(__file__).with_name("exchange_ranks.py"), free_port()
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), str(port)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    assert [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks] == [[[3.0] * 3, True]] * 2
