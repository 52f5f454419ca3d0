"""`python -m hpcdist.train`: one rank of the built-in training."""

import os
import sys
import time
from pathlib import Path

from hpcdist import datasets
from hpcdist.errors import HpcdistError
from hpcdist.train.environment import RankEnvironment, check_layout, read_environment
from hpcdist.train.failure import LastWords
from hpcdist.train.options import parse_options
from hpcdist.train.outcome import Outcome
from hpcdist.train.phases import Clock

DEFAULT_DATA_DIR = Path("data")


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    now_s = time.time()
    try:
        rank = read_environment(os.environ, now_s)
    except HpcdistError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    outcome = Outcome(rank.metrics, Clock(rank.started_at_s))
    last_words = LastWords(rank, outcome)
    last_words.watch()
    try:
        _run(arguments, rank, outcome, last_words)
    except HpcdistError as error:
        last_words.end(error)
    return 0


def _run(arguments: list[str], rank: RankEnvironment, outcome: Outcome, last_words: LastWords) -> None:
    # What can be wrong is found before the imports, which take seconds.
    options = parse_options(arguments)
    check_layout(options.layout, rank, os.environ)
    if options.preflight_only:
        from hpcdist.train.trial import try_nodes

        try_nodes(options, rank, outcome, last_words)
        _write(outcome)
        return
    data_dir = Path(options.training.data_dir) if options.training.data_dir else DEFAULT_DATA_DIR
    if options.training.data_name is not None:
        datasets.verify(options.training.data_name, data_dir)
    from hpcdist.train.fit import train

    train(options, rank, data_dir, outcome, last_words)
    _write(outcome)


def _write(outcome: Outcome) -> None:
    """Writes what was measured; a disk that is full by now does not undo the training."""
    try:
        outcome.write()
    except OSError as error:
        print(f"warning: can't write the metrics: {error.strerror}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
