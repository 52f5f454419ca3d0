"""The shell part of a script: its commands, assignments and comments, by tree-sitter's grammar of bash. Pure.

Nothing is run or expanded. tree-sitter is imported when a script is parsed, not before.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from hpcdist.shell_words import Assignment, Command, Place, Shell, Word, read_word, text_of

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

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
        commands=tuple(commands),
        assignments=tuple(assignments),
        comments=tuple(comments),
        statements=tuple(statements),
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
    for at, child in enumerate(children):
        if not child.child_count:
            yield child, place
            continue
        background = at + 1 < len(children) and children[at + 1].type == "&"
        if background or top:
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
    is_array = value is not None and value.type == "array"
    return Assignment(
        name=text_of(name) if name is not None else "",
        value=read_word(value) if value is not None and not is_array else None,
        words=tuple(read_word(one) for one in value.children if one.is_named)
        if value is not None and is_array
        else None,
        adds=any(child.type == "+=" for child in node.children),
        start=node.start_byte,
        end=node.end_byte,
        exported=exported,
        depth=place.depth,
        prefix=prefix,
    )
