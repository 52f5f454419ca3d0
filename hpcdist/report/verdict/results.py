"""What the verdict's rules share: the completed rows, which of them are smaller, how figures are worded."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from hpcdist.report.model import Spread, VariantRow
from hpcdist.report.scaling import is_less
from hpcdist.studies.study import Study, settings_key

BATCH_OPTIONS = frozenset({"batch_size", "batch_size_per_rank"})
_MOST_NAMES = 3


class StudyResults(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict is about.

    Attributes:
        study: What was asked.
        rows: The variants.
        done: Those with a completed job.
        groups: Those by their settings.
        alike: Those by their settings but for the batch.
    """

    study: Study
    rows: tuple[VariantRow, ...]
    done: tuple[VariantRow, ...]
    groups: dict[bytes, tuple[VariantRow, ...]]
    alike: dict[bytes, tuple[VariantRow, ...]]

    def group(self, row: VariantRow) -> tuple[VariantRow, ...]:
        """The completed rows with the same settings, itself included."""
        return self.groups[settings_key(row.settings)]

    def but_batch(self, row: VariantRow) -> tuple[VariantRow, ...]:
        """The completed rows that differ from this one in layout and batch only, itself included."""
        return self.alike[settings_key(row.settings, BATCH_OPTIONS)]

    def smaller(self, row: VariantRow) -> list[VariantRow]:
        """The completed rows with the same settings and fewer ranks, or as many on fewer nodes."""
        return [one for one in self.group(row) if size(one) < size(row)]


def build_results(rows: Sequence[VariantRow], study: Study) -> StudyResults:
    """Sort a study's rows by what the rules look at."""
    done = tuple(row for row in rows if row.wall_s is not None)
    return StudyResults(
        study=study, rows=tuple(rows), done=done, groups=_group(done), alike=_group(done, without=BATCH_OPTIONS)
    )


def _group(rows: Iterable[VariantRow], without: frozenset[str] = frozenset()) -> dict[bytes, tuple[VariantRow, ...]]:
    groups: dict[bytes, list[VariantRow]] = {}
    for row in rows:
        groups.setdefault(settings_key(row.settings, without), []).append(row)
    return {key: tuple(group) for key, group in groups.items()}


def size(row: VariantRow) -> tuple[int, int]:
    """Ranks, then nodes: of two layouts that are called equal the smaller one is recommended."""
    return row.ranks, row.layout.nodes


def reached_target(row: VariantRow) -> bool:
    """Whether every completed job of a row reached the target accuracy."""
    return bool(row.time_to_target_s and row.wall_s and row.time_to_target_s.count == row.wall_s.count)


def is_slower(row: VariantRow, other: VariantRow) -> bool:
    """Whether a row really trains more slowly: by steady images/s, else by wall-clock."""
    if row.images_per_s and other.images_per_s:
        return is_less(row.images_per_s, other.images_per_s)
    return bool(row.wall_s and other.wall_s and is_less(other.wall_s, row.wall_s))


def communication_s(row: VariantRow) -> float | None:
    """Seconds of exposed communication per step that are no waiting for slower ranks."""
    if row.split is None or row.ranks < 2:
        return None
    return max(0.0, row.split.communication_s - (row.waiting_s or 0.0))


def batch_per_rank(row: VariantRow) -> float | None:
    """Samples of each rank's step."""
    return row.global_batch_size / row.ranks if row.global_batch_size else None


def compute_per_sample_s(row: VariantRow) -> float | None:
    """Seconds of forward and backward pass per sample of a rank."""
    batch = batch_per_rank(row)
    return row.split.compute_s / batch if row.split and batch else None


def format_spread(one: Spread, form: Callable[[float], str]) -> str:
    """`15.2 s (14.9 to 15.6 s in 3 runs)`; of a single run `15.2 s (1 run)`."""
    if one.count == 1:
        return f"{form(one.median)} (1 run)"
    low, high = form(one.low), form(one.high)
    unit = " " + high.rpartition(" ")[2]
    return f"{form(one.median)} ({low.removesuffix(unit)} to {high} in {one.count} runs)"


def name_ranks(count: int, row: VariantRow) -> str:
    """`1 GPU`, `4 GPUs`, `4 ranks` of a CPU layout."""
    word = "GPU" if row.layout.gpus else "rank"
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def join_names(labels: Iterable[str], most: int = _MOST_NAMES) -> str:
    """`1x1, 1x2, 2x1 and 4 more`."""
    names = list(labels)
    shown, more = ", ".join(names[:most]), len(names) - most
    return f"{shown} and {more} more" if more > 0 else shown


def round_batch(samples: float) -> int:
    """The next power of two: what people set batches to."""
    batch = 1
    while batch < samples:
        batch *= 2
    return batch
