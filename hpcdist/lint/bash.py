"""The shell part of a script: words, assignments and commands, by tree-sitter's grammar of bash.

Nothing is run or expanded. tree-sitter is imported when a script is parsed, not before.
"""

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

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

    @property
    def text(self) -> str:
        """The value's text; empty for an array or nothing."""
        return self.value.text if self.value else ""


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
    quoted = kind in ("string", "raw_string", "ansi_c_string")
    start, end = node.start_byte, node.end_byte
    return Word(text="".join(parts), start=start, end=end, expansions=tuple(expansions), quoted=quoted)


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
        found = re.match(r"[A-Za-z_][A-Za-z0-9_]*|.", plain.lstrip("#!"))
        name = found[0] if found else ""
        is_plain = found is not None and name == plain
        how: Literal["variable", "modified"] = "variable" if is_plain else "modified"
        expansions.append(Expansion(kind=how, name=name, source=text, start=node.start_byte))
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


# The parser needs time that grows with the square of some unfinished constructs (a|a|a|…): nobody writes such scripts.
MOST_BYTES = 64 * 1024
MOST_OPERATORS = 2_000
_OPERATORS = re.compile(rb"[|(<{]")


def _parser() -> "Parser":
    from tree_sitter import Language, Parser
    from tree_sitter_bash import language

    return Parser(Language(language()))


def is_readable(data: bytes) -> bool:
    """Whether the parser gets through a script in reasonable time, whatever it holds."""
    return len(data) <= MOST_BYTES and sum(1 for _ in _OPERATORS.finditer(data)) <= MOST_OPERATORS


def parse_shell(data: bytes) -> Shell:
    """The commands of a script; nothing of one that is too long or too tangled."""
    if not is_readable(data):
        return Shell(is_complete=False)
    root = _parser().parse(data).root_node
    commands: list[Command] = []
    assignments: list[Assignment] = []
    comments: list[tuple[int, int, str]] = []
    stack: list[tuple[Node, Place]] = [(root, Place())]
    while stack:
        node, place = stack.pop()
        kind = node.type
        if kind == "comment":
            comments.append((node.start_byte, node.end_byte, text_of(node)))
        elif kind == "command":
            commands.append(_command(node, place))
            assignments += commands[-1].assignments
        elif kind in ("declaration_command", "unset_command"):
            assignments += _declared(node, place)
            commands.append(_make(node, place, [read_word(child) for child in node.children], []))
        elif kind == "variable_assignment" and (node.parent is None or node.parent.type not in _HOLDERS):
            assignments.append(_assignment(node, place, exported=False))
        if node.child_count:
            # A leaf holds no command; only comments are leaves that count.
            below = [(child, at) for child, at in _below(node, place) if child.child_count or child.type == "comment"]
            stack.extend(reversed(below))
    statements = [(n.start_byte, n.end_byte) for n in root.children if n.is_named and n.type != "comment"]
    return Shell(
        commands=tuple(commands), assignments=tuple(assignments), comments=tuple(comments), statements=tuple(statements)
    )


_HOLDERS = ("command", "declaration_command")
_BRANCHES = ("if_statement", "case_item", "elif_clause", "else_clause")
_LOOPS = ("for_statement", "while_statement", "c_style_for_statement")
_PLAIN = ("raw_string", "word", "number", "variable_name", "string_content", "regex", "test_operator")


def _below(node: "Node", place: Place) -> "Iterator[tuple[Node, Place]]":
    """The children, each with its place."""
    kind = node.type
    if kind in _PLAIN:
        return
    children = node.children
    change: dict[str, object] = {}
    if kind in ("function_definition", "subshell", *_BRANCHES, *_LOOPS):
        change["depth"] = place.depth + 1
        change["function"] = place.function or kind == "function_definition"
        change["branch"] = place.branch or kind in _BRANCHES
    elif kind in ("command_substitution", "process_substitution"):
        change = {"depth": place.depth + 1, "substitution": True, "piped_into": (), "writes": (), "heredoc": None}
    elif kind == "negated_command":
        change["condition"] = True
    elif kind == "redirected_statement":
        change.update(_redirects(children, place))
    inner = msgspec.structs.replace(place, **change) if change else place
    if kind == "pipeline":
        yield from _pipeline(children, inner)
    elif kind == "list":
        yield from _list(children, inner)
    elif kind in ("if_statement", "while_statement", "elif_clause"):
        yield from _conditional(children, inner)
    elif kind in ("program", "compound_statement", "do_group", "subshell", "case_item", "else_clause"):
        yield from _sequence(node, children, inner)
    else:
        for child in children:
            yield child, inner


