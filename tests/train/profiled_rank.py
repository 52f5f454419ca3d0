"""The built-in training under torch's profiler; its events go to `<rank>.trace` in the run's folder."""

import os
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from hpcdist.train import fit as trainer
from hpcdist.train.__main__ import main

fit = trainer.fit


def profiled_fit(*arguments, **named):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        fit(*arguments, **named)
    profiler.export_chrome_trace(str(Path(os.environ["HPCDIST_RUN_DIR"], f"{os.environ['RANK']}.trace")))


trainer.fit = profiled_fit
sys.exit(main(sys.argv[1:]))
