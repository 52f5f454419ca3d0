"""`python -m hpcdist.train`: one rank of the built-in training."""

import os
import sys
import time
from pathlib import Path

import msgspec

from hpcdist import datasets
from hpcdist.config.job import JobSpec
from hpcdist.errors import HpcdistError
from hpcdist.train.environment import RankEnvironment, check_layout, check_logger, read_environment
from hpcdist.train.failure import FailureReporter
from hpcdist.train.options import parse_options
from hpcdist.train.outcome import Clock, Outcome

LAYOUT_FLAGS = ("--nodes", "--gpus", "--tasks-per-node")


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
    now_s = time.time()
    try:
        rank = read_environment(os.environ, now_s)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            arguments = _follow_torchrun(arguments, rank)
    except HpcdistError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    outcome = Outcome(rank.metrics, Clock(rank.started_at_s))
    reporter = FailureReporter(rank, outcome)
    reporter.watch()
    try:
        _run(arguments, rank, outcome, reporter)
    except HpcdistError as error:
        reporter.end(error)
    try:
        outcome.write()
    except OSError as error:  # a disk that is full by now does not undo the training
        print(f"warning: can't write the metrics: {error.strerror}", file=sys.stderr, flush=True)
    return 0


def _follow_torchrun(arguments: list[str], rank: RankEnvironment) -> list[str]:
    """Take the layout from torchrun where none was given, and have the rank recorded where it is not yet.

    Raises:
        UsageError: An option can't be used.
    """
    if not any(word.partition("=")[0] in LAYOUT_FLAGS for word in arguments):
        nodes = rank.world_size // rank.local_world_size
        has_gpus = Path("/dev/nvidia0").exists()
        arguments = [*arguments, *layout_arguments(nodes, rank.local_world_size, has_gpus=has_gpus)]
    options = parse_options(arguments)
    if rank.run_dir is None and rank.metrics is None and not options.preflight_only:
        job = JobSpec(name="mnist", layout=options.layout, training=options.training)
        words = [sys.executable, "-m", "hpcdist.submission.by_hand", msgspec.json.encode(job).decode()]
        os.execv(sys.executable, [*words, "--", *arguments])
    return arguments


def layout_arguments(nodes: int, ranks_per_node: int, *, has_gpus: bool) -> list[str]:
    """Return the options of a layout that torchrun has chosen."""
    shape = ["--gpus", str(ranks_per_node)] if has_gpus else ["--gpus", "0", "--tasks-per-node", str(ranks_per_node)]
    return ["--nodes", str(nodes), *shape]


def _run(arguments: list[str], rank: RankEnvironment, outcome: Outcome, reporter: FailureReporter) -> None:
    # What can be wrong is found before the imports, which take seconds.
    options = parse_options(arguments)
    check_layout(options.layout, rank, os.environ)
    if options.preflight_only:
        from hpcdist.train.preflight.checks import try_nodes

        try_nodes(options, rank, outcome, reporter)
        return
    check_logger(options.training.logger)
    data_dir = Path(options.training.data_dir or "data")
    if options.training.data_name is not None:
        datasets.verify(options.training.data_name, data_dir)
    from hpcdist.train.fit import train

    train(options, rank, data_dir, outcome, reporter)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
