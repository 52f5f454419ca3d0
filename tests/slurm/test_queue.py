"""Rows of squeue and sacct as statuses."""

import pytest

from hpcdist.slurm.commands import SEPARATOR
from hpcdist.slurm.queue import parse_accounting


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [("COMPLETED", "Dependency", None), ("RUNNING", "Priority", None), ("PENDING", "Dependency", "Dependency")],
)
def test_why_a_job_had_waited_is_no_reason_once_it_started(state, reason, shown):
    row = SEPARATOR.join(["7_0", state, "0:0", "12", "n1", reason, "mnist"])
    (status,) = parse_accounting(row + "\n")
    assert (status.state, status.reason) == (state, shown)
