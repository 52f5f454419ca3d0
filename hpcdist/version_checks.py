"""Whether the versions that are installed go together. Pure."""

import re
from collections.abc import Iterable, Mapping

from hpcdist.check import Check
from hpcdist.errors import ParseError
from hpcdist.slurm.releases import NEWEST, OLDEST, parse_release

# torch 2.N goes with torchvision 0.(N + 15): 2.4 with 0.19, 2.9 with 0.24 (the table in torchvision's README).
PAIR_OFFSET = 15
NAMED = {"torch": "torch", "torchvision": "torchvision", "pytorch-lightning": "lightning"}

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*\(?([^;)]*)")
_BOUND = re.compile(r"(>=|<)\s*([0-9.]+)")


def judge_packages(versions: Mapping[str, str], requirements: Iterable[str]) -> list[Check]:
    """torch, torchvision and Lightning against what hpcdist asks for, and the first two against each other.

    Args:
        versions: What is installed, by package.
        requirements: hpcdist's own, as its metadata has them (`torch>=2.4`).
    """
    bounds = _parse_bounds(requirements)
    checks = [_judge_package(package, versions.get(package), bounds.get(package, [])) for package in NAMED]
    torch, vision = versions.get("torch"), versions.get("torchvision")
    return [*checks, judge_pair(torch, vision)] if torch and vision else checks


def _parse_bounds(requirements: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for text in requirements:
        if match := _REQUIREMENT.match(text):
            found.setdefault(match[1].lower(), []).extend(_BOUND.findall(match[2]))
    return found


def _judge_package(package: str, version: str | None, bounds: list[tuple[str, str]]) -> Check:
    name = NAMED[package]
    expected = ", ".join(f"{sign}{bound}" for sign, bound in bounds)
    hint = f"pip install '{package}{expected.replace(' ', '')}'"
    if version is None:
        return Check(name=name, status="error", sentence=f"{package} is not installed beside hpcdist", hint=hint)
    found = parse_version(version)
    if all(found >= parse_version(bound) if sign == ">=" else found < parse_version(bound) for sign, bound in bounds):
        evidence = (f"expected {expected or 'any'}",)
        return Check(name=name, status="ok", sentence=f"{package} {version}", evidence=evidence)
    return Check(name=name, status="error", sentence=f"{package} is {version}, expected {expected}", hint=hint)


def judge_pair(torch: str, vision: str) -> Check:
    """Whether torchvision was built for this torch: another one fails on import (`torchvision::nms does not exist`)."""
    name = "torchvision for torch"
    ours, theirs = parse_version(torch), parse_version(vision)
    if ours[0] != 2 or theirs[0] != 0 or len(ours) < 2 or len(theirs) < 2:
        sentence = f"torch {torch} and torchvision {vision}: not known as a pair"
        return Check(name=name, status="unknown", sentence=sentence)
    expected = f"0.{ours[1] + PAIR_OFFSET}"
    hint = f"pip install 'torchvision=={expected}.*' from the same index as torch"
    if theirs[1] != ours[1] + PAIR_OFFSET:
        sentence = f"torchvision is {vision}, expected {expected} for torch {torch}: it may fail on import"
        return Check(name=name, status="error", sentence=sentence, hint=hint)
    builds = [version.partition("+")[2] for version in (torch, vision)]
    if builds[0] != builds[1] and "cpu" in builds:
        sentence = f"torch {torch} and torchvision {vision} are of different builds: one is for CPUs only"
        return Check(name=name, status="error", sentence=sentence, hint=hint)
    return Check(name=name, status="ok", sentence=f"torchvision {vision} goes with torch {torch}")


def judge_slurm_release(text: str | None) -> Check:
    """Slurm's release against those that hpcdist was written for."""
    try:
        release = parse_release(text or "")
    except ParseError:
        return Check(name="slurm release", status="unknown", sentence="Slurm does not say its release")
    known = " to ".join(f"{year}.{month:02}" for year, month in (OLDEST, NEWEST))
    if OLDEST <= release <= NEWEST:
        return Check(name="slurm release", status="ok", sentence=f"Slurm {text}", evidence=(f"known: {known}",))
    sentence = f"Slurm is {text}; hpcdist is known to work with {known}"
    hint = "read what `hpcdist submit --dry-run` prints before the first job"
    return Check(name="slurm release", status="warning", sentence=sentence, hint=hint)


def parse_version(text: str) -> tuple[int, ...]:
    """`2.14.1+cu130` as (2, 14, 1); what is no number ends it."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)
