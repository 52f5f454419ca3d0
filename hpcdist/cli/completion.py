"""hpcdist completion."""

import click


@click.command(epilog="Example: hpcdist completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the line for your shell's start file: Tab then completes commands, options, jobs, studies, sites."""
    if shell == "fish":
        click.echo("_HPCDIST_COMPLETE=fish_source hpcdist | source")
    else:
        click.echo(f'eval "$(_HPCDIST_COMPLETE={shell}_source hpcdist)"')
