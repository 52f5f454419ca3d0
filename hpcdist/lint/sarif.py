"""Findings of `hpcdist lint` in SARIF 2.1.0, which code hosts and editors show beside the lines.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0; the numbers below are its sections.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from hpcdist.lint.linter import RULES
from hpcdist.lint.rule import Finding, Rule, Severity

_LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}  # 3.27.10


def build_sarif(found: Iterable[tuple[str, Finding]], version: str) -> dict[str, Any]:
    """Return the log of one run from each finding with its file's name."""
    places = {rule.code: place for place, rule in enumerate(RULES)}
    driver = {"name": "hpcdist lint", "version": version, "rules": [_describe(rule) for rule in RULES]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",  # 3.14.17: a finding's column counts characters
        "results": [_result(name, finding, places[finding.code]) for name, finding in found],
    }
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}


def _describe(rule: Rule) -> dict[str, Any]:
    """A `reportingDescriptor` (3.49)."""
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.why},
        "help": {"text": f"{rule.fix}\nSource: {rule.source}"},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(name: str, finding: Finding, place: int) -> dict[str, Any]:
    """A `result` (3.27)."""
    region = {"startLine": finding.line, "startColumn": finding.column}
    return {
        "ruleId": finding.code,
        "ruleIndex": place,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.message}. {finding.why} {finding.fix}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(name)}, "region": region}}],
    }


def _uri(name: str) -> str:
    """A file's name as a URI (3.4.3): a relative one is meant from where the linter ran."""
    path = quote(name.encode(errors="surrogateescape"))
    return f"file://{path}" if name.startswith("/") else path
