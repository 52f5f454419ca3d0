"""Shell completion: jobs, studies and sites of this project, the cluster's partitions, lint's codes.

Each is looked for only when Tab is pressed; nothing that goes wrong is told, since it would spoil the line being typed.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# More would fill the screen; each is a file to read.
MOST_RUNS = 50

Offer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def _offer(find: Callable[[], Iterable[tuple[str, str]]], *, separator: str = "") -> Offer:
    """Return what click asks at Tab: words and what stands beside them; `separator` parts several words of a value."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        from hpcdist.errors import HpcdistError

        before, comma, typed = incomplete.rpartition(separator) if separator else ("", "", incomplete)
        try:
            return [CompletionItem(before + comma + one, help=text) for one, text in find() if one.startswith(typed)]
        except HpcdistError:
            return []

    return complete


def _find_root() -> Path:
    from hpcdist.config.project import find_project

    return find_project(Path.cwd()).root


def _list_jobs() -> Iterator[tuple[str, str]]:
    """The ids and the names of the newest runs."""
    from hpcdist.records.store import Store

    for run in islice(Store(_find_root()), MOST_RUNS):
        job_id = run.job_id
        if job_id is not None:
            yield job_id, run.name
        yield run.name, job_id or "no job"


def _list_studies() -> Iterator[tuple[str, str]]:
    from hpcdist.studies.state import name_studies

    return ((name, "study") for name in name_studies(_find_root()))


def _list_partitions() -> Iterator[tuple[str, str]]:
    from hpcdist.slurm.cluster import name_partitions

    return ((name, "") for name in name_partitions())


def _list_sites() -> Iterator[tuple[str, str]]:
    from hpcdist.config.project import PROFILES, find_project, read_options

    config = find_project(Path.cwd()).config
    profiles = read_options(config, site=True).get(PROFILES, {}) if config else {}
    return ((name, str(one.get("cluster", ""))) for name, one in profiles.items())


def _list_codes() -> Iterator[tuple[str, str]]:
    from hpcdist.lint.linter import RULES

    return ((rule.code, rule.severity) for rule in RULES)


offer_jobs = _offer(_list_jobs)
offer_studies = _offer(_list_studies)
offer_studies_and_jobs = _offer(lambda: chain(_list_studies(), _list_jobs()))
offer_partitions = _offer(_list_partitions)
offer_sites = _offer(_list_sites)
offer_code = _offer(lambda: chain([("all", "a list of them")], _list_codes()))
offer_codes = _offer(_list_codes, separator=",")


@click.command(epilog="Example: hpcdist completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the line for your shell's start file: Tab then completes commands, options, jobs, studies, sites."""
    if shell == "fish":
        click.echo("_HPCDIST_COMPLETE=fish_source hpcdist | source")
    else:
        click.echo(f'eval "$(_HPCDIST_COMPLETE={shell}_source hpcdist)"')
