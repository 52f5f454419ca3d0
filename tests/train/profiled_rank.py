"""The built-in training under torch's profiler; its events go to `<rank>.trace` in the run's folder."""

import os
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from hpcdist.train import fit as trainer
from hpcdist.train.__main__ import main
from hpcdist.train.exchange import Exchange

fit, all_reduce = trainer.fit, Exchange.all_reduce


def profiled_fit(*arguments, **named):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        fit(*arguments, **named)
    profiler.export_chrome_trace(str(Path(os.environ["HPCDIST_RUN_DIR"], f"{os.environ['RANK']}.trace")))


def marked_all_reduce(*arguments):
    with record_function("all-reduce"):
        all_reduce(*arguments)


trainer.fit, Exchange.all_reduce = profiled_fit, marked_all_reduce
sys.exit(main(sys.argv[1:]))
