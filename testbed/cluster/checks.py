"""What must be true before the testbed may touch this machine, and how to make it so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from cluster.layout import Testbed, TestbedError
from cluster.network import bridge_owner
from cluster.processes import MARKER, PATH, attempt, command_name, environment, pids

# Programs that must exist, and the Debian packages that bring them. mariadb-server-core is the server without the
# service: mariadb-server would make a database in /var and start it.
PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "sinfo": "slurm-client",
    "munged": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",  # mariadb-install-db calls it
    "ip": "iproute2",
    "tc": "iproute2",
    "useradd": "passwd",
}
PLUGIN_PACKAGES = ("slurm-wlm-basic-plugins", "slurm-wlm-mysql-plugin")
PACKAGES = sorted({*PROGRAMS.values(), *PLUGIN_PACKAGES})
SLURM_DAEMONS = frozenset({"slurmctld", "slurmd", "slurmdbd"})


def check_root() -> None:
    """Namespaces, device files and mounts need root."""
    if os.geteuid() != 0:
        raise TestbedError("the testbed needs root", "try again with `sudo --preserve-env=TESTBED_DIR`", 2)


def check_programs() -> None:
    """Every program, from the packages that bring them."""
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)})
    if missing:
        raise TestbedError(f"missing packages: {' '.join(missing)}", "testbed/install", 2)


def check_namespaces(testbed: Testbed) -> None:
    """A container may be root and still not allowed any of this."""
    probe = "ip link add hpcdistprobe type veth peer name eth0 && mount -t tmpfs tmpfs /mnt"
    done = attempt(testbed, "unshare", "--net", "--uts", "--mount", "sh", "-c", probe)
    if done.returncode != 0:
        said = (done.stderr.strip() or "no output").splitlines()[-1]
        raise TestbedError(
            f"this machine does not let root make namespaces, cables and mounts: {said}",
            "in a container, start it with --privileged (CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_MKNOD are needed)",
            2,
        )


def check_folder(testbed: Testbed) -> None:
    """`down` deletes the folder, so it must be nobody else's."""
    hint = "set TESTBED_DIR to another folder"
    try:
        foreign = testbed.folder.stat().st_uid != 0 or (any(testbed.folder.iterdir()) and not testbed.mark.exists())
    except FileNotFoundError:
        return
    except OSError as error:
        raise TestbedError(f"{testbed.folder} cannot be used: {error.strerror}", hint, 2) from error
    if foreign:
        raise TestbedError(f"{testbed.folder} exists and is no testbed of root's", hint, 2)


def check_no_foreign_slurm(testbed: Testbed) -> None:
    """Refuse to run beside a Slurm that is not ours, or beside a testbed in another folder."""
    roots = os.environ.get("TESTBED_FOREIGN", "/etc/slurm:/etc/slurm-llnl").split(":")
    for conf in (Path(root) / "slurm.conf" for root in roots):
        if conf.exists():
            raise TestbedError(f"this machine belongs to a Slurm cluster: {conf} exists", "use another machine", 2)
    mine = str(testbed.folder)
    for pid in pids():
        name, owner = command_name(pid), environment(pid).get(MARKER)
        if name in SLURM_DAEMONS and owner and owner != mine:
            _refuse_second_testbed(owner)
        if name in SLURM_DAEMONS and not owner:
            message = f"a {name} that is not the testbed's runs here (pid {pid})"
            raise TestbedError(message, "stop it, or use another machine", 2)
    if (owner := bridge_owner(testbed)) not in (None, "", mine):
        _refuse_second_testbed(str(owner))


def _refuse_second_testbed(folder: str) -> NoReturn:
    raise TestbedError(f"another testbed is up in {folder}", f"TESTBED_DIR={folder} testbed/down", 2)


def check_all(testbed: Testbed) -> None:
    """Everything `up` needs, cheapest first."""
    check_root()
    check_programs()
    check_folder(testbed)
    check_no_foreign_slurm(testbed)
    check_namespaces(testbed)


def install() -> None:
    """Install the packages, and start none of their daemons.

    A policy-rc.d that answers 101 is how Debian is told so (invoke-rc.d(8)); if the machine has one, it stays.
    """
    check_root()
    if not shutil.which("apt-get"):
        raise TestbedError("no apt-get here", f"install what Debian calls {' '.join(PACKAGES)}", 2)
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    try:
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        _apt_get("update", "--quiet")
        _apt_get("install", "--quiet", "--yes", "--no-install-recommends", *PACKAGES)
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def _apt_get(*arguments: str) -> None:
    """Run apt-get away from the terminal, with what it says on stderr."""
    settings = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(
        ["apt-get", *arguments], env=settings, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
    )
    if done.returncode != 0:
        raise TestbedError(f"`apt-get {' '.join(arguments)}` failed", "read its output above, then try again")
