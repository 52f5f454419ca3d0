"""Compiled templates, kept between commands: to compile them is a fifth of the time that `hpcdist render` takes."""

import os
import pickle
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

from hpcdist.disk import write_atomically


class TemplateCache(jinja2.BytecodeCache):
    """A folder of compiled templates, each under a hash of its name, valid for its very text.

    It is never in the way: what can't be read is compiled anew, what can't be written is not kept.

    Args:
        folder: Where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def load_bytecode(self, bucket: Bucket) -> None:
        """Reads a template, where it is there and not older than its text."""
        if self._folder is None:
            return
        try:
            with (self._folder / bucket.key).open("rb") as file:
                bucket.load_bytecode(file)
        except (OSError, ValueError, EOFError, TypeError, pickle.UnpicklingError):
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keeps a template."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._folder / bucket.key, bucket.bytecode_to_string())
        except OSError:
            return


def find_template_cache() -> TemplateCache:
    """The user's own, by the XDG base directory specification; one that keeps nothing where there is no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        base = base.expanduser()
    except RuntimeError:  # nobody's home
        return TemplateCache(None)
    return TemplateCache(base / "hpcdist" / f"templates-{jinja2.__version__}" if base.is_absolute() else None)
