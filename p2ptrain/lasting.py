"""What is written lasts through a loss of power, on systems that each ask for it in their own way."""

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


def sync(fd: int) -> None:
    """Until what was written lasts. On macOS that takes a call of its own: ``fsync`` leaves the bytes in the drive's
    memory. Raises ``OSError``."""
    if (full := getattr(fcntl, "F_FULLFSYNC", None)) is not None and fcntl is not None:
        with contextlib.suppress(OSError):  # of a file system that has none, such as another device's
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_folder(path: Path, sync: Callable[[int], None] = sync) -> None:
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


@contextlib.contextmanager
def in_place_of(path: Path, *, mode: int = 0o666, take: Callable[[Path, Path], object] = os.replace) -> Iterator[Path]:
    """An empty file beside ``path`` to write to: at the end all of it takes its place. After an error it is gone, and
    what was at ``path`` is still there.

    ``mode``: of the new file, less the umask. ``take(file, path)`` gives it its name. Raises ``OSError``.
    """
    beside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield beside
        with beside.open("r+b") as file:
            sync(file.fileno())
        take(beside, path)
        with contextlib.suppress(OSError):  # some network drives can't, nor who may write into a folder and not list it
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
