"""Python runs this at the start of every rank's program (`hpcdist.rank` puts this folder on PYTHONPATH).

Torch's gloo threads drop the tensors of the last collective a moment after it returned. A script that is at its end
by then takes Python's lock away from them for good, and before Python 3.14 such a thread aborts the process
("terminate called without an active exception", https://github.com/pytorch/pytorch/pull/179291): seen in 4 of
70 runs of a two-rank script under bare srun, in 0 of 120 with the pause below. The job would be FAILED though
all its work was done.
"""

import atexit
import os
import sys
import time

PAUSE_S = 0.05  # ten of Python's switch intervals: the threads need the lock once each


def _let_threads_finish() -> None:
    if "torch.distributed" in sys.modules:
        time.sleep(PAUSE_S)


# Registered first, so called last, and still before the interpreter takes the lock for good.
atexit.register(_let_threads_finish)

# Out of the way again: the program's own sitecustomize, if there is one, runs as it would have without this one.
_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]
_this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ImportError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", _this)
