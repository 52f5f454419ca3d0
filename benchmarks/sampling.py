"""What a rank's watcher takes of the machine for sampling its program once a second.

Programs that sleep, with as many child processes and threads as data loaders and torch have, are sampled for some
seconds each; what is counted is the CPU time of the process that samples. Prints a table.
"""

import os
import platform
import statistics
import subprocess
import sys
import time

import psutil

from hpcdist.launcher.sampling import Sampler

SAMPLES = 20
PROGRAM = """
import subprocess, sys, threading, time
for _ in range(int(sys.argv[1])): subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
for _ in range(int(sys.argv[2])): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("up", flush=True)
time.sleep(60)
"""


def measure(children: int, threads: int) -> list[float]:
    """CPU seconds of each sample of a program with so many children and threads."""
    command = [sys.executable, "-c", PROGRAM, str(children), str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        sampler = Sampler(program.pid, None)
        sampler.sample()  # the first one meets the processes
        taken_s = []
        for _ in range(SAMPLES):
            time.sleep(0.1)
            before_s = time.process_time()
            sampler.sample()
            taken_s.append(time.process_time() - before_s)
        for child in psutil.Process(program.pid).children():
            child.kill()
        program.kill()
    return taken_s


def main() -> None:
    """Prints the table."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {SAMPLES} samples each")
    print(f"{len(psutil.pids())} processes on the machine; a sample is taken once a second")
    print(f"{'program':32} {'median':>9} {'max':>9} {'of a core':>10}")
    for children, threads in ((0, 1), (0, 64), (4, 64), (16, 64)):
        taken_s = measure(children, threads)
        middle_s = statistics.median(taken_s)
        name = f"{children} children, {threads} threads"
        print(f"{name:32} {1e3 * middle_s:6.2f} ms {1e3 * max(taken_s):6.2f} ms {middle_s:10.2%}")


if __name__ == "__main__":
    main()
