"""A run on Weights & Biases."""

import netrc
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from pytorch_lightning.loggers import WandbLogger

WANDB_HOST = "https://api.wandb.ai"
REACH_TIMEOUT_S = 3.0


class RunWandb(WandbLogger):
    """A run on Weights & Biases with the run's name; offline where there is no API key or no way to the server.

    Args:
        folder: The run's folder, or that of its array task; the files go to `wandb/` in it.
    """

    def __init__(self, folder: Path) -> None:
        name = f"{folder.parent.name}-{folder.name}" if folder.name.isdecimal() else folder.name
        if reason := why_offline(os.environ):
            os.environ["WANDB_MODE"] = "offline"
            print(f"wandb: offline, since {reason}; afterwards: wandb sync {folder}/wandb/offline-run-*", flush=True)
        # The same id in every attempt: one run, one curve.
        super().__init__(project=os.environ.get("WANDB_PROJECT", "hpcdist"), name=name, id=name, save_dir=folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes points at their own step: wandb drops those that an earlier attempt had already."""
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)


def why_offline(env: Mapping[str, str]) -> str | None:
    """Why wandb's server is no use; None where it is, or where `WANDB_MODE` decides."""
    if "WANDB_MODE" in env:
        return None
    host = urlsplit(env.get("WANDB_BASE_URL", WANDB_HOST))
    name = host.hostname or ""
    if not env.get("WANDB_API_KEY") and not _has_login(name):
        return "there is no API key (WANDB_API_KEY, or wandb login)"
    if "https" in getproxies():
        return None
    try:
        socket.create_connection((name, host.port or (80 if host.scheme == "http" else 443)), REACH_TIMEOUT_S).close()
    except OSError as error:
        return f"{name} can't be reached from {socket.gethostname()}: {error.strerror or error}"
    return None


def _has_login(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
