"""An ordinary user of the cluster: a login, an account, a QOS with limits, and a partition that is closed to them."""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

from cluster.layout import STUDENT, STUDENT_ACCOUNT, Testbed, TestbedError
from cluster.processes import attempt, pids, run

# DenyOnLimit: a request beyond them is refused, not left waiting for ever (sacctmgr(1), SPECIFICATIONS FOR QOS).
QOS_LIMITS = ("MaxWall=1:00:00", "MaxTRESPerJob=gres/gpu=4", "Flags=DenyOnLimit")


def account_of(testbed: Testbed) -> pwd.struct_passwd | None:
    """The user as this machine knows them; None where there is none with a home in this testbed."""
    try:
        found = pwd.getpwnam(STUDENT)
    except KeyError:
        return None
    return found if found.pw_dir == str(testbed.home) else None


def add_login(testbed: Testbed) -> None:
    """Make the user and their home, unless they are there. `su - hpcdist-student` is then what ssh is elsewhere."""
    if account_of(testbed) is None:
        # One that is left from a testbed whose folder was deleted by hand.
        attempt(testbed, "userdel", "--force", STUDENT)
        run(testbed, "useradd", "--no-create-home", f"--home-dir={testbed.home}", "--shell=/bin/bash", STUDENT)
    found = pwd.getpwnam(STUDENT)
    testbed.home.mkdir(mode=0o700, exist_ok=True)
    profile = testbed.home / ".profile"
    if not profile.exists():
        # Elsewhere /etc/slurm/slurm.conf says the same.
        profile.write_text(f"export SLURM_CONF={shlex.quote(str(testbed.slurm_conf))}\n")
    for path in (testbed.home, profile):
        os.chown(path, found.pw_uid, found.pw_gid)


def add_account(testbed: Testbed) -> None:
    """Let the user charge an account, within the limits of its QOS."""
    show = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={STUDENT}", "format=account,qos")
    if _has(run(testbed, *show)):
        return
    # Whatever a killed `up` made already is refused, which does not matter: what counts is asked for below.
    for words in (
        ("qos", STUDENT_ACCOUNT, "set", *QOS_LIMITS),
        ("account", STUDENT_ACCOUNT),
        ("user", STUDENT, f"account={STUDENT_ACCOUNT}", f"qos={STUDENT_ACCOUNT}", f"defaultqos={STUDENT_ACCOUNT}"),
    ):
        said = attempt(testbed, "sacctmgr", "--immediate", "add", *words)
    if not _has(run(testbed, *show)):
        why = (said.stderr.strip() or said.stdout.strip() or "no output").splitlines()[-1]
        raise TestbedError(f"sacctmgr did not add {STUDENT}: {why}", "`testbed/down`, then `testbed/up`, starts afresh")


def _has(rows: str) -> bool:
    return f"{STUDENT_ACCOUNT}|{STUDENT_ACCOUNT}" in rows.split()


def processes_of(testbed: Testbed) -> list[int]:
    """What the user runs on this machine."""
    found = account_of(testbed)
    return [pid for pid in pids() if _owner(pid) == found.pw_uid] if found else []


def _owner(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def remove_login(testbed: Testbed) -> None:
    """Remove the user from this machine; their home goes with the testbed's folder.

    `--force`: also while dead processes of theirs wait for a container's lazy init.
    """
    if account_of(testbed) is not None:
        run(testbed, "userdel", "--force", STUDENT)
