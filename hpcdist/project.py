"""The project on disk: its root, `hpcdist.toml` and job files."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hpcdist.errors import UsageError
from hpcdist.site import Site
from hpcdist.site_file import PROFILES, choose_profile, normalize
from hpcdist.spec import SITE_KEYS, build_site, check_keys
from hpcdist.text import with_underscores

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
    """The project around a folder.

    `HPCDIST_CONFIG` names another file for the defaults (a cluster's own); the root stays the same.

    Args:
        start: The folder.
        env: The environment.
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
    """The site with its paths meant from the folder of its file."""
    paths = {name: getattr(site, name) for name in ("templates", "venv", "uv")}
    site = msgspec.structs.replace(site, **{name: str(folder / path) for name, path in paths.items() if path})
    box = site.container
    if box is None or box.runtime == "pyxis" or "://" in box.image:
        return site
    return msgspec.structs.replace(site, container=msgspec.structs.replace(box, image=str(folder / box.image)))


def find_nearest(start: Path) -> Path | None:
    """The nearest folder upward that has a `hpcdist.toml`; None where there is none."""
    return next((folder for folder in (start, *start.parents) if (folder / CONFIG_NAME).is_file()), None)


def read_options(path: Path, *, site: bool) -> dict[str, Any]:
    """The options in a TOML file, with `-` and `_` in keys taken as the same.

    Raises:
        UsageError: The file can't be read, isn't TOML, or has a key that no option has.
    """
    from hpcdist.study_lines import parse_toml, read_text  # only here: a render without a file shall not wait for it

    options = parse_toml(read_text(path), str(path))
    if "layouts" in options:
        raise UsageError(f"{path} has layouts: it is a study, not a job", f"hpcdist study run {path}")
    if site:
        return normalize(options, str(path))
    options = with_underscores(options)
    check_keys(options, str(path))
    return options
