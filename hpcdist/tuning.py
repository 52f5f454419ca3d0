"""Which batch size and how many workers a layout trains fastest with: what to try next, and what to take. Pure.

Throughput grows with the batch until the processors are busy, so batches are doubled until that no longer pays.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from hpcdist.units import format_percent

# A doubling that gains less is not worth the accuracy that it may cost.
GAIN = 0.05
MOST_MEMORY = 0.8
# Share of a step spent waiting for data from which more workers are tried.
STARVED = 0.1
NOT_PROMISED = (
    "Not promised: accuracy. A larger batch takes fewer steps in as many epochs and may learn less in them; the"
    " learning rate is left as it is (--scale-lr scales it). Each setting was measured once, for seconds, without"
    " tests and checkpoints: figures a few percent apart are the same."
)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, and what a short training with it measured; None is unknown.

    Attributes:
        batch_size: Samples per step over all ranks.
        workers: Processes of each rank that decode the images; None is as many as it takes by itself.
        run: The run that measured it.
        images_per_s: Throughput over all ranks.
        utilization: How busy the processors were meanwhile, the mean over ranks, a fraction.
        processor: Which processors that is of: GPUs where the ranks have any, else the CPUs asked for.
        is_crowded: Whether the node's CPUs were all busy while the ranks had not got theirs.
        memory_share: Peak memory over what there is, a fraction: of the fullest node, or GPU where that is fuller.
        data_share: Share of a step spent waiting for the data.
        failure: Why it measured nothing, one sentence.
        out_of_memory: Whether it was too large.
    """

    batch_size: int
    workers: int | None = None
    run: str | None = None
    images_per_s: float | None = None
    utilization: float | None = None
    processor: Literal["GPU", "CPU"] = "CPU"
    is_crowded: bool = False
    memory_share: float | None = None
    data_share: float | None = None
    failure: str | None = None
    out_of_memory: bool = False

    @property
    def fits(self) -> bool:
        """Whether it ran with memory to spare."""
        return self.images_per_s is not None and (self.memory_share is None or self.memory_share <= MOST_MEMORY)


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for.

    Attributes:
        start: Batch size to begin with.
        least, most: Batch sizes at the ends; `most` None is no end.
        multiple: What batch sizes are multiples of: the ranks, where the batch is given per rank.
        at_once: How many batch sizes are tried before the next look.
        target_utilization: How busy the processors are to be, a fraction; None looks for the best throughput.
    """

    start: int
    least: int = 1
    most: int | None = None
    multiple: int = 1
    at_once: int = 1
    target_utilization: float | None = None


def next_batches(search: Search, attempts: Sequence[Attempt]) -> tuple[int, ...]:
    """The batch sizes to try next; empty when enough is known."""
    tried = sorted(attempts, key=lambda one: one.batch_size)
    if not tried:
        return _doublings(search.start, search)
    if not tried[0].fits:
        half = tried[0].batch_size // 2 // search.multiple * search.multiple
        # What fails for another reason than memory fails with a smaller batch, too.
        is_too_large = tried[0].out_of_memory or tried[0].failure is None
        can_fit = (_least_memory(tried) or 0.0) <= MOST_MEMORY
        return (half,) if is_too_large and can_fit and half >= search.least else ()
    for before, one in zip([None, *tried], tried, strict=False):
        if not one.fits or _reaches(search, one) or (before and _gain(before, one) < GAIN):
            return ()
    return _doublings(2 * tried[-1].batch_size, search)


def _least_memory(tried: Sequence[Attempt]) -> float | None:
    """What would be taken without a batch: on a line through the two smallest ones; None where it can't be told."""
    if len(tried) < 2 or tried[0].memory_share is None or tried[1].memory_share is None:
        return None
    per_sample = (tried[1].memory_share - tried[0].memory_share) / (tried[1].batch_size - tried[0].batch_size)
    return tried[0].memory_share - max(0.0, per_sample) * tried[0].batch_size


def _doublings(first: int, search: Search) -> tuple[int, ...]:
    sizes = [first * 2**power for power in range(search.at_once)]
    return tuple(size for size in sizes if search.most is None or size <= search.most)


def _gain(before: Attempt, one: Attempt) -> float:
    if not before.images_per_s or one.images_per_s is None:
        return 0.0
    return one.images_per_s / before.images_per_s - 1


def _reaches(search: Search, one: Attempt) -> bool:
    target = search.target_utilization
    return target is not None and one.utilization is not None and one.utilization >= target


def choose_batch(search: Search, attempts: Sequence[Attempt]) -> Attempt | None:
    """The smallest batch that reaches the target, else the smallest one about as fast as the fastest.

    None where nothing ran with memory to spare.
    """
    fitting = sorted((one for one in attempts if one.fits), key=lambda one: one.batch_size)
    reaching = [one for one in fitting if _reaches(search, one)]
    return reaching[0] if reaching else _first_of_the_fastest(fitting)


