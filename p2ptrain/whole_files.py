"""Files that are written whole or not at all, and last through a loss of power.

Invariant: what a path holds stays until all of what takes its place is on the disk; nothing else is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def in_place_of(path: Path, *, mode: int = 0o666, take: Callable[[Path, Path], object] = os.replace) -> Iterator[Path]:
    """An empty file beside ``path`` to write to. At the end it takes its place; after an error it is gone.

    ``mode``: of a new file, less the umask. ``take(file, path)`` gives it its name. Raises ``OSError``.
    """
    beside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield beside
        fd = os.open(beside, os.O_RDWR)
        try:
            sync(fd)
        finally:
            os.close(fd)
        take(beside, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def sync(fd: int) -> None:
    """Until it lasts through a loss of power. On macOS that takes a call of its own: ``fsync`` leaves the bytes in the
    drive's memory."""
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None and fcntl is not None:
        with contextlib.suppress(OSError):  # of a file system that has none, such as another device's
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_folder(folder: Path, sync: Callable[[int], None] = sync) -> None:
    """So that the names in it last, too. Some systems and disks can't do that for folders."""
    if os.name != "posix":
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write into it, and not list it
        return
    try:
        sync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
