"""Lightning, logging and measuring must not cost the training its speed."""

import contextlib
import io

import torch

from benchmarks.throughput import Contest, compare, median_ratio


def test_built_in_training_keeps_four_fifths_of_a_raw_loop(mnist_dir):
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        built_in, raw = compare(Contest(mnist_dir, batch_size=128, steps=80), repeats=7)
    assert median_ratio(built_in, raw) >= 0.8, (built_in, raw)
