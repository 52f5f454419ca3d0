"""Slurm jobs for distributed PyTorch: one command from a training script to the right job, measured.

import hpcdist
job = hpcdist.submit(hpcdist.Layout(nodes=2, gpus=1))
job.wait()
print(job.record())
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcdist.config.job import Layout
    from hpcdist.errors import HpcdistError
    from hpcdist.jobs.api import submit
    from hpcdist.jobs.job import Job

__version__ = "0.1.0"
__all__ = ["HpcdistError", "Job", "Layout", "submit"]

_HOMES = {
    "HpcdistError": "hpcdist.errors",
    "Job": "hpcdist.jobs.job",
    "Layout": "hpcdist.config.job",
    "submit": "hpcdist.jobs.api",
}


def __getattr__(name: str) -> Any:
    """Loads the public names when they are first used: importing hpcdist costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hpcdist' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
