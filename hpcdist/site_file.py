"""The settings of `hpcdist.toml`: its keys checked, and one of its profiles chosen. Pure."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from hpcdist.errors import UsageError
from hpcdist.merging import merge_options
from hpcdist.site import Container, Partitions, Prices
from hpcdist.spec import OPTION_KEYS, SITE_KEYS, check_keys
from hpcdist.text import with_underscores

PROFILES = "sites"
_TABLES: dict[str, type[msgspec.Struct]] = {"partitions": Partitions, "container": Container, "prices": Prices}
_KEYS = OPTION_KEYS | SITE_KEYS


def normalize(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings with every key known and spelt one way; `-` and `_` are the same.

    Args:
        values: What the file has.
        where: Its name, for messages.

    Raises:
        UsageError: A key that is none; the message has its path (`sites.alpha.container.imag`).
    """
    options = _normalize_table(values, where, ())
    profiles = options.get(PROFILES, {})
    if not isinstance(profiles, Mapping):
        raise UsageError(f"{where}: {PROFILES} is no table of profiles", "write [sites.NAME] on a line of its own")
    if profiles:
        options[PROFILES] = {
            name: _normalize_table(_as_table(profile, where, (PROFILES, name)), where, (PROFILES, name))
            for name, profile in profiles.items()
        }
    return options


def _normalize_table(values: Mapping[str, Any], where: str, path: tuple[str, ...]) -> dict[str, Any]:
    options = with_underscores(values)
    check_keys(options, where, _KEYS if path else _KEYS | {PROFILES}, path)
    for key, kind in _TABLES.items():
        if key not in options:
            continue
        table = with_underscores(_as_table(options[key], where, (*path, key)))
        spelt = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
        check_keys(table, where, spelt, (*path, key))
        options[key] = {spelt[name]: value for name, value in table.items()}
    return options


def _as_table(value: Any, where: str, path: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        name = ".".join(path)
        raise UsageError(f"{where}: {name} is {value!r}, expected a table", f"write [{name}] on a line of its own")
    return value


def choose_profile(
    options: Mapping[str, Any], where: str, *, asked: str | None, cluster: str | None
) -> tuple[str | None, dict[str, Any]]:
    """The name of the profile that holds, and the settings with it: the file's own, and over them the profile's.

    Args:
        options: Normalized settings.
        where: The file's name, for messages.
        asked: The profile asked for (`--site`); None chooses by the cluster's name.
        cluster: That name; None where nobody says, which chooses none.

    Raises:
        UsageError: There is no such profile, or none for this cluster.
    """
    profiles: Mapping[str, Mapping[str, Any]] = options.get(PROFILES, {})
    common = {key: value for key, value in options.items() if key != PROFILES}
    if asked is not None and asked not in profiles:
        have = f"it has: {', '.join(profiles)}" if profiles else "it has none: write [sites.NAME]"
        raise UsageError(f"{where}: there is no profile {asked!r}", have)
    by_name = {name: one["cluster"] for name, one in profiles.items() if isinstance(one.get("cluster"), str)}
    name = asked
    if name is None and cluster is not None:
        name = next((one for one, pattern in by_name.items() if fnmatchcase(cluster, pattern)), None)
        if name is None and by_name:
            told = ", ".join(f"{one} ({pattern})" for one, pattern in by_name.items())
            raise UsageError(
                f"{where}: no profile is for the cluster {cluster!r}, only: {told}",
                f'choose one with --site NAME, or write [sites.{cluster}] with cluster = "{cluster}" (hpcdist init)',
            )
    return name, merge_options(common, profiles[name]) if name else common
