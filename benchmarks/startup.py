"""How long commands take to start, against importing the libraries they stand on, in one run.

Prints a table: median and range of whole-process wall-clock, interleaved runs, and the ratio of the medians.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

RUNS = 11
IMPORTS = [sys.executable, "-c", "import click, jinja2, msgspec"]
COMMANDS = {
    "import click, jinja2, msgspec": IMPORTS,
    "hpcdist render --nodes 2": [sys.executable, "-m", "hpcdist.cli.main", "render", "--nodes", "2"],
    "hpcdist --help": [sys.executable, "-m", "hpcdist.cli.main", "--help"],
}


class Start(NamedTuple):
    """One start of a command, in seconds of the clock and of the CPU."""

    wall_s: float
    cpu_s: float


def measure(runs: int = RUNS) -> dict[str, list[Start]]:
    """Each command, started `runs` times, in turn."""
    starts: dict[str, list[Start]] = {name: [] for name in COMMANDS}
    # With bytecode, as it is installed; Python may have been told to write none.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs + 1):
            for name, command in COMMANDS.items():
                before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
                wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
                if number:  # the first round warms the file cache, and writes the bytecode
                    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                    starts[name].append(Start(wall_s, cpu_s))
    return starts


def main() -> None:
    """Prints the table."""
    seconds = {name: [start.wall_s for start in starts] for name, starts in measure().items()}
    reference = statistics.median(seconds["import click, jinja2, msgspec"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {RUNS} runs each")
    print(f"{'command':32} {'median':>8} {'min':>8} {'max':>8} {'ratio':>6}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:32} {middle:7.3f}s {min(values):7.3f}s {max(values):7.3f}s {middle / reference:6.2f}")


if __name__ == "__main__":
    main()
