"""What a shell script is made of: words without their quotes, assignments, commands. Pure."""

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


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """`NAME=value`, `NAME=(words)` or `NAME+=(words)`.

    Attributes:
        name: The variable.
        value: What it gets; None for an array or nothing.
        words: What an array gets, or gets further; None where it is none.
        adds: Whether that comes behind what it has.
        start: Byte at which it begins.
        end: Byte after it.
        exported: Whether tasks see it: `export`, or in front of a command.
        depth: Subshells, substitutions, loops, branches and functions around it.
        prefix: Whether it stands in front of a command and counts for that alone.
    """

    name: str
    value: Word | None
    words: tuple[Word, ...] | None = None
    adds: bool = False
    start: int
    end: int
    exported: bool
    depth: int
    prefix: bool = False


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a command stands.

    Attributes:
        depth: Functions, branches, loops and subshells around it.
        background: Whether it ends in `&`, or what it stands in does.
        condition: Whether its status is looked at: after if, while or `!`, or on the left of `||` and `&&`.
        rescued: Whether `||` follows it.
        branch: Whether it runs only sometimes: in an if, a case, or on the right of `||` and `&&`.
        substitution: Whether it stands in `$(…)` or backquotes.
        function: Whether it stands in a function.
        statement: Byte at which the outermost statement around it begins; -1 where there is none.
        piped_into: Names of the commands that its output is piped into.
        writes: Files that it is redirected to.
        heredoc: Text of its here-document; None without one.
        raw_heredoc: Whether the shell replaces nothing in it.
    """

    depth: int = 0
    background: bool = False
    condition: bool = False
    rescued: bool = False
    branch: bool = False
    substitution: bool = False
    function: bool = False
    statement: int = -1
    piped_into: tuple[str, ...] = ()
    writes: tuple[Word, ...] = ()
    heredoc: str | None = None
    raw_heredoc: bool = False


class Command(Place, frozen=True, kw_only=True):
    """A simple command and where it stands.

    Attributes:
        words: Its words, the first one its name.
        assignments: Those in front of it.
        start: Byte at which it begins.
        end: Byte after it.
    """

    words: tuple[Word, ...]
    assignments: tuple[Assignment, ...] = ()
    start: int
    end: int


class Shell(msgspec.Struct, frozen=True, kw_only=True):
    """The shell part of a script.

    Attributes:
        commands: In the order of their beginnings.
        assignments: All of them.
        comments: Start, end and text of each comment, `#SBATCH` lines included.
        statements: Start and end of each statement at the top, assignments included.
        is_complete: Whether the script was small and plain enough to be read.
    """

    commands: tuple[Command, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    comments: tuple[tuple[int, int, str], ...] = ()
    statements: tuple[tuple[int, int], ...] = ()
    is_complete: bool = True


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
