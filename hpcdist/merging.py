"""Options of several sources put together. Pure."""

from collections.abc import Mapping
from typing import Any

# Of each pair one may be given; a later source's choice replaces the other of an earlier source.
EXCLUSIVE = (("mem", "mem_per_cpu"), ("batch_size", "batch_size_per_rank"))


def merge_options(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Options of several sources, later ones winning: tables are merged by key, setup lines are added."""
    merged: dict[str, Any] = {}
    for source in sources:
        given = {key: value for key, value in source.items() if value is not None}
        for pair in EXCLUSIVE:
            for key, other in (pair, pair[::-1]):
                if key in given and other not in given:
                    merged.pop(other, None)
        for key, value in given.items():
            old = merged.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                merged[key] = {**old, **value}
            elif key == "setup" and old:
                merged[key] = [*old, *value]
            else:
                merged[key] = value
    return merged
