"""`hpcdist.toml` as `hpcdist init` writes it, and written again without losing what a person changed. Pure.

What was written last stands in a comment at the section's end, so that a person's edit (kept) can be told from a value
that the cluster has changed since (replaced).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcdist.config.toml import parse_toml
from hpcdist.errors import UsageError
from hpcdist.site_proposal import Setting
from hpcdist.text import clean, with_underscores

_RECORD = "# hpcdist init wrote: "
_HEADER = re.compile(r"\s*\[")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """A file put together.

    Attributes:
        text: Its text.
        kept: What a person changed or took out, and the cluster says otherwise; one sentence each.
    """

    text: str
    kept: tuple[str, ...] = ()


def format_value(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {format_value(one)}" for key, one in value.items()) + " }"
    # A JSON text is a basic string of TOML, but for the DEL character, which no name holds.
    return json.dumps(value, ensure_ascii=False)


def format_section(settings: Sequence[Setting]) -> list[str]:
    """The lines of settings and remarks, and of what was written."""
    lines = [line for setting in settings for line in _format_setting(setting)]
    return [*lines, _format_record({one.key: one.value for one in settings if one.key})]


def _format_setting(setting: Setting) -> list[str]:
    if not setting.key:
        return [f"# {clean(setting.source)}"]
    return [f"# {clean(setting.source)}", f"{setting.key} = {format_value(setting.value)}"]


def _format_record(values: Mapping[str, Any]) -> str:
    return _RECORD + json.dumps(values, ensure_ascii=False)


def merge_file(text: str, settings: Sequence[Setting], section: str | None, where: str) -> Merged:
    """A file with what the cluster says now; what a person wrote, changed or took out stays.

    Args:
        text: The file's text.
        settings: What the cluster says.
        section: The profile to write under `[sites.NAME]`; None is the file's own settings.
        where: The file's name, for messages.

    Raises:
        UsageError: It is no TOML.
    """
    parsed = parse_toml(text, where)
    lines = text.splitlines()
    if section is not None and section not in parsed.get("sites", {}):
        name = section if _BARE.fullmatch(section) else json.dumps(section)
        head = [*lines, *([""] if lines else []), f"[sites.{name}]"]
        return Merged(text="\n".join([*head, *format_section(settings)]) + "\n")
    mine = parsed.get("sites", {}).get(section, {}) if section else parsed
    mine = with_underscores(mine)
    first, end = _find_section(lines, section)
    own = lines[first:end]
    base = _read_record(own)
    own = [line for line in own if not line.startswith(_RECORD)]
    added: list[Setting] = []
    kept: list[str] = []
    for setting in settings:
        if not setting.key:
            continue
        key, new = setting.key, setting.value
        if key in mine and mine[key] == new:
            continue
        if key in mine and key in base and mine[key] == base[key]:
            own = [_replace(line, key, new) for line in own]
        elif key in mine:
            kept.append(
                f"{key} = {format_value(mine[key])} stays; the cluster says {format_value(new)} ({setting.source})"
            )
        elif key in base:
            kept.append(f"{key} stays out; {_say(setting)}")
        else:
            added.append(setting)
    while own and not own[-1].strip():
        own.pop()
    new_lines = [line for setting in added for line in _format_setting(setting)]
    record = _format_record({one.key: one.value for one in settings if one.key})
    rest = lines[end:]
    joined = [*lines[:first], *own, *new_lines, record, *([""] if rest and rest[0].strip() else []), *rest]
    return Merged(text="\n".join(joined) + "\n", kept=tuple(kept))


def _say(setting: Setting) -> str:
    return f"the cluster says {format_value(setting.value)} ({setting.source})"


def _find_section(lines: Sequence[str], section: str | None) -> tuple[int, int]:
    """Where a section's lines begin and end: the file's own, or those under its profile's header."""
    first = 0
    if section is not None:
        names = (f"[sites.{section}]", f"[sites.{json.dumps(section)}]")
        found = [number for number, line in enumerate(lines) if line.split("#")[0].strip() in names]
        if not found:
            raise UsageError(
                f"sites.{section} is written in another form than under a header of its own", f"write {names[0]}"
            )
        first = found[0] + 1
    end = next((number for number in range(first, len(lines)) if _HEADER.match(lines[number])), len(lines))
    # The blank line and the remarks before a header are the header's.
    while end < len(lines) and end > first and re.match(r"\s*(#(?! hpcdist init wrote)|$)", lines[end - 1]):
        end -= 1
    return first, end


def _read_record(lines: Sequence[str]) -> dict[str, Any]:
    found = next((line for line in reversed(lines) if line.startswith(_RECORD)), None)
    try:
        values = json.loads(found.removeprefix(_RECORD)) if found else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _replace(line: str, key: str, value: Any) -> str:
    return f"{key} = {format_value(value)}" if re.match(rf"\s*{key.replace('_', '[_-]')}\s*=", line) else line
