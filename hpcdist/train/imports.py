"""Imports Lightning without what it imports for metrics and pictures that the built-in training has none of."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

# A third of the processor time of importing torch and Lightning, and 900 of 3,700 modules, for torchmetrics alone.
_EXTRAS = frozenset({"matplotlib", "scipy", "torchvision"})


class _Hidden:
    """Finds none of the extras, whether they are installed or not."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in _EXTRAS:
            raise ModuleNotFoundError(f"{name} is hidden from Lightning", name=name)
        return None


def import_lightning() -> None:
    """Imports it as if the extras were not installed, which it and torchmetrics are made for; later they are again.

    In this process torchmetrics stays without them. Not for a module of one's own, whose metrics may want them.
    """
    from lightning_utilities.core import imports as found

    imports: Any = found
    # What Lightning's packages ask whether something is installed; without it nothing can be hidden.
    lookup = getattr(imports, "_version", None)
    if lookup is None or _EXTRAS & sys.modules.keys():
        return

    def find_version(name: str) -> str:
        if name in _EXTRAS:
            raise PackageNotFoundError(name)
        return str(lookup(name))

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    imports._version = find_version
    try:
        import pytorch_lightning  # noqa: F401
    finally:
        imports._version = lookup
        sys.meta_path.remove(hidden)