def _first_of_the_fastest(attempts: Sequence[Attempt]) -> Attempt | None:
    fastest = max((one.images_per_s or 0.0 for one in attempts), default=0.0)
    return next((one for one in attempts if (one.images_per_s or 0.0) * (1 + GAIN) > fastest), None)


def next_workers(chosen: Attempt, attempts: Sequence[Attempt], cpus: int, *, has_workers: bool) -> tuple[int, ...]:
    """The numbers of workers to try with a batch: none, 1, 2, 4 and on to the rank's CPUs; empty where none can help.

    Args:
        chosen: The batch, as it was measured.
        attempts: All batches: where the chosen one had too few steps to tell, what others waited counts.
        cpus: CPUs of each rank.
        has_workers: Whether anything decodes images at all.
    """
    told = [one.data_share for one in ([chosen] if chosen.data_share is not None else attempts)]
    if not has_workers or max((share for share in told if share is not None), default=0.0) <= STARVED:
        return ()
    return (0, *(2**power for power in range(16) if 2**power <= max(4, cpus)))


def choose_workers(chosen: Attempt, attempts: Sequence[Attempt]) -> Attempt:
    """The fewest workers about as fast as the fastest; the batch as it was measured first where none gains."""
    fitting = sorted((one for one in attempts if one.fits), key=lambda one: one.workers or 0)
    best = _first_of_the_fastest(fitting)
    return best if best and _gain(chosen, best) >= GAIN else chosen


def explain(search: Search, attempts: Sequence[Attempt], chosen: Attempt | None, *, has_workers: bool) -> list[str]:
    """Why that one, and where the search ended; one sentence each."""
    tried = sorted((one for one in attempts if one.workers is None), key=lambda one: one.batch_size)
    if chosen is None:
        return _explain_none(tried)
    speed = f"{chosen.images_per_s:,.0f} images/s"
    busy = "" if chosen.utilization is None else f", {chosen.processor}s {_percent(chosen.utilization)} busy"
    said = [f"Batch {chosen.batch_size}: {speed}{busy}."]
    target = search.target_utilization
    if target is not None:
        reached = _reaches(search, chosen)
        said.append(
            f"It is the smallest that keeps the {chosen.processor}s {_percent(target)} busy."
            if reached
            else f"None keeps the {chosen.processor}s {_percent(target)} busy; this is the fastest."
        )
    larger = next((one for one in tried if one.batch_size > chosen.batch_size), None)
    if larger is not None and not (target is not None and _reaches(search, chosen)):
        said.append(_describe_larger(chosen, larger))
    if chosen.workers is not None:
        said.append(f"Workers {chosen.workers}: waiting for data took {_percent(chosen.data_share)} of a step.")
    elif has_workers and chosen.data_share is not None and chosen.data_share > STARVED:
        said.append(f"The data take {_percent(chosen.data_share)} of a step, and no number of workers gains 5 %.")
    if crowded := [one.batch_size for one in tried if one.is_crowded]:
        told = ", ".join(map(str, crowded))
        said.append(f"While {told} ran, other programs took the node's CPUs: these speeds can't be compared.")
    return said


def _explain_none(tried: Sequence[Attempt]) -> list[str]:
    reasons = [one.failure or f"{_percent(one.memory_share)} of the memory" for one in tried]
    said = [f"No batch size ran with memory to spare: {'; '.join(dict.fromkeys(reasons))}."]
    least = _least_memory(tried)
    if least is not None and least > MOST_MEMORY:
        said.append(
            f"Without any batch it would take {_percent(least)} of it, the limit being {_percent(MOST_MEMORY)}."
        )
        if tried[0].processor == "CPU":
            more = math.ceil(10 * (tried[0].memory_share or 0.0) / MOST_MEMORY) / 10
            said.append(f"Ask for at least {more:.1f} times the memory (--mem) and tune again.")
    return said


def _describe_larger(chosen: Attempt, larger: Attempt) -> str:
    if larger.out_of_memory:
        return f"Batch {larger.batch_size} ran out of memory."
    if larger.failure:
        return f"Batch {larger.batch_size} failed: {larger.failure}."
    if not larger.fits:
        return f"Batch {larger.batch_size} took {_percent(larger.memory_share)} of the memory, the limit being 80 %."
    if _gain(chosen, larger) < 0:
        return f"Batch {larger.batch_size} is {-100 * _gain(chosen, larger):.1f} % slower."
    return f"Batch {larger.batch_size} gains {100 * _gain(chosen, larger):+.1f} %, under the 5 % that is worth it."


def _percent(share: float | None) -> str:
    return "an unknown part" if share is None else format_percent(share)
