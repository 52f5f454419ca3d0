"""What a lint rule is and what it finds."""

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from hpcdist.lint.script import Script
from hpcdist.slurm.cluster import Partition

Severity = Literal["error", "warning", "info"]


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """A safe change of a script.

    Attributes:
        start: Byte at which the old text begins.
        end: Byte after it.
        text: What takes its place.
    """

    start: int
    end: int
    text: str


class Match(msgspec.Struct, frozen=True):
    """A place where a rule fires.

    Attributes:
        at: Byte of the script.
        message: What was seen there.
        edits: What mends it safely; empty where a person has to.
        fix: What to do, where the rule's own words don't fit.
    """

    at: int
    message: str
    edits: tuple[Edit, ...] = ()
    fix: str = ""


class LintContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beside the script itself.

    Attributes:
        partitions: The site's; None where nobody was asked.
        folder_exists: Tells whether a folder is there; None where that can't be known.
        makes_log_folders: Whether Slurm itself makes a log's folder, as it does from 23.02 on.
    """

    partitions: tuple[Partition, ...] | None = None
    folder_exists: Callable[[str], bool] | None = None
    makes_log_folders: bool = False


Check = Callable[[Script, LintContext], Iterable[Match]]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A mistake that is looked for.

    Attributes:
        code: Its name.
        severity: An error breaks the job, a warning some day or on some site; information needs no action.
        why: Why it is one, in a sentence.
        fix: What to do.
        source: Where it is known from.
        check: Finds it.
    """

    code: str
    severity: Severity
    why: str
    fix: str
    source: str
    check: Check


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A mistake that was found.

    Attributes:
        code: The rule.
        severity: How bad it is.
        line: From 1.
        column: In characters, from 1.
        message: What was seen.
        why: Why it is a mistake.
        fix: What to do.
        edits: What `--fix` does; empty where a person has to.
    """

    code: str
    severity: Severity
    line: int
    column: int
    message: str
    why: str
    fix: str
    edits: tuple[Edit, ...] = ()


def rule(code: str, severity: Severity, *, why: str, fix: str, source: str) -> Callable[[Check], Rule]:
    """Make a rule of the function that looks for it."""

    def make(check: Check) -> Rule:
        return Rule(code=code, severity=severity, why=why, fix=fix, source=source, check=check)

    return make


def replace(start: int, end: int, text: str) -> tuple[Edit, ...]:
    """An edit that puts text in place of some bytes."""
    return (Edit(start=start, end=end, text=text),)


def insert(at: int, text: str) -> tuple[Edit, ...]:
    """An edit that adds text at a byte."""
    return (Edit(start=at, end=at, text=text),)
