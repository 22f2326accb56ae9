"""What is written lasts through a loss of power, on systems that each ask for it in their own way."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def sync(fd: int) -> None:
    """Until what was written lasts. On macOS that takes a call of its own: ``fsync`` leaves the bytes in the drive's
    memory. Raises ``OSError``."""
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None and fcntl is not None:
        with contextlib.suppress(OSError):  # of a file system that has none, such as another device's
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_folder(path: Path) -> None:
    """Its list of files, where the system and the disk can do that. Raises ``OSError``."""
    if os.name != "posix":
        return  # only POSIX lets a folder be opened
    fd = os.open(path, os.O_RDONLY)
    try:
        sync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
