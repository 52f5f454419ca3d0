"""Text from elsewhere made safe to keep and to print; the two spellings of a key; the nearest known word."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Compiled when they are first used: most programs meet no such text.
# Whole escape sequences first, or their printable tail ("[31m") would stay: CSI, OSC, then any other escape.
_ESCAPES = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b.?"
# C0 and C1 controls, and the marks that are invisible or turn the reading direction.
_CONTROLS = "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
# What a byte that is not UTF-8 becomes under "surrogateescape"; it cannot be encoded again, so it cannot be written.
_SURROGATES = "[\ud800-\udfff]"
# White space that ends a line or has no width of its own.
_BREAKS = "[\t-\r\x85\u2028\u2029]"


def printable(text: str) -> str:
    """Return the text on one line: no escape sequence, no control character, runs of white space as one space.

    Linear in the text, whatever it holds.
    """
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = re.sub(_SURROGATES, "\ufffd", _strip(text))
    return " ".join(text.split())


def clean(text: str) -> str:
    """Return the text with a question mark for everything that could move the cursor or start a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def printable_line(text: str) -> str:
    """Return the text on one line as `printable` has it, with its spaces and indentation kept.

    Linear in the text, whatever it holds.
    """
    if text.isascii() and text.isprintable():
        return text
    return re.sub(_SURROGATES, "\ufffd", re.sub(_BREAKS, " ", _strip(text.expandtabs(4))))


def _strip(text: str) -> str:
    return re.sub(_CONTROLS, "", re.sub(_ESCAPES, "", text))


def underscored(name: str) -> str:
    """Return an option's name as Python and JSON have it: `batch_size`."""
    return name.replace("-", "_")


def dashed(name: str) -> str:
    """Return an option's name as command lines have it: `batch-size`."""
    return name.replace("_", "-")


def with_underscores(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with one way to write its keys: TOML files may have either."""
    return {underscored(key): value for key, value in table.items()}


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word that is most like another one; None where none is like it (difflib.get_close_matches)."""
    import difflib  # only for errors

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def suggest(word: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """Return the hint about a word that nothing has: the nearest one, or something else where none is near."""
    near = nearest(word, known, cutoff=cutoff)
    return f"did you mean {near!r}?" if near else otherwise
