"""The project on disk: its root and `hpcdist.toml`, with one of its profiles chosen."""

import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.config.job import OPTION_KEYS, SITE_KEYS, build_site, check_keys, merge_options
from hpcdist.config.site import Container, Partitions, Prices, Site
from hpcdist.errors import UsageError
from hpcdist.text import with_underscores

PROFILES = "sites"
_TABLES: dict[str, type[msgspec.Struct]] = {"partitions": Partitions, "container": Container, "prices": Prices}
_KEYS = OPTION_KEYS | SITE_KEYS


def normalize(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a file's settings with every key known and spelt one way; `-` and `_` are the same.

    Raises:
        UsageError: A key that is none; the message has its path (`sites.alpha.container.imag`).
    """
    options = _normalize_table(values, where, ())
    profiles = options.get(PROFILES, {})
    if not isinstance(profiles, Mapping):
        raise UsageError(f"{where}: {PROFILES} is no table of profiles", "write [sites.NAME] on a line of its own")
    if profiles:
        options[PROFILES] = {
            name: _normalize_table(profile, where, (PROFILES, name)) for name, profile in profiles.items()
        }
    return options


def _normalize_table(values: Any, where: str, path: tuple[str, ...]) -> dict[str, Any]:
    options = with_underscores(_as_table(values, where, path))
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
    """Return the name of the profile that holds, and the file's normalized settings with the profile's over them.

    Args:
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
    name = asked
    if name is None and cluster is not None:
        by_name = {name: one["cluster"] for name, one in profiles.items() if isinstance(one.get("cluster"), str)}
        name = next((one for one, pattern in by_name.items() if fnmatchcase(cluster, pattern)), None)
        if name is None and by_name:
            told = ", ".join(f"{one} ({pattern})" for one, pattern in by_name.items())
            raise UsageError(
                f"{where}: no profile is for the cluster {cluster!r}, only: {told}",
                f'choose one with --site NAME, or write [sites.{cluster}] with cluster = "{cluster}" (hpcdist init)',
            )
    return name, merge_options(common, profiles[name]) if name else common


CONFIG_NAME = "hpcdist.toml"


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """Where a command works, and the site's defaults.

    Attributes:
        root: Folder that holds `jobs/runs` and `tb_logs`: that of the nearest `hpcdist.toml` upward, else
            the working folder.
        config: The file the defaults came from; None when there is none.
        site: The site's settings.
        defaults: Defaults for the options of jobs, by the options' names.
        profile: Name of the profile (`[sites.NAME]`) that holds; None where the file's own settings alone do.
    """

    root: Path
    config: Path | None = None
    site: Site = Site()
    defaults: dict[str, Any] = {}
    profile: str | None = None


def find_project(
    start: Path,
    env: Mapping[str, str] = os.environ,
    *,
    profile: str | None = None,
    ask_cluster: Callable[[], str | None] = lambda: None,
) -> Project:
    """Return the project around a folder.

    `HPCDIST_CONFIG` names another file for the defaults (a cluster's own); the root stays the same.

    Args:
        profile: The profile to take; None takes that of `HPCDIST_SITE`, else by the cluster's name.
        ask_cluster: Says the cluster's name; asked only where the file has profiles to choose from.

    Raises:
        UsageError: The file has a fault; the message has its path and key.
    """
    nearest = find_nearest(start)
    root = nearest or start
    named = env.get("HPCDIST_CONFIG")
    config = Path(named) if named else (nearest / CONFIG_NAME if nearest else None)
    options = read_options(config, site=True) if config else {}
    asked = profile or env.get("HPCDIST_SITE") or None
    cluster = ask_cluster() if options.get(PROFILES) and asked is None else None
    chosen, options = choose_profile(options, str(config or CONFIG_NAME), asked=asked, cluster=cluster)
    site = build_site(options, str(config))
    if config:
        site = _with_absolute_paths(site, config.parent)
    defaults = {key: value for key, value in options.items() if key not in SITE_KEYS}
    if config and isinstance(defaults.get("data_dir"), str):
        defaults["data_dir"] = str(config.parent / defaults["data_dir"])
    return Project(root=root, config=config, site=site, defaults=defaults, profile=chosen)


def _with_absolute_paths(site: Site, folder: Path) -> Site:
    """Return the site with its paths meant from the folder of its file."""
    paths = {name: getattr(site, name) for name in ("templates", "venv", "uv")}
    site = msgspec.structs.replace(site, **{name: str(folder / path) for name, path in paths.items() if path})
    box = site.container
    if box is None or box.runtime == "pyxis" or "://" in box.image:
        return site
    return msgspec.structs.replace(site, container=msgspec.structs.replace(box, image=str(folder / box.image)))


def find_nearest(start: Path) -> Path | None:
    """Return the nearest folder upward that has a `hpcdist.toml`; None where there is none."""
    return next((folder for folder in (start, *start.parents) if (folder / CONFIG_NAME).is_file()), None)


def read_options(path: Path, *, site: bool) -> dict[str, Any]:
    """Return the options in a TOML file, with `-` and `_` in keys taken as the same.

    Raises:
        UsageError: The file can't be read, isn't TOML, or has a key that no option has.
    """
    from hpcdist.config.toml import parse_toml, read_text  # only here: a render without a file shall not wait for it

    options = parse_toml(read_text(path), str(path))
    if "layouts" in options:
        raise UsageError(f"{path} has layouts: it is a study, not a job", f"hpcdist study run {path}")
    if site:
        return normalize(options, str(path))
    options = with_underscores(options)
    check_keys(options, str(path))
    return options