def _sequence(node: "Node", children: "list[Node]", place: Place) -> "Iterator[tuple[Node, Place]]":
    top = node.type == "program"
    for child, following in zip_longest(children, children[1:]):
        background = following is not None and following.type == "&"
        if child.child_count and (background or top):
            statement = child.start_byte if top else place.statement
            yield child, msgspec.structs.replace(place, background=place.background or background, statement=statement)
        else:
            yield child, place


def _conditional(children: "list[Node]", place: Place) -> "Iterator[tuple[Node, Place]]":
    before = True
    for child in children:
        before = before and child.type not in ("then", "do_group")
        yield child, msgspec.structs.replace(place, condition=True) if before else place


def _list(children: "list[Node]", place: Place) -> "Iterator[tuple[Node, Place]]":
    """`a && b`, `a || b`: a's status is looked at, b runs only sometimes."""
    operator = next((child.type for child in children if child.type in ("&&", "||")), "")
    left = msgspec.structs.replace(place, condition=True, rescued=place.rescued or operator == "||")
    right = msgspec.structs.replace(place, branch=True)
    seen = False
    for child in children:
        seen = seen or child.type in ("&&", "||")
        yield child, right if seen else left


def _pipeline(children: "list[Node]", place: Place) -> "Iterator[tuple[Node, Place]]":
    names = [_first_name(child) for child in children if child.is_named]
    at = 0
    for child in children:
        if child.is_named:
            at += 1
            yield child, msgspec.structs.replace(place, piped_into=(*names[at:], *place.piped_into))


def _first_name(node: "Node") -> str:
    while node.type == "redirected_statement" and node.children:
        node = node.children[0]
    name = node.child_by_field_name("name") if node.type == "command" else None
    return text_of(name) if name is not None else node.type


def _redirects(children: "list[Node]", place: Place) -> dict[str, object]:
    writes: list[Word] = list(place.writes)
    change: dict[str, object] = {}
    for child in children[1:]:
        if child.type == "heredoc_redirect":
            start = next((part for part in child.children if part.type == "heredoc_start"), None)
            body = next((part for part in child.children if part.type == "heredoc_body"), None)
            raw = start is not None and any(mark in text_of(start) for mark in "'\"\\")
            change |= {"heredoc": text_of(body) if body is not None else "", "raw_heredoc": raw}
        for redirect in [child, *(child.children if child.type == "heredoc_redirect" else [])]:
            target = redirect.child_by_field_name("destination") if redirect.type == "file_redirect" else None
            if target is not None and any(part.type in (">", ">>", "&>", "&>>", ">|") for part in redirect.children):
                writes.append(read_word(target))
    return change | {"writes": tuple(writes)}


def _command(node: "Node", place: Place) -> Command:
    words: list[Word] = []
    assignments: list[Assignment] = []
    for child in node.children:
        if child.type == "variable_assignment":
            assignments.append(_assignment(child, place, exported=True, prefix=True))
        elif child.type == "command_name":
            words.append(read_word(child.children[0] if child.children else child))
        elif child.is_named and child.type not in ("file_redirect", "herestring_redirect", "heredoc_redirect"):
            words.append(read_word(child))
    return _make(node, place, words, assignments)


def _make(node: "Node", place: Place, words: list[Word], assignments: list[Assignment]) -> Command:
    where = msgspec.structs.asdict(place)
    if place.statement < 0:
        where["statement"] = node.start_byte
    start, end = node.start_byte, node.end_byte
    return Command(words=tuple(words), assignments=tuple(assignments), start=start, end=end, **where)


def _declared(node: "Node", place: Place) -> Iterator[Assignment]:
    exported = bool(node.children) and text_of(node.children[0]) in ("export", "declare", "typeset")
    for child in node.children:
        if child.type == "variable_assignment":
            yield _assignment(child, place, exported=exported)


def _assignment(node: "Node", place: Place, *, exported: bool, prefix: bool = False) -> Assignment:
    name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
    array = value if value is not None and value.type == "array" else None
    return Assignment(
        name=text_of(name) if name is not None else "",
        value=read_word(value) if value is not None and array is None else None,
        words=None if array is None else tuple(read_word(one) for one in array.children if one.is_named),
        adds=any(child.type == "+=" for child in node.children),
        start=node.start_byte,
        end=node.end_byte,
        exported=exported,
        depth=place.depth,
        prefix=prefix,
    )
