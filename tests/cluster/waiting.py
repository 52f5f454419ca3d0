"""Waiting for what a cluster does in its own time."""

import time


def eventually(question, timeout_s=60, every_s=0.2):
    """The answer, as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(every_s)
    return answer
