"""The system calls that write, and what goes wrong with a disk, in words for a person."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.lasting import sync, sync_folder
from p2ptrain.net.limits import ADVICE
from p2ptrain.wire.shared_bytes import write_all

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FILES = {errno.EMFILE, errno.ENFILE}


class StorageError(UserError):
    """The disk or the quota is full, no file can be opened, or the disk does not work. What was there is still there.

    ``for_now``: this process, or the system, has too many files open; nothing is wrong with the disk.
    """

    def __init__(self, message: str, *, full: bool, for_now: bool = False) -> None:
        super().__init__(message)
        self.full = full
        self.for_now = for_now


class Disk:
    """The system calls that can fail half-way, in one place (so that a test can make them fail)."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        write_all(fd, data, offset)

    def fsync(self, fd: int) -> None:
        sync(fd)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def sync_directory(self, path: Path) -> None:
        sync_folder(path)

    def write_file(self, path: Path, data: bytes | memoryview, *, sync: bool = True) -> None:
        """The whole file anew, whole or not at all: temporary file, sync, rename, sync of the directory.

        Without ``sync`` a loss of power (not of the process) can tear it. Raises ``StorageError``.
        """
        temporary = path.with_name(path.name + ".tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                self.write(fd, data, 0)
                if sync:
                    self.fsync(fd)
            finally:
                os.close(fd)
            self.replace(temporary, path)
            if sync:
                self.sync_directory(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """``error`` in words for a person."""
    if error.errno in _FULL:
        return StorageError(f"{path}: no space left on the device; free some, training goes on meanwhile", full=True)
    reason = error.strerror or str(error)
    if error.errno in _NO_FILES:
        return StorageError(f"{path}: can't be opened ({reason}): {ADVICE}", full=False, for_now=True)
    return StorageError(f"{path}: can't be written ({reason}); check the disk and its permissions", full=False)


def raise_for_now(path: Path, error: OSError) -> None:
    """Raise ``StorageError`` if ``error`` says no more than that too many files are open."""
    if error.errno in _NO_FILES:
        raise storage_error(path, error) from error
