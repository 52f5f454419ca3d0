"""The batches of a rank that is told what to train, part by part, of any training set."""

from collections.abc import Iterator

from hpcdist.train.data.batches import Batch, TrainBatches
from hpcdist.train.parameter_server.asynchronous import AsyncServer


class PartBatches(TrainBatches):
    """What a rank trains at its own pace; a part is what some rank would train of a batch if all went in step.

    Args:
        whole: The training set, as a rank that goes in step has it; it loads the samples.
        strategy: What knows the next part.
        ranks: Ranks in all, and so parts of a batch.
        accumulate: Pieces that each part is computed in.
    """

    def __init__(self, whole: TrainBatches, strategy: AsyncServer, ranks: int, accumulate: int) -> None:
        super().__init__(whole.split, whole.batch_size, whole.seed, 0, ranks, accumulate=accumulate)
        self._whole, self._strategy = whole, strategy
        self._parts, self._pieces = ranks, accumulate
        self.watch = whole.watch

    def __len__(self) -> int:
        """Return the most that one rank can get: all parts."""
        return self.steps_per_epoch * self._parts * self._pieces

    def __iter__(self) -> Iterator[Batch]:
        return self.watch(self._load_parts())

    def _load_parts(self) -> Iterator[Batch]:
        for item in self._strategy.parts():
            number, own = divmod(item, self._parts)
            self._whole.epoch, batch = divmod(number, self.steps_per_epoch)
            slices = [self._whole.cut(batch, piece, self._pieces, own, self._parts) for piece in range(self._pieces)]
            count = sum(len(part.indices_B) for part in slices)
            self._strategy.note_images(count)
            for loaded in self._whole.load(iter(slices)):
                # Its gradient is applied by itself: a mean over the part's samples and not over the batch's.
                yield loaded._replace(global_count=max(1, count))

    def state_dict(self) -> dict[str, int]:
        """Nothing: the server knows where the training is."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing likewise."""
