"""What a report would hold and nobody measured. Pure."""

from collections.abc import Sequence

from hpcdist.comparison import VariantRow
from hpcdist.studies.study import Study
from hpcdist.verdict_words import join_names

# The field of a row, and what it is for a reader.
_FIGURES = {
    "images_per_s": "steady images/s",
    "accuracy": "test accuracy",
    "split": "step-time split",
    "starting_s": "start-up time",
    "cpu_efficiency": "CPU efficiency",
    "memory_efficiency": "memory efficiency",
    "gpu_efficiency": "GPU efficiency",
    "ettr": "goodput (effective training time ratio)",
    "ranks_worked": "ranks that really worked",
    "global_batch_size": "global batch",
}
# These only a job of several ranks can have.
_OF_SEVERAL = {
    "bandwidth_bytes_per_s": "bandwidth and latency between the ranks",
    "bytes_per_step": "bytes all-reduced per step",
    "straggler": "slowest rank",
}


def find_unmeasured(rows: Sequence[VariantRow], study: Study) -> tuple[str, ...]:
    """One clause each, such as `step-time split of 2x1, 2x2`; of completed jobs only."""
    done = [row for row in rows if row.wall_s is not None]
    if not done:
        return ("everything: no job of the study completed",)
    several = [row for row in done if row.ranks_asked > 1]
    clauses = [_clause(text, done, name) for name, text in _FIGURES.items()]
    clauses += [_clause(text, several, name) for name, text in _OF_SEVERAL.items()]
    return (*(clause for clause in clauses if clause), *_about_the_study(done, study))


def _clause(text: str, rows: Sequence[VariantRow], name: str) -> str | None:
    lacking = [row.label for row in rows if getattr(row, name) is None]
    if not lacking:
        return None
    if len(lacking) == len(rows):
        why = " (no layout has a GPU)" if text == "GPU efficiency" and not any(row.layout.gpus for row in rows) else ""
        return text + why
    return f"{text} of {join_names(lacking)}"


def _about_the_study(done: Sequence[VariantRow], study: Study) -> list[str]:
    found = []
    if all(row.wall_s is not None and row.wall_s.count == 1 for row in done):
        found.append("spread: everything ran once")
    if any(row.images_per_s is None for row in done) and any(row.speedup for row in done):
        found.append("speedup in the steady state: by wall-clock, start-up included, where images/s are missing")
    if not any(row.speedup for row in done):
        found.append("speedup: the baseline has no completed job")
    if study.target_accuracy is None:
        found.append("time to a target accuracy: the study names none")
    if all(row.cost is None for row in done):
        found.append("cost: the study has no prices for these layouts")
    return found
