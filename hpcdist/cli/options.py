"""The options of a job, in Slurm's own words, shared by submit and render; and `--site`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hpcdist.cli.complete import offer_jobs, offer_partitions, offer_sites
from hpcdist.config.job import TABLES, merge_options
from hpcdist.config.project import Project, read_options
from hpcdist.errors import UsageError
from hpcdist.submission.open_project import open_project

_KEY = "hpcdist.site"


def _remember(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    ctx.meta[_KEY] = value


SITE = click.option(
    "--site",
    metavar="NAME",
    expose_value=False,
    callback=_remember,
    shell_complete=offer_sites,
    help="Profile of hpcdist.toml [by the cluster's name].",
)


def open_here() -> Project:
    """The project around the working folder, with the profile that was asked for.

    Raises:
        UsageError: `hpcdist.toml` has a fault, or no such profile.
    """
    return open_project(profile=asked_profile())


def asked_profile() -> str | None:
    """The profile that was asked for; None where none was."""
    context = click.get_current_context(silent=True)
    return context.meta.get(_KEY) if context else None


F = TypeVar("F", bound=Callable[..., Any])

LAYOUT = (
    ("--nodes", int, "Nodes [1]."),
    ("--gpus", int, "GPUs per node, one task (rank) on each [1]; 0 is a CPU layout."),
    ("--tasks-per-node", int, "Tasks per node of a CPU layout [1]."),
    ("--cpus-per-task", int, "CPUs of each task [2]."),
    ("--mem", str, "Memory per node: 16G, 800M; 0 is all of it."),
    ("--mem-per-cpu", str, "Memory per CPU, in place of --mem."),
    ("--time", str, "Time limit: 30 (minutes), 2:00:00, 1-12."),
)
SCHEDULING = (
    ("--name", str, "Job name."),
    ("--partition", str, "Partition."),
    ("--account", str, "Account to charge."),
    ("--qos", str, "Quality of service."),
    ("--constraint", str, "Node features, e.g. a100&ib."),
    ("--nodelist", str, "Nodes to use."),
    ("--exclude", str, "Nodes to avoid."),
    ("--reservation", str, "Reservation."),
    ("--array", str, "Array tasks, e.g. 0-9%3."),
    ("--dependency", str, "Jobs or runs to wait for: afterok:123, afterany:RUN."),
    ("--comment", str, "Comment; the run's name is added to it."),
    ("--mail-type", str, "When to write: END,FAIL."),
    ("--mail-user", str, "To whom."),
)
TRAINING = (
    ("--epochs", int, "Epochs [3]."),
    ("--batch-size", int, "Global batch over all ranks; never changed by the layout."),
    ("--batch-size-per-rank", int, "Batch of each rank, in place of --batch-size."),
    ("--lr", float, "Peak learning rate [0.01]."),
    ("--optimizer", str, "adamw, adam, sgd or adadelta [adamw]."),
    ("--precision", str, "32, bf16-mixed or 16-mixed [32]."),
    ("--seed", int, "Seed [1]."),
    ("--max-steps", int, "Stop after so many optimizer steps."),
    ("--accelerator", str, "auto, cpu or gpu [auto]; cpu trains on CPUs even where GPUs were granted."),
    ("--checkpoint-every", str, "Time between checkpoints: 30s, 1h [5min]."),
    ("--resume-from", str, "Folder of checkpoints (of another run) to go on from."),
    ("--hang-timeout", str, "End the job after this time without a step [10min]."),
    ("--log-every", int, "Steps between logged points [20]."),
    ("--data-dir", str, "Folder of the datasets [data, in the project]."),
    ("--model", str, "cnn, vgg, resnet18, mobilenet, shufflenet, densenet, or a classifier of torchvision [cnn]."),
    ("--data", str, "A dataset's name, a folder of images (with a slash), or synthetic:3x32x32x10 [mnist]."),
    ("--module", str, "LightningModule of one's own, package.module:Class, in place of --model."),
    ("--datamodule", str, "Its LightningDataModule, in place of --data."),
    ("--schedule", str, "one-cycle, cosine, step or constant [one-cycle]."),
    ("--lr-batch", int, "Global batch that --lr is for [512, or the batch per rank]."),
    ("--accumulate", int, "Compute each batch in so many parts, one after the other [1]."),
    ("--target-accuracy", float, "Stop at this test accuracy, a fraction."),
    ("--strategy", str, "ddp (all-reduce), ddp-bf16 or parameter-server [ddp]."),
    ("--ps-mode", str, "sync or async: whether the parameter server waits for all ranks [sync]."),
    ("--logger", str, "csv or wandb: where the curves go beside TensorBoard."),
    ("--workers", int, "Processes of each rank that decode a folder of images [its CPUs but one]."),
    ("--speed-trial", str, "Measure the speed for this time after the first step, and stop: 10s."),
)
SWITCHES = (
    ("--preflight/--no-preflight", "Check nodes and network before the built-in training [on]."),
    ("--scale-lr/--no-scale-lr", "Scale --lr with the global batch over --lr-batch, with a warm-up [off]."),
    ("--compile/--no-compile", "Compile the network with torch.compile [off]."),
)


FILE = click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE.toml]")
BACKEND = click.option("--backend", type=click.Choice(["slurm", "local"]), help="Where to run [Slurm if it is there].")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the script and Slurm's estimate; submit nothing.")
WAIT = click.option("--wait", is_flag=True, help="Follow the job to its end; Ctrl-C leaves it running.")
JOB = click.argument("job", metavar="JOB", shell_complete=offer_jobs)
JOBS = click.argument("jobs", nargs=-1, required=True, metavar="JOB...", shell_complete=offer_jobs)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class JobCommand(click.Command):
    """A command whose words after `--` are the user's own program and reach it unchanged."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes off what follows the first `--`."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["hpcdist.command"] = tuple(args[at + 1 :])
        if at < len(args) and not args[at + 1 :] and not ctx.resilient_parsing:
            raise click.UsageError("there is no COMMAND after --", ctx)
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Shows the command in the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND ARGS...]"]


