"""The `#SBATCH` lines of a script, and the options of sbatch and srun as getopt_long reads them.

Source: sbatch(1) and srun(1) of Slurm 22.05, and the release notes of 23.02 to 25.11 for what came later.

Source: Slurm 22.05, src/sbatch/opt.c, `_opt_batch_script` and `_get_argument`, and `sbatch -vvv`, which prints each
word that it found. sbatch looks at lines alone: it ends at the first line that is neither blank nor begins with `#`,
and knows no continued lines and no variables.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from hpcdist.text import nearest

UNKNOWN = "there is no option --"
# No option is longer, nor anything that was meant to be one.
LONGEST = 40
Takes = Literal["nothing", "a value", "perhaps a value"]

_VALUED = """
account/A acctg-freq array/a batch bb bbf begin/b chdir/D cluster-constraint clusters/M comment constraint/C container
container-id core-spec/S cores-per-socket cpu-freq cpus-per-gpu cpus-per-task/c deadline delay-boot dependency/d
distribution/m error/e exclude/x export export-file extra-node-info/B gid gpu-bind gpu-freq gpus/G gpus-per-node
gpus-per-socket gpus-per-task gres gres-flags hint input/i job-name/J kill-on-invalid-dep licenses/L mail-type mail-user
mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile/F nodelist/w nodes/N ntasks/n ntasks-per-core
ntasks-per-gpu ntasks-per-node ntasks-per-socket ntasks-per-tres oom-kill-step open-mode output/o partition/p power
prefer priority profile qos/q reservation segment signal sockets-per-node switches thread-spec threads-per-core time/t
time-min tmp tres-bind tres-per-task uid wait-all-nodes wckey wrap extra resv-ports
"""
# Options of pyxis, the plugin for containers that most sites have (github.com/NVIDIA/pyxis).
_PYXIS = "container-image container-mounts container-workdir container-name container-env container-save"
_OPTIONAL = "exclusive get-user-env nice no-kill/k propagate requeue"
_FLAGS = """
contiguous external help/h hold/H ignore-pbs no-requeue overcommit/O oversubscribe/s share parsable quiet/Q reboot
spread-job stepmgr test-only usage use-min-nodes verbose/v version/V wait/W consolidate-segments
container-mount-home no-container-mount-home container-remap-root no-container-remap-root no-container-entrypoint
container-readonly container-writable
"""
_SRUN_VALUED = """
accel-bind bcast-exclude cpu-bind epilog het-group jobid msg-timeout mpi prolog relative/r slurmd-debug task-epilog
task-prolog threads/T wait/W auto-resume
"""
_SRUN_OPTIONAL = (
    "bcast compress immediate/I kill-on-bad-exit/K resv-ports send-libs x11 exclusive nice no-kill/k propagate"
)
_SRUN_FLAGS = """
disable-status/X exact label/l multi-prog no-allocate/Z overlap preserve-env/E pty quit-on-interrupt unbuffered/u
interactive
"""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a program's options are.

    Attributes:
        takes: Whether each long option takes a value.
        letters: The long option of each letter.
    """

    takes: Mapping[str, Takes]
    letters: Mapping[str, str]


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """One option as it was given, or a word that is none.

    Attributes:
        name: The long name; None for a word that is no option.
        value: Its value; None without one.
        word: Place of the word it stands in.
        last: Place of the last word that belongs to it.
        fault: What getopt_long says against it; empty when nothing.
    """

    name: str | None
    value: str | None
    word: int
    last: int
    fault: str = ""


def _table(*groups: tuple[Takes, str]) -> Options:
    takes: dict[str, Takes] = {}
    letters: dict[str, str] = {}
    for kind, words in groups:
        for word in words.split():
            name, _, letter = word.partition("/")
            takes[name] = kind
            if letter:
                letters[letter] = name
    return Options(takes=takes, letters=letters)


