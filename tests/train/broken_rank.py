"""The built-in training, whose rank 1 raises in its fifth step, or hangs there where `BROKEN` says so."""

import os
import signal
import sys
import time

from hpcdist.train.__main__ import main
from hpcdist.train.module import Classifier

train_step = Classifier.training_step


def broken_step(self, batch, batch_idx):
    if batch_idx == 4 and os.environ["RANK"] == "1":
        match os.environ.get("BROKEN"):
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "asleep":
                time.sleep(600)
            case _:
                raise ValueError("broken on purpose")
    return train_step(self, batch, batch_idx)


Classifier.training_step = broken_step
sys.exit(main(sys.argv[1:]))
