"""How long `hpcdist lint` takes over a thousand scripts, start-up apart.

    python -m benchmarks.lint

The scripts are those of tests/data/lint and tests/golden, over and over.
"""

import datetime
import os
import platform
import statistics
import time
from pathlib import Path

from hpcdist.lint.linter import lint

SCRIPTS = 1_000
RUNS = 5


def measure() -> list[float]:
    """Seconds for a thousand scripts, several times."""
    tests = Path(__file__).parent.parent / "tests"
    known = [
        path.read_bytes() for folder in ("data/lint", "golden") for path in sorted((tests / folder).glob("*.sbatch"))
    ]
    scripts = [known[number % len(known)] for number in range(SCRIPTS)]
    lint(scripts[0])
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        for data in scripts:
            lint(data)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Prints the figures."""
    seconds = measure()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {datetime.date.today()}")
    print(f"{SCRIPTS} scripts: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
