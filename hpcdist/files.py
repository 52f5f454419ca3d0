"""Files that are whole or absent, also after a crash."""

import errno
import fcntl
import os
import secrets
from pathlib import Path

# What flock(2) says on file systems that lock nothing: Lustre mounted without flock, some NFS and FUSE.
_CANNOT_LOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})


def write_atomically(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file under a temporary name beside it, then rename it into place.

    Args:
        durable: Whether to wait until it is on disk; False suits files that are rewritten every second.

    Raises:
        OSError: The disk is full or read-only; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def lock_file(descriptor: int, *, wait: bool = True) -> bool | None:
    """Hold an open file against other processes until it is closed.

    Args:
        wait: Whether to wait while another process holds it.

    Returns:
        Whether it is held; False only where another process holds it and `wait` is off. None where the file system
        locks nothing: everything goes on all the same there, since no job could be sent otherwise.

    Raises:
        OSError: It can't be locked for another reason.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None
    return True
