"""The parameter server that takes gradients as they come: weights, optimizer and a thread per client, in rank 0.

A part is what a rank would train of a batch if all went in step. Whoever is done with one gets the next, so a fast rank
trains more of them, and an epoch still has every sample once.
"""

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

from hpcdist.train.failure import FailureReporter
from hpcdist.train.module import Classifier
from hpcdist.train.parameter_server.flat import flatten, give_gradients, list_weights

# Before the gradients: images of the part, whether the rank was asked to stop, whether it goes.
QUESTION_NUMBERS = 3
# Before the weights: the next part (NO_PART for none), parts done, images of all ranks, learning rate.
ANSWER_NUMBERS = 4
NO_PART = -1
_DOUBLE_BYTES = 8


class Message:
    """Some numbers, then a row of floats, in one piece of memory that can be sent.

    Attributes:
        data: All of it, as bytes.
        numbers: The numbers, as doubles: whole ones are exact.
        floats: The row.
    """

    def __init__(self, numbers: int, floats: int) -> None:
        begin = numbers * _DOUBLE_BYTES
        self.data = torch.zeros(begin + 4 * floats, dtype=torch.uint8)
        self.numbers = self.data[:begin].view(torch.float64)
        self.floats = self.data[begin:].view(torch.float32)


class WorkQueue:
    """The numbers of the parts, counted through all epochs.

    Args:
        ranks: Ranks in all, and so parts of a batch.
        batches: Batches in all.
        done: Parts that were trained before.
    """

    def __init__(self, *, ranks: int, batches_per_epoch: int, batches: int, done: int = 0) -> None:
        self._ranks = ranks
        self.per_epoch = ranks * batches_per_epoch
        self._end = ranks * batches
        self._next = done
        self._epoch_end = done

    @property
    def is_epoch_over(self) -> bool:
        """Whether all parts of this epoch are given out."""
        return self._next >= self._epoch_end

    @property
    def can_pause(self) -> bool:
        """Whether each rank would still find a part of this epoch after a pause; else the epoch's end is near."""
        return self._epoch_end - self._next >= self._ranks

    def draw(self) -> int | None:
        """Return the next part of this epoch; None when they are all given out."""
        if self.is_epoch_over:
            return None
        self._next += 1
        return self._next - 1

    def deal(self) -> int | None:
        """Give one part to each rank, when all have met: rank r gets what is returned, plus r.

        Begins the next epoch when this one is over; None when that was the last.
        """
        if self.is_epoch_over:
            if self._next >= self._end:
                return None
            self._epoch_end = min(self._end, (self._next // self.per_epoch + 1) * self.per_epoch)
        first = self._next
        self._next += self._ranks
        return first


class Server:
    """Applies each rank's gradients by themselves, in the order in which they come.

    Its learning rate goes by what it has applied, whichever rank it came from.

    Args:
        module: What is trained; the server has weights and optimizer of its own.
        queue: Who trains what.
        is_due: Whether all should meet for a checkpoint.
        reporter: What ends this process when a client is lost.
        optimizer_state: The optimizer's, from a checkpoint; None begins anew.
        parts_done: Parts whose gradients it has got.
    """

    def __init__(
        self,
        module: Classifier,
        queue: WorkQueue,
        is_due: Callable[[], bool],
        reporter: FailureReporter,
        *,
        optimizer_state: dict[str, Any] | None,
        parts_done: int,
    ) -> None:
        master = Classifier(
            copy.deepcopy(module.network).to("cpu"),
            module.training_options,
            steps=module.rates.steps,
            world_size=1,
            rates=module.rates,
        )
        self._weights = list_weights(master)
        configured = master.configure_optimizers()
        self._optimizer: torch.optim.Optimizer = configured["optimizer"]
        self._schedule = configured["lr_scheduler"]["scheduler"]
        self._queue, self._is_due, self._reporter = queue, is_due, reporter
        self._lock = threading.Lock()
        self._is_closed = False
        self._wants_pause = False
        self._threads: list[threading.Thread] = []
        self._parts_done, self._images = parts_done, 0
        if optimizer_state is not None:
            self._optimizer.load_state_dict(optimizer_state)
            for _ in range(parts_done):
                self._schedule.step()

    def serve(self, clients: list[int], group: dist.ProcessGroup | None) -> None:
        """Answer the other ranks, from threads."""
        for client in clients:
            thread = threading.Thread(target=self._serve, args=(client, group), name=f"client-{client}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, client: int, group: dist.ProcessGroup | None) -> None:
        size = sum(one.numel() for one in self._weights)
        question, answer = Message(QUESTION_NUMBERS, size), Message(ANSWER_NUMBERS, size)
        try:
            while True:
                dist.recv(question.data, client, group)
                if question.numbers[2]:
                    return
                self.learn(question, answer)
                dist.send(answer.data, client, group)
        except RuntimeError as error:
            if not self._is_closed:
                self._reporter.end(error)

    def learn(self, question: Message, answer: Message) -> None:
        """Apply a rank's gradients, and fills in what it gets back."""
        images, asked, _ = question.numbers.tolist()
        with self._lock:
            if images:
                give_gradients(question.floats, self._weights)
                self._optimizer.step()
            self._schedule.step()
            self._parts_done += 1
            self._images += int(images)
            # Once a rank was sent to pause, all are.
            self._wants_pause |= (bool(asked) or self._is_due()) and self._queue.can_pause
            self._fill(answer, None if self._wants_pause else self._queue.draw())

    def _fill(self, answer: Message, part: int | None) -> None:
        lr = self._optimizer.param_groups[0]["lr"]
        numbers = [NO_PART if part is None else part, self._parts_done, self._images, lr]
        answer.numbers[:] = torch.tensor(numbers, dtype=torch.float64)
        answer.floats.copy_(flatten(self._weights))

    def deal(self, answer: Message) -> bool:
        """Fill in what all get when they have met, with rank 0's part; return whether the epoch is over."""
        with self._lock:
            self._wants_pause = False
            is_epoch_over = self._queue.is_epoch_over
            self._fill(answer, self._queue.deal())
            return is_epoch_over

    def held(self) -> AbstractContextManager[Any]:
        """Let nobody change anything for a while."""
        return self._lock

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep beside the weights."""
        return {"optimizer": self._optimizer.state_dict(), "parts_done": self._parts_done}

    def close(self) -> None:
        """Expect nothing any more: that clients are gone is no fault."""
        self._is_closed = True

    def join(self) -> None:
        """Wait until every client has gone."""
        for thread in self._threads:
            thread.join()
