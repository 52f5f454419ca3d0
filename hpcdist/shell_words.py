"""The words of a shell command: their text without quotes, and what the shell replaces in them. Pure."""

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from tree_sitter import Node

_ESCAPED = re.compile(r'\\([\\"$`]|\n)')
_UNQUOTED_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Expansion(msgspec.Struct, frozen=True, kw_only=True):
    """Something in a word that the shell replaces.

    Attributes:
        kind: `$A` and `${A}`; `${A%%x}` and such; `$(…)`; `$((…))`; `<(…)`.
        name: The variable; empty for a command or a calculation.
        source: Its text.
        start: Byte at which it begins.
    """

    kind: Literal["variable", "modified", "command", "arithmetic", "process"]
    name: str
    source: str
    start: int


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """One word of a command.

    Attributes:
        text: Without quotes; expansions stand in it as they are written.
        start: Byte at which it begins.
        end: Byte after it.
        expansions: What the shell replaces in it.
        quoted: Whether all of it stands in quotes, so that it stays one word.
    """

    text: str
    start: int
    end: int
    expansions: tuple[Expansion, ...] = ()
    quoted: bool = False

    @property
    def is_static(self) -> bool:
        """Whether the text is all there is to know."""
        return not self.expansions


def text_of(node: "Node") -> str:
    """A node's own text."""
    return (node.text or b"").decode(errors="replace")


def read_word(node: "Node") -> Word:
    """A word's text and what the shell replaces in it."""
    kind = node.type
    if kind in ("word", "number", "variable_name"):
        text = text_of(node)
        text = _UNQUOTED_ESCAPE.sub(r"\1", text) if "\\" in text else text
        return Word(text=text, start=node.start_byte, end=node.end_byte)
    parts: list[str] = []
    expansions: list[Expansion] = []
    _read_parts(node, parts, expansions)
    return Word(
        text="".join(parts),
        start=node.start_byte,
        end=node.end_byte,
        expansions=tuple(expansions),
        quoted=kind in ("string", "raw_string", "ansi_c_string"),
    )


_SUBSTITUTIONS = {
    "command_substitution": "command",
    "arithmetic_expansion": "arithmetic",
    "process_substitution": "process",
}


def _read_parts(node: "Node", parts: list[str], expansions: list[Expansion]) -> None:
    kind, text = node.type, text_of(node)
    if kind == "raw_string":
        parts.append(text[1:-1])
    elif kind in ("simple_expansion", "expansion"):
        parts.append(text)
        plain = text[2:-1] if text.startswith("${") else text[1:]
        name = re.match(r"[A-Za-z_][A-Za-z0-9_]*|.", plain.lstrip("#!"))
        is_plain = name is not None and name[0] == plain
        expansions.append(
            Expansion(
                kind="variable" if is_plain else "modified",
                name=name[0] if name else "",
                source=text,
                start=node.start_byte,
            )
        )
    elif kind in _SUBSTITUTIONS:
        parts.append(text)
        expansions.append(
            Expansion(kind=_SUBSTITUTIONS[kind], name="", source=text, start=node.start_byte)  # type: ignore[arg-type]
        )
    elif kind == "string":
        _read_string(node, text, parts, expansions)
    elif kind == "concatenation":
        for child in node.children:
            _read_parts(child, parts, expansions)
    else:
        parts.append(_UNQUOTED_ESCAPE.sub(r"\1", text) if "\\" in text else text)


def _read_string(node: "Node", text: str, parts: list[str], expansions: list[Expansion]) -> None:
    """A string in double quotes; blanks between its parts belong to no node of the grammar."""
    whole, begin = node.text or b"", node.start_byte
    at = begin + 1
    end = node.end_byte - 1 if text.endswith('"') and len(text) > 1 else node.end_byte
    for child in node.children:
        if child.type not in ("simple_expansion", "expansion", *_SUBSTITUTIONS):
            continue
        parts.append(_unescape(whole[at - begin : child.start_byte - begin]))
        _read_parts(child, parts, expansions)
        at = child.end_byte
    parts.append(_unescape(whole[at - begin : end - begin]))


def _unescape(raw: bytes) -> str:
    text = raw.decode(errors="replace")
    # A $ that stays one is told from an expansion by its backslash, which is kept: the text may be a program.
    return _ESCAPED.sub(lambda found: found[1] if found[1] != "\n" else "", text) if "\\" in text else text
