"""hpcdist schema."""

import click

from hpcdist.cli.output import print_json


@click.command(epilog="Example: hpcdist schema > hpcdist.schema.json")
def schema() -> None:
    """Print the JSON Schema of hpcdist.toml, with which an editor checks and completes it.

    A first line `#:schema ./hpcdist.schema.json` in hpcdist.toml tells the editor (Even Better TOML, taplo).
    """
    from hpcdist.config.json_schema import build_schema

    print_json(build_schema())
