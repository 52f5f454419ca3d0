"""What differs between Slurm's releases, and which one this machine has.

A row says from which release on (and until before which) something holds. What a script may do on every release, it
does on all of them; the rows that are not `always` change what is rendered.
"""

import os
import re
from pathlib import Path

import msgspec

from hpcdist.errors import ParseError

Release = tuple[int, int]

# Those that hpcdist was written for; the accounting of each is under test.
OLDEST: Release = (20, 11)
NEWEST: Release = (26, 5)
# Taken where nobody says which release it is: nothing is rendered that it would not understand.
ASSUMED: Release = (22, 5)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something that holds of some releases.

    Attributes:
        name: What `holds` is asked for.
        since: The first release of which it holds.
        until: The first of which it does not any more; None where it still does.
        always: Whether scripts take care of it on every release, since that harms none.
        meaning: What holds.
        care: What the scripts do about it.
        source: Where that is written.
    """

    name: str
    since: Release
    until: Release | None = None
    always: bool = False
    meaning: str
    care: str
    source: str


DIFFERENCES = (
    Difference(
        name="srun-forgets-cpus",
        since=(22, 5),
        until=(23, 11),
        always=True,
        meaning="srun does not take over the job's --cpus-per-task, and gives each task one CPU",
        care="srun --cpus-per-task is written out; on the other releases it says what holds anyway",
        source="Slurm 22.05 release notes: srun no longer reads SLURM_CPUS_PER_TASK; reframe#2655",
    ),
    Difference(
        name="one-cpu-variable",
        since=(23, 11),
        always=True,
        meaning="SLURM_CPUS_PER_TASK and SLURM_TRES_PER_TASK have to say the same, or srun stops",
        care="every srun of a script asks for the job's own CPUs per task; what an outer job set is dropped",
        source="srun(1) of 23.11, --cpus-per-task and --tres-per-task",
    ),
    Difference(
        name="log-folders-are-made",
        since=(23, 2),
        meaning="the folder of --output is made where it is missing, %j and the like included",
        care="the script itself says where its log goes; before, a missing folder failed the job at once (0:53)",
        source="Slurm 23.02 release notes; the failure was run with 22.05.8",
    ),
    Difference(
        name="steps-are-exclusive",
        since=(20, 11),
        always=True,
        meaning="a step shares its resources with no other step unless both say --overlap",
        care="a script's steps run one after the other",
        source="Slurm 20.11 release notes",
    ),
)


def parse_release(text: str) -> Release:
    """Parse year and month of `slurm 22.05.8`, `22.05.8`, `23.11` or `slurm-wlm 22.05.8` (`sbatch -V`).

    Raises:
        ParseError: There is no release in the text.
    """
    found = re.search(r"\b([0-9]{2})\.([0-9]{2})(?![0-9])", text)
    if found is None:
        raise ParseError(f"{text[:80]!r} names no release of Slurm, expected one like slurm 22.05.8")
    return int(found[1]), int(found[2])


def holds(name: str, slurm_version: str | None) -> bool:
    """Return whether a row of the table holds of a release; of an unknown one, whether it does of the assumed one.

    Raises:
        ParseError: The version is none.
    """
    release = ASSUMED if slurm_version is None else parse_release(slurm_version)
    row = next(row for row in DIFFERENCES if row.name == name)
    return row.since <= release and (row.until is None or release < row.until)


# Where Slurm's settings are on a machine that submits: by packages, by its own make install, handed out by sackd.
PLACES = (
    *("/etc/slurm", "/etc/slurm-llnl", "/run/slurm/conf"),
    *("/opt/slurm/etc", "/usr/local/etc", "/usr/local/slurm/etc"),
)


def find_release() -> str | None:
    """Return the release that `sbatch -V` names (`22.05`); None where there is no Slurm, or it does not say.

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
