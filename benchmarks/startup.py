"""How long commands take to start, against importing the libraries they stand on, in one run.

Prints a table: median and range of whole-process wall-clock, interleaved runs, and the ratio of the medians.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = 11
IMPORTS = [sys.executable, "-c", "import click, jinja2, msgspec"]
COMMANDS = {
    "import click, jinja2, msgspec": IMPORTS,
    "hpcdist render --nodes 2": [sys.executable, "-m", "hpcdist.cli.main", "render", "--nodes", "2"],
    "hpcdist --help": [sys.executable, "-m", "hpcdist.cli.main", "--help"],
}


def measure(runs: int = RUNS) -> dict[str, list[float]]:
    """Wall-clock seconds of each command, `runs` times, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs + 1):
            for name, command in COMMANDS.items():
                started = time.perf_counter()
                subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
                if number:  # the first round warms the file cache
                    seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Prints the table."""
    seconds = measure()
    reference = statistics.median(seconds["import click, jinja2, msgspec"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {RUNS} runs each")
    print(f"{'command':32} {'median':>8} {'min':>8} {'max':>8} {'ratio':>6}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:32} {middle:7.3f}s {min(values):7.3f}s {max(values):7.3f}s {middle / reference:6.2f}")


if __name__ == "__main__":
    main()
