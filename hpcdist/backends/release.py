"""Slurm's release on this machine. Apart from the rest, since every render asks: subprocess alone takes longer."""

import os
from pathlib import Path

from hpcdist.errors import ParseError
from hpcdist.releases import parse_release

# Where Slurm's settings are on a machine that submits: by packages, by its own make install, handed out by sackd.
PLACES = (
    "/etc/slurm",
    "/etc/slurm-llnl",
    "/run/slurm/conf",
    "/opt/slurm/etc",
    "/usr/local/etc",
    "/usr/local/slurm/etc",
)


def find_release() -> str | None:
    """The release that `sbatch -V` names (`22.05`); None where there is no Slurm, or it does not say.

    It is only asked where Slurm is set up: elsewhere it would look for its settings in the network, and fail.
    """
    if not os.environ.get("SLURM_CONF") and not any(Path(place, "slurm.conf").exists() for place in PLACES):
        return None
    reader, writer = os.pipe()
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 2)]
    try:
        child = os.posix_spawnp(
            "sbatch", ["sbatch", "-V"], os.environ, file_actions=[*nothing, (os.POSIX_SPAWN_DUP2, writer, 1)]
        )
    except OSError:
        os.close(reader)
        return None
    finally:
        os.close(writer)
    with os.fdopen(reader, errors="replace") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    try:
        year, month = parse_release(said)
    except ParseError:
        return None
    return f"{year:02}.{month:02}"
