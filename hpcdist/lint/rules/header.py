"""Rules about the `#SBATCH` lines as such: what sbatch refuses, drops or never sees."""

import re
from collections.abc import Iterator

from hpcdist.errors import UsageError
from hpcdist.lint.directives import SBATCH, UNKNOWN, Directive, find_nearest
from hpcdist.lint.rule import Edit, LintContext, Match, insert, replace, rule
from hpcdist.lint.script import MEMORY_OPTIONS, Script
from hpcdist.units import parse_slurm_memory, parse_slurm_time

_MISSPELT = re.compile(r"(\s+#SBATCH|#\s+SBATCH|#(?i:sbatch))(?=[\s-])\s*-")
_NODES = re.compile(r"[0-9]+[kKmM]?(-[0-9]+[kKmM]?)?(:[0-9]+)?|[0-9,:-]+")
_NUMBERS = ("ntasks", "ntasks-per-node", "cpus-per-task", "ntasks-per-socket", "ntasks-per-core", "cpus-per-gpu")
_TIMES = ("time", "time-min")
_ARRAY = re.compile(r"(0x)?[0-9]+(-[0-9]+(:[0-9]+)?)?(,[0-9]+(-[0-9]+(:[0-9]+)?)?)*(%[0-9]+)?")
# Looking for the option that was meant takes long.
MOST_FAULTS = 50
# Each adds to what was given before; the others replace it (sbatch -v of 22.05).
_ADDING = ("mail-type", "verbose", "quiet")


@rule(
    "shebang",
    "error",
    why="sbatch refuses a script whose first line does not name an interpreter.",
    fix="Make #!/bin/bash the first line.",
    source="Slurm 22.05, sbatch: 'This does not look like a batch script'",
)
def shebang(script: Script, _: LintContext) -> Iterator[Match]:
    """The first line."""
    if not script.data.strip():
        yield Match(0, "the script is empty")
    elif not script.data.startswith(b"#!"):
        blank = len(script.data) - len(script.data.lstrip())
        if script.data.startswith(b"#!", blank):
            yield Match(0, "something stands before the #! line", replace(0, blank, ""))
        else:
            yield Match(0, "there is no #! line", insert(0, "#!/bin/bash\n"))


@rule(
    "crlf",
    "error",
    why="sbatch refuses a script with Windows line ends, and where it does not, every value ends in a carriage return.",
    fix="Convert it: dos2unix FILE.",
    source="Slurm 22.05, sbatch: 'Batch script contains DOS line breaks'",
)
def crlf(script: Script, _: LintContext) -> Iterator[Match]:
    """Windows line ends."""
    at = script.original.find(b"\r\n")
    if at >= 0:
        # Mended by every fix, since all places refer to the script without them.
        yield Match(min(at, len(script.data)), "a line ends as on Windows (CR LF)", insert(0, ""))


@rule(
    "nul-byte",
    "error",
    why="sbatch refuses a script that holds a NUL, which an editor or a wrong encoding (UTF-16) left there.",
    fix="Save it as plain UTF-8 text.",
    source="Slurm, sbatch: 'The SLURM controller does not allow scripts that contain a NULL character'",
)
def nul_byte(script: Script, _: LintContext) -> Iterator[Match]:
    """A NUL."""
    at = script.data.find(b"\0")
    if at >= 0:
        yield Match(at, "the script holds a NUL byte")


@rule(
    "unread",
    "info",
    why="A script this long or this tangled is not looked at beyond its #SBATCH lines.",
    fix="Move the long part into a file of its own.",
    source="hpcdist: the parser's time grows with the square of some unfinished constructs",
)
def unread(script: Script, _: LintContext) -> Iterator[Match]:
    """More than the parser can take."""
    if not script.shell.is_complete:
        yield Match(0, "only the #SBATCH lines were looked at")


@rule(
    "ignored-directive",
    "error",
    why="sbatch ends reading options at the first command: this line is a comment to it.",
    fix="Move it above the first command.",
    source="sbatch(1): 'sbatch will stop processing further #SBATCH directives once the first non-comment "
    "non-whitespace line has been reached'",
)
def ignored_directive(script: Script, _: LintContext) -> Iterator[Match]:
    """A directive after the first command."""
    first = script.line_of(script.header.end)
    for start, _end, text in script.shell.comments:
        if start > script.header.end and start == script.line_start(start) and re.match(r"#SBATCH\s*-", text):
            yield Match(start, f"Slurm ignores this: the first command is in line {first}")


@rule(
    "not-a-directive",
    "warning",
    why="sbatch takes only lines that begin with exactly #SBATCH; this one is a comment to it.",
    fix="Write #SBATCH at the line's beginning, or ## to switch it off.",
    source="Slurm 22.05, src/sbatch/opt.c, _opt_batch_script",
)
def not_a_directive(script: Script, _: LintContext) -> Iterator[Match]:
    """`# SBATCH`, `#sbatch`, a space before."""
    at = 0
    for line in script.data[: script.header.end].split(b"\n"):
        found = None if line.startswith(b"#SBATCH") else _MISSPELT.match(line.decode(errors="replace"))
        if found:
            spelt = found[1].strip()
            message = f"{spelt} is no directive" if spelt != "#SBATCH" else "a space before #SBATCH makes it a comment"
            yield Match(at + len(line) - len(line.lstrip()), message)
        at += len(line) + 1


