"""Files that are whole or absent, also after a crash."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Writes a file under a temporary name beside it, then renames it into place.

    Args:
        path: The file.
        data: Its whole content.
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
