"""The `hpcdist` program: its commands, loaded when they are used, and how errors end it."""

import importlib
import os
import sys

import click

from hpcdist import __version__
from hpcdist.errors import HpcdistError

# Command: where it lives, and its line in the list of commands. Each loads only what it needs.
COMMANDS = {
    "submit": ("hpcdist.cli.submit:submit", "Submit a training to Slurm, or run it here; print the job id."),
    "train": ("hpcdist.cli.train:train", "Train on several machines without a scheduler, started on each by hand."),
    "render": ("hpcdist.cli.submit:render", "Print the sbatch script that submit would send."),
    "status": ("hpcdist.cli.status:status", "Show where jobs are; alone: this project's runs."),
    "logs": ("hpcdist.cli.status:logs", "Print what a job's ranks wrote."),
    "wait": ("hpcdist.cli.status:wait", "Follow a job until it is over."),
    "why": ("hpcdist.cli.why:why", "Say why jobs ended as they did, or wait, and what to do."),
    "cancel": ("hpcdist.cli.status:cancel", "End jobs."),
    "seff": ("hpcdist.cli.seff:seff", "CPU, memory and GPU efficiency and wall-clock of jobs."),
    "advise": ("hpcdist.cli.advise:advise_command", "Print the next request, right-sized from what jobs used."),
    "study": ("hpcdist.cli.study:study", "Run a training over several layouts and settings, to be compared."),
    "plan": ("hpcdist.cli.plan:plan", "Say what a study would wait, take and cost, before it is run."),
    "tune": ("hpcdist.cli.tune:tune_command", "Find the batch size and workers a layout trains fastest with."),
    "report": ("hpcdist.cli.report:report", "Compare a study's layouts, or some jobs; say what to use and why."),
    "rerun": ("hpcdist.cli.rerun:rerun", "Submit a run again, as it was or with changes."),
    "drill": ("hpcdist.cli.drill:drill", "Break a short training on purpose; say whether it would survive."),
    "init": ("hpcdist.cli.init:init", "Write hpcdist.toml from what the cluster says."),
    "doctor": ("hpcdist.cli.doctor:doctor", "Check that everything a job needs is there; mend half-done runs."),
    "lint": ("hpcdist.cli.lint:lint_command", "Find known mistakes in any sbatch script."),
    "schema": ("hpcdist.cli.schema:schema", "Print the JSON Schema of hpcdist.toml, for editors."),
    "data": ("hpcdist.cli.data:data", "Put datasets where jobs find them."),
    "completion": ("hpcdist.cli.complete:completion", "Print the line that switches shell completion on."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported only when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a job's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: hpcdist submit --nodes 2 --gpus 1 --wait",
)
@click.version_option(__version__, prog_name="hpcdist")
def cli() -> None:
    """Slurm jobs for distributed PyTorch: from a training script to the right job, measured."""


def main() -> None:
    """Runs the program; every error a user can cause ends it with two lines and an exit code."""
    try:
        sys.exit(cli.main(prog_name="hpcdist", standalone_mode=False) or 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as help_text:
        click.echo(help_text.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        fail(error.format_message(), f"{context.command_path if context else 'hpcdist'} --help", error.exit_code)
    except HpcdistError as error:
        fail(error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fail(message: str, hint: str, exit_code: int) -> None:
    """Prints the two lines of an error and exits."""
    click.echo(click.style("error: ", fg="red") + message, err=True)
    if hint:
        click.echo(click.style("hint: ", fg="cyan") + hint, err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