@rule(
    "directive-quoting",
    "error",
    why="sbatch is no shell: it ends at an open quote, drops backslashes, and takes # inside a word for a comment.",
    fix="Put the value into double quotes, with a backslash before each backslash and quote.",
    source="Slurm 22.05, src/sbatch/opt.c, _get_argument; sbatch -vvv",
)
def directive_quoting(script: Script, _: LintContext) -> Iterator[Match]:
    """Quotes, backslashes and hashes."""
    for word in script.header.words:
        if word.fault:
            yield Match(word.start, f"sbatch refuses {word.fault}")
        elif word.loses:
            yield Match(word.start, f"sbatch drops {word.loses} here and reads {word.text!r}")


@rule(
    "stray-word",
    "error",
    why="A word that belongs to no option makes sbatch refuse the script: 'Invalid directive found in batch script'.",
    fix="Write --option=value without spaces around the =, and plain hyphens.",
    source="Slurm 22.05, sbatch [run]",
)
def stray_word(script: Script, _: LintContext) -> Iterator[Match]:
    """A word that is no option."""
    for word in script.header.strays:
        if word.fault:
            continue
        dash = word.text[:1] in ("\u2013", "\u2014", "\u2212", "\u2010")
        message = "the dash is no hyphen (copied from a PDF or a web page?)" if dash else "it belongs to no option"
        edits: tuple[Edit, ...] = ()
        if dash:
            length = len(word.text) - len(word.text.lstrip("\u2013\u2014\u2212\u2010"))
            first = len(word.text[:length].encode())
            hyphens = "-" if len(word.text.lstrip("\u2013\u2014\u2212\u2010-")) == 1 else "--"
            edits = replace(word.start, word.start + first, hyphens)
        yield Match(word.start, f"{word.text!r}: {message}", edits)


@rule(
    "unknown-option",
    "error",
    why="sbatch refuses an option that it does not know.",
    fix="Correct the name; sbatch --help lists them.",
    source="sbatch(1); getopt_long(3)",
)
def unknown_option(script: Script, _: LintContext) -> Iterator[Match]:
    """An option that is none, or is cut short too much; others may come from a plugin of the site."""
    faulty = [directive for directive in script.header.directives if directive.fault]
    for directive in faulty[:MOST_FAULTS]:
        if not directive.fault.startswith(UNKNOWN):
            yield Match(directive.start, directive.fault)
        elif near := find_nearest(directive.name, SBATCH):
            yield Match(directive.start, f"{directive.fault}, but --{near}")


@rule(
    "bad-value",
    "error",
    why="sbatch refuses a value that it can't read.",
    fix="Write it in Slurm's own form.",
    source="sbatch(1), --time, --mem, --nodes, --ntasks, --array",
)
def bad_value(script: Script, _: LintContext) -> Iterator[Match]:
    """A time, a size or a number that is none."""
    for directive in script.header.directives:
        said = None if directive.fault or "$" in (directive.value or "") else _complaint(directive)
        if said:
            yield Match(directive.start, f"--{directive.name}={directive.value}: {said}")


def _complaint(directive: Directive) -> str | None:
    name, value = directive.name, directive.value or ""
    try:
        if name in _TIMES:
            parse_slurm_time(value)
        elif name in MEMORY_OPTIONS:
            parse_slurm_memory(value)
    except UsageError as error:
        return error.hint
    if name in _NUMBERS and not re.fullmatch("0*[1-9][0-9]*", value):
        return "write a whole number"
    if name == "nodes" and not _NODES.fullmatch(value):
        return "write a number, or the least and the most: 2-4"
    if name == "array" and not _ARRAY.fullmatch(value):
        return "write indexes: 0-9, 0-9%3, 1,5,7"
    return None


@rule(
    "directive-variable",
    "error",
    why="sbatch is no shell: it takes $NAME and ~ in a directive as they are written.",
    fix="Write the value out, use sbatch's own patterns (%j, %x, %u), or give the option on sbatch's command line.",
    source="Slurm 22.05, src/sbatch/opt.c, _get_argument; sbatch(1), filename pattern",
)
def directive_variable(script: Script, _: LintContext) -> Iterator[Match]:
    """A variable or a tilde in a value."""
    for directive in script.header.directives:
        value = directive.value or ""
        # A name may hold anything on purpose; a path or a number may not.
        sign = r"\$\{?[A-Za-z_]\w*" if directive.name == "job-name" else r"\$(\{\w|\(|\w)|`"
        found = re.search(sign, value) if directive.name not in ("comment", "wrap") else None
        if found:
            yield Match(directive.start, f"--{directive.name}={value}: sbatch does not replace variables")
        elif value.startswith("~") and directive.name in ("output", "error", "input", "chdir"):
            yield Match(directive.start, f"--{directive.name}={value}: sbatch takes ~ for a name")


@rule(
    "repeated-directive",
    "warning",
    why="Of an option that is given twice, only the last one counts.",
    fix="Take the earlier one out.",
    source="Slurm 22.05, sbatch -v [run]",
)
def repeated_directive(script: Script, _: LintContext) -> Iterator[Match]:
    """The same option twice."""
    seen: dict[tuple[int, str], Directive] = {}
    for directive in reversed(script.header.directives):
        key = (directive.component, directive.name)
        later = seen.setdefault(key, directive)
        if later is directive or directive.name in _ADDING or directive.fault:
            continue
        line = script.line_of(later.start)
        start = script.line_start(directive.start) if directive.alone else directive.start
        end = script.line_end(directive.start) if directive.alone else directive.end
        message = f"--{directive.name} is given again in line {line}, which counts"
        yield Match(directive.start, message, replace(start, end, ""))
