"""Known mistakes in batch scripts: looked for, left out where a comment says so, mended where that is safe."""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from hpcdist.errors import UsageError
from hpcdist.lint.rule import Edit, Finding, LintContext, Match, Rule
from hpcdist.lint.rules import (
    cluster_limits,
    environment,
    exit_and_requeue,
    gpus,
    header,
    launchers,
    logs,
    network,
    requests,
    secrets_and_paths,
)
from hpcdist.lint.script import Script

_FAMILIES = (
    header,
    requests,
    cluster_limits,
    logs,
    gpus,
    launchers,
    network,
    exit_and_requeue,
    environment,
    secrets_and_paths,
)
# In the order in which they are written.
RULES = tuple(one for family in _FAMILIES for one in vars(family).values() if isinstance(one, Rule))
NOWHERE = LintContext()
# A fix may open the way for another; a rule whose fix does not silence it must not go on for ever.
MOST_PASSES = 10
# Of each rule in a script; nobody reads more.
MOST_MATCHES = 100

_IGNORE = re.compile(r"#\s*hpcdist:\s*ignore(-file)?(?:\[([^\]]*)\])?")


def find_rule(code: str) -> Rule:
    """The rule of a code.

    Raises:
        UsageError: There is none.
    """
    if found := next((one for one in RULES if one.code == code), None):
        return found
    raise UsageError(f"there is no rule {code!r}", "hpcdist lint --explain all lists them")


def lint(
    data: bytes,
    context: LintContext = NOWHERE,
    *,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
) -> list[Finding]:
    """Return the mistakes in a script, by place: those of the selected codes (all where empty), some left out."""
    script = Script(data)
    rules = [one for one in RULES if (not select or one.code in select) and one.code not in ignore]
    whole_file, by_line = _ignored(script)
    findings = []
    for one in rules:
        if {one.code, ""} & whole_file:
            continue
        for match in islice(one.check(script, context), MOST_MATCHES):
            finding = _finding(script, one, match)
            if not {one.code, ""} & by_line.get(finding.line, set()):
                findings.append(finding)
    return sorted(findings, key=lambda finding: (finding.line, finding.column, finding.code))


def _finding(script: Script, one: Rule, match: Match) -> Finding:
    line, column = script.place_of(match.at)
    return Finding(
        code=one.code,
        severity=one.severity,
        line=line,
        column=column,
        message=match.message,
        why=one.why,
        fix=match.fix or one.fix,
        edits=match.edits,
    )


def _ignored(script: Script) -> tuple[set[str], dict[int, set[str]]]:
    """Codes left out in the whole file, and in each line; "" stands for all."""
    whole_file: set[str] = set()
    by_line: dict[int, set[str]] = {}
    if b"hpcdist:" not in script.data:
        return whole_file, by_line
    first_command = min((start for start, _ in script.shell.statements), default=len(script.data))
    extents = [
        (script.line_of(one.start), script.line_of(max(one.end - 1, one.start))) for one in script.shell.commands
    ]
    for start, _, text in script.shell.comments:
        found = _IGNORE.search(text)
        if not found:
            continue
        codes = {code.strip() for code in found[2].split(",")} if found[2] is not None else {""}
        if found[1]:
            whole_file |= codes if start < first_command else set()
            continue
        line = script.line_of(start)
        alone = not script.data[script.line_start(start) : start].strip() and found.start() == 0
        for target in {line, line + 1} if alone else {line}:
            for first, last in [(target, target), *extents]:
                if first <= target <= last and (not alone or first in (line, line + 1)):
                    for covered in range(first, last + 1):
                        by_line.setdefault(covered, set()).update(codes)
    return whole_file, by_line


def fix(
    data: bytes,
    context: LintContext = NOWHERE,
    *,
    select: Collection[str] = (),
    ignore: Collection[str] = (),
) -> bytes:
    """The script with everything mended that is safe to mend; doing it again changes nothing."""
    for _ in range(MOST_PASSES):
        findings = lint(data, context, select=select, ignore=ignore)
        edits = list(_apart(edit for finding in findings for edit in finding.edits))
        # Places refer to Unix line ends; a script whose own are to stay is not touched.
        if b"\r\n" in data and not any(finding.code == "crlf" for finding in findings):
            return data
        mended = apply(data.replace(b"\r\n", b"\n"), edits)
        if mended == data:
            return data
        data = mended
    return data


def _apart(edits: Iterator[Edit]) -> Iterator[Edit]:
    """Edits that don't touch each other, the first ones first; what is left over comes in the next pass."""
    end = -1
    for edit in sorted(set(edits), key=lambda one: (one.start, one.end, one.text)):
        if edit.start > end:
            yield edit
            end = max(edit.end, edit.start)


def apply(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The script after edits that don't overlap."""
    for edit in sorted(edits, key=lambda one: one.start, reverse=True):
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
    return data