def training_options(function: F) -> F:
    """Add the options of a training that is started by hand to a command."""
    kept = {"--nodes", "--gpus", "--cpus-per-task", "--time", "--name"}
    rows = [row for row in (*LAYOUT, *SCHEDULING) if row[0] in kept]
    plain = [_plain(*row) for row in (*rows, *TRAINING)]
    env = _repeated("--env", "K=V", "Environment variable of the ranks")
    return _add(function, [*plain, *(_switch(*row) for row in SWITCHES), env])


def job_options(function: F) -> F:
    """Add every option of a job to a command."""
    options = [
        *(_plain(*row) for row in (*LAYOUT, *SCHEDULING, *TRAINING)),
        *(_switch(*row) for row in SWITCHES),
        _switch("--exclusive", "Whole nodes."),
        _switch("--resumable", "The COMMAND saves when asked to and can go on (docs/resume.md)."),
        _plain("--max-requeues", int, "Requeues of a run that was stopped before its end [10]."),
        _switch("--replace-bad-node", "Leave out a node that the preflight blames, and requeue the job."),
        _switch(
            "--stage-data", "Copy --data-dir to each node's own disk first; a COMMAND finds it in $HPCDIST_DATA_DIR."
        ),
        click.option("--launcher", type=click.Choice(["srun", "torchrun"]), help="What starts the ranks [srun]."),
        _repeated("--setup", "LINE", "Shell line to run first"),
        _repeated("--env", "K=V", "Environment variable of the job"),
        _repeated("--sbatch", "KEY=VALUE", "Any other sbatch option"),
        _repeated("--srun", "KEY=VALUE", "Any other srun option"),
    ]
    return _add(function, options)


def _add(function: F, options: Sequence[Callable[[F], F]]) -> F:
    for decorate in reversed(options):
        function = decorate(function)
    return function


# What the shell offers for a value.
_OFFERS = {"--partition": offer_partitions, "--dependency": offer_jobs}
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _plain(flag: str, kind: type, text: str) -> Callable[[F], F]:
    return click.option(flag, type=kind, metavar=_METAVARS[kind], help=text, shell_complete=_OFFERS.get(flag))


def _switch(flags: str, text: str) -> Callable[[F], F]:
    return click.option(flags, is_flag=True, default=None, help=text)


def _repeated(flag: str, form: str, text: str) -> Callable[[F], F]:
    return click.option(flag, multiple=True, metavar=form, help=f"{text}; repeatable.")


def collect_options(file: Path | None, given: dict[str, Any], command: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options of a job file, and those of the command line over them.

    Raises:
        UsageError: A KEY=VALUE has no `=`, or the file has a fault.
    """
    options = {key: value for key, value in given.items() if value is not None and value != ()}
    for key in TABLES:
        if key in options:
            options[key] = dict(_pair(key, text) for text in options[key])
    if command:
        options["command"] = command
    return merge_options(read_options(file, site=False) if file else {}, options)


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals and option == "env":
        raise UsageError(f"--env {text!r} has no '='", "write --env NAME=VALUE")
    return key.removeprefix("--"), value
