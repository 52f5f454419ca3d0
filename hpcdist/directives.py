"""The `#SBATCH` lines of a script, read as sbatch reads them. Pure.

Source: Slurm 22.05, src/sbatch/opt.c, `_opt_batch_script` and `_get_argument`, and `sbatch -vvv`, which prints each
word that it found. sbatch looks at lines alone: it ends at the first line that is neither blank nor begins with `#`,
and knows no continued lines and no variables.
"""

from collections.abc import Iterator, Sequence

import msgspec

from hpcdist.sbatch_options import SBATCH, read_options

MAGIC = b"#SBATCH"
# isspace(3) in the C locale.
_BLANK = b" \t\v\f\r"
_BLANKS = tuple(_BLANK[at : at + 1] for at in range(len(_BLANK)))
# A backslash before one of these is meant as one.
_ESCAPABLE = (b"", b"\\", b'"', b"'", b"#")


class DirectiveWord(msgspec.Struct, frozen=True, kw_only=True):
    """One word of an `#SBATCH` line.

    Attributes:
        text: What sbatch makes of it: without quotes and escapes.
        start: Byte of the script at which it begins.
        end: Byte after it.
        fault: What sbatch says against it; empty when nothing.
        loses: What of the line sbatch drops although it may be meant: a backslash, or what follows a `#` in a word.
        quoted: Whether part of it stands in quotes.
    """

    text: str
    start: int
    end: int
    fault: str = ""
    loses: str = ""
    quoted: bool = False


class Directive(msgspec.Struct, frozen=True, kw_only=True):
    """One option of an `#SBATCH` line.

    Attributes:
        name: The option's long name (`cpus-per-task` for `-c`); what was written where there is no such option.
        value: Its value; None without one.
        start: Byte at which its first word begins.
        end: Byte after its last word.
        alone: Whether nothing else stands on its line.
        component: Part of a heterogeneous job, from 0.
        fault: What is wrong with the option as such.
    """

    name: str
    value: str | None
    start: int
    end: int
    alone: bool
    component: int = 0
    fault: str = ""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """All that sbatch takes from a script.

    Attributes:
        directives: The options, in order.
        words: The words of the lines they come from.
        strays: Words that are no option and belong to none: sbatch refuses them.
        separators: Where `hetjob` or `packjob` parts the components.
        end: Byte at which the first line begins that sbatch no longer looks at.
    """

    directives: tuple[Directive, ...]
    words: tuple[DirectiveWord, ...]
    strays: tuple[DirectiveWord, ...]
    separators: tuple[DirectiveWord, ...]
    end: int


def parse_header(data: bytes) -> Header:
    """What sbatch takes from a script's bytes."""
    directives: list[Directive] = []
    strays: list[DirectiveWord] = []
    words: list[DirectiveWord] = []
    separators: list[DirectiveWord] = []
    component: list[DirectiveWord] = []
    end = len(data)
    for start, line in _lines(data):
        if not line.startswith(MAGIC):
            if line.strip(_BLANK) and not line.lstrip(_BLANK).startswith(b"#"):
                end = start
                break
            continue
        found = list(parse_words(line, len(MAGIC), start))
        words += found
        separator = next((word for word in found if word.text in ("hetjob", "packjob")), None)
        if separator is None:
            component += [word for word in found if word.text]
            continue
        _collect(data, component, len(separators), directives, strays)
        separators.append(separator)
        component = []
    _collect(data, component, len(separators), directives, strays)
    return Header(
        directives=tuple(directives),
        words=tuple(words),
        strays=tuple(strays),
        separators=tuple(separators),
        end=end,
    )


def _lines(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield start, data[start:end]
        start = end + 1


def parse_words(line: bytes, at: int, offset: int) -> Iterator[DirectiveWord]:
    """The words of a line from a place on, with escapes and quotes as `_get_argument` has them.

    Args:
        line: The line.
        at: Where in it to begin.
        offset: The script's byte at which the line begins.
    """
    while True:
        while line[at : at + 1] in _BLANKS:
            at += 1
        if at >= len(line) or line[at : at + 1] == b"#":
            return
        if line[at : at + 1] == b":":
            yield DirectiveWord(text=":", start=offset + at, end=offset + len(line), fault="an unexpected ':'")
            return
        word, at = _word(line, at, offset)
        yield word
        if not word.text:
            # sbatch takes an empty word ("" or a lone backslash) for the line's end.
            return


def _word(line: bytes, at: int, offset: int) -> tuple[DirectiveWord, int]:
    start, quote, quoted, loses = at, b"", False, ""
    text = bytearray()
    while at < len(line):
        char, following = line[at : at + 1], line[at + 1 : at + 2]
        at += 1
        if char == b"\\":
            loses = loses if following in _ESCAPABLE else "a backslash"
            # An escaped blank ends the word all the same, unless it is quoted.
            if quote or following not in _BLANKS:
                text += following
                at += 1
        elif quote:
            quote = b"" if char == quote else quote
            text += char if quote else b""
        elif char in (b'"', b"'"):
            quote, quoted = char, True
        elif char == b"#" or char in _BLANKS:
            loses = "what follows a '#'" if char == b"#" else loses
            at -= 1
            break
        else:
            text += char
    at = min(at, len(line))
    if not text and line[at:].strip():
        loses = "the rest of the line after an empty word"
    word = DirectiveWord(
        text=text.decode(errors="replace"),
        start=offset + start,
        end=offset + at,
        fault=f"a quote ({quote.decode()}) that is not closed" if quote else "",
        loses=loses,
        quoted=quoted,
    )
    return word, at


def _collect(
    data: bytes,
    words: Sequence[DirectiveWord],
    component: int,
    directives: list[Directive],
    strays: list[DirectiveWord],
) -> None:
    """Adds one component's options and stray words."""
    for given in read_options([word.text for word in words], SBATCH):
        first, last = words[given.word], words[given.last]
        if given.name is None:
            strays.append(first)
            continue
        directive = Directive(
            name=given.name,
            value=given.value,
            start=first.start,
            end=last.end,
            alone=_is_alone(data, words, given.word, given.last),
            component=component,
            fault=given.fault,
        )
        directives.append(directive)


def _is_alone(data: bytes, words: Sequence[DirectiveWord], first: int, last: int) -> bool:
    """Whether no other word stands on the lines of some."""
    before = first == 0 or b"\n" in data[words[first - 1].end : words[first].start]
    return before and (last + 1 == len(words) or b"\n" in data[words[last].end : words[last + 1].start])