_BOTH: tuple[tuple[Takes, str], ...] = (("a value", _VALUED), ("a value", _PYXIS), ("nothing", _FLAGS))
SBATCH = _table(*_BOTH, ("perhaps a value", _OPTIONAL))
SRUN = _table(*_BOTH, ("a value", _SRUN_VALUED), ("perhaps a value", _SRUN_OPTIONAL), ("nothing", _SRUN_FLAGS))


def read_options(words: Sequence[str], options: Options, *, stop: bool = False) -> Iterator[Given]:
    """Yield the options among words, as getopt_long(3) takes them.

    `stop` ends before the first word that is no option, which is where srun's own options end.
    """
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--" and stop:
            return
        if not word.startswith("-") or word in ("-", "--"):
            if stop:
                return
            yield Given(name=None, value=word, word=at, last=at)
            at += 1
            continue
        found = [_long(words, at, options)] if word.startswith("--") else list(_short(words, at, options))
        yield from found
        at = found[-1].last + 1


def _long(words: Sequence[str], at: int, options: Options) -> Given:
    name, equals, value = words[at][2:].partition("=")
    full, fault = complete(name, options)
    takes = options.takes.get(full)
    if takes == "a value" and not equals:
        return _with_next(full, words, at)
    if takes == "nothing" and equals:
        fault = f"--{full} takes no value"
    return Given(name=full, value=value if equals else None, word=at, last=at, fault=fault)


def _short(words: Sequence[str], at: int, options: Options) -> Iterator[Given]:
    letters = words[at][1:]
    for place, letter in enumerate(letters):
        name = options.letters.get(letter)
        rest = letters[place + 1 :]
        if name is None:
            yield Given(name=letter, value=None, word=at, last=at, fault=f"there is no option -{letter}")
            return
        takes = options.takes[name]
        if takes == "a value" and not rest:
            yield _with_next(name, words, at)
            return
        yield Given(name=name, value=None if takes == "nothing" else rest or None, word=at, last=at)
        if takes != "nothing":
            return


def _with_next(name: str, words: Sequence[str], at: int) -> Given:
    if at + 1 < len(words):
        return Given(name=name, value=words[at + 1], word=at, last=at + 1)
    return Given(name=name, value=None, word=at, last=at, fault=f"--{name} needs a value")


def complete(name: str, options: Options) -> tuple[str, str]:
    """The option that a name means, which may be cut short, and what is wrong with it (getopt_long(3))."""
    if name in options.takes:
        return name, ""
    longer = [known for known in options.takes if known.startswith(name)]
    if len(longer) == 1:
        return longer[0], ""
    if longer:
        return name, f"--{name} is ambiguous: " + ", ".join(f"--{known}" for known in sorted(longer)[:4])
    return name, f"{UNKNOWN}{name}"


def find_nearest(name: str, options: Options) -> str | None:
    """The option that an unknown one was meant to be, if one is near."""
    return nearest(name, options.takes, cutoff=0.8) if len(name) <= LONGEST else None


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
    components: list[list[DirectiveWord]] = [[]]
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
            components[-1] += [word for word in found if word.text]
        else:
            separators.append(separator)
            components.append([])
    for number, component in enumerate(components):
        _collect(data, component, number, directives, strays)
    return Header(
        directives=tuple(directives), words=tuple(words), strays=tuple(strays), separators=tuple(separators), end=end
    )


def _lines(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield start, data[start:end]
        start = end + 1


def parse_words(line: bytes, at: int, offset: int) -> Iterator[DirectiveWord]:
    """Yield the words of a line from a place on, with escapes and quotes as `_get_argument` has them.

    `offset` is the script's byte at which the line begins.
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
        directives.append(
            Directive(
                name=given.name,
                value=given.value,
                start=first.start,
                end=last.end,
                alone=_is_alone(data, words, given.word, given.last),
                component=component,
                fault=given.fault,
            )
        )


def _is_alone(data: bytes, words: Sequence[DirectiveWord], first: int, last: int) -> bool:
    """Whether no other word stands on the lines of some."""
    before = first == 0 or b"\n" in data[words[first - 1].end : words[first].start]
    return before and (last + 1 == len(words) or b"\n" in data[words[last].end : words[last + 1].start])
