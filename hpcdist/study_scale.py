"""A study's `[small]`: what is laid over its file so that it runs in minutes on CPUs. Pure."""

from collections.abc import Mapping
from typing import Any

from hpcdist.config.toml import Path
from hpcdist.study import Scale
from hpcdist.study_values import explain_unknown, read_table
from hpcdist.text import with_underscores
from hpcdist.variants import StudyError

SMALL = "small"
_MERGED = ("options", "limits")
KEYS = ("repeat", "baseline", "target_accuracy", "layouts", "grid", "zip", *_MERGED)


def lay_over(values: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The study's keys at a scale: options and limits are merged by key, everything else is replaced.

    Raises:
        StudyError: `[small]` has a key that it can't have, or is wanted and not there.
    """
    small = with_underscores(read_table(values, SMALL))
    for key in small:
        if key not in KEYS:
            raise StudyError(*explain_unknown(key, KEYS), (SMALL, key))
    laid = {key: value for key, value in values.items() if key != SMALL}
    if scale == "full":
        return laid
    if SMALL not in values:
        raise StudyError("this study has no small scale", "write [small] with what is to be smaller", ())
    for key, value in small.items():
        whole = key not in _MERGED or not (isinstance(value, dict) and isinstance(laid.get(key), dict))
        laid[key] = value if whole else {**with_underscores(laid[key]), **with_underscores(value)}
    if isinstance(laid.get("name"), str):
        laid["name"] += f"-{SMALL}"  # another folder: trials of the two are never compared
    return laid


def find_place(values: Mapping[str, Any], path: Path, scale: Scale) -> Path:
    """Where the file says what stands at a path of the study at this scale."""
    small = values.get(SMALL)
    if scale == "full" or not path or not isinstance(small, dict):
        return path
    section = with_underscores(small).get(str(path[0]))
    if section is None:
        return path
    is_theirs = (
        path[0] in _MERGED and isinstance(section, dict) and path[1:2] and path[1] not in with_underscores(section)
    )
    return path if is_theirs else (SMALL, *path)
