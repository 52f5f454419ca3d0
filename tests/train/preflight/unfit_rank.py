"""The built-in training, whose last rank is made unfit: two ranks of one machine can't really differ.

What is faked: the version of Python, a folder that is read-only or behind, the clock, a GPU that can't be used. Real: a
rank that stops.
"""

import os
import platform
import signal
import sys
import tempfile
import time

from hpcdist.errors import NotReadyError
from hpcdist.train import environment
from hpcdist.train.__main__ import main
from hpcdist.train.preflight import checks, rendezvous

FAULT = sys.argv.pop(1)
if FAULT == "absent":
    environment.BY_HAND_ARRIVAL_S = 3.0
# An emulated node has the machine's name; only Slurm gives each its own.
os.environ["SLURMD_NODENAME"] = f"n{int(os.environ['NODE_RANK']) + 1}"
rendezvous.DEADLINE_S = 8.0
checks.VISIBLE_TIMEOUT_S = 1.0


def raise_error(error):
    raise error


def stop(*_):
    os.kill(os.getpid(), signal.SIGSTOP)


def clock(seconds, now=time.time):
    return lambda: now() + seconds


def spoil():
    if FAULT == "python":
        platform.python_version = lambda: "3.9.1"
    elif FAULT == "folder":
        tempfile.TemporaryFile = lambda **_: raise_error(OSError(30, "Read-only file system"))
    elif FAULT == "invisible":
        checks._find_folder_trouble.__globals__["Path"].exists = lambda path: False
    elif FAULT == "gpu":
        checks.choose_device = lambda *_: raise_error(NotReadyError("rank 1 on n2 needs 1 GPU(s) and can use 0"))
    elif FAULT.startswith("clock"):
        time.time = clock(float(FAULT.removeprefix("clock")))
    elif FAULT == "stopped":
        checks.measure_all_reduces = stop
    elif FAULT == "stopped-in-checks":
        checks.hash_code = stop


if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
    spoil()
elif FAULT == "rank0":
    checks.measure_all_reduces = stop
sys.exit(main(sys.argv[1:]))
