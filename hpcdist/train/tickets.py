"""Who trains what, where no rank waits for another: the parts of an epoch are given out one by one. Pure.

A part is what a rank would train of a batch if all went in step. Whoever is done with one gets the next, so a fast rank
trains more of them, and an epoch still has every sample once.
"""


class Tickets:
    """The numbers of the parts, counted through all epochs.

    Args:
        ranks: Ranks in all, and so parts of a batch.
        batches_per_epoch: Batches of an epoch.
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
        """The next part of this epoch; None when they are all given out."""
        if self.is_epoch_over:
            return None
        self._next += 1
        return self._next - 1

    def deal(self) -> int | None:
        """Gives one part to each rank, when all have met: rank r gets what is returned, plus r.

        Begins the next epoch when this one is over; None when that was the last.
        """
        if self.is_epoch_over:
            if self._next >= self._end:
                return None
            self._epoch_end = min(self._end, (self._next // self.per_epoch + 1) * self.per_epoch)
        first = self._next
        self._next += self._ranks
        return first
