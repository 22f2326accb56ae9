"""Many bytes in an open file without a name, which processes of one device hand each other in place of copies.

Invariant: the file has no name in any folder, so it is gone with the last process that holds it, however that one ends.
Its size never changes once it is made, so what is mapped can be read to its end. Where there is nothing better it is a
file that was deleted when it was opened.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from mmap import ACCESS_COPY, ACCESS_READ, mmap

MAX_WRITE_BYTES = 1 << 30
"""At once: macOS takes less than 2 GiB."""
SHARED_FROM_BYTES = 1 << 20
"""Fewer bytes are copied sooner than mapped, and take no open file."""


class SharedBytes:
    """``num_bytes`` of the file behind ``fd``, which is closed with this object."""

    __slots__ = ("_fd", "_view", "num_bytes")

    def __init__(self, fd: int, num_bytes: int) -> None:
        """Takes over ``fd``. Raises ``OSError`` where the file is shorter; then it is closed."""
        self._fd = fd
        self._view: memoryview | None = None
        self.num_bytes = num_bytes
        if os.fstat(fd).st_size < num_bytes:
            raise OSError(f"a file of less than {num_bytes} bytes")

    @classmethod
    def create(cls, num_bytes: int) -> SharedBytes:
        """Zeros, to be written. Raises ``OSError`` (no file left, no room)."""
        fd = _new_file()
        try:
            os.truncate(fd, num_bytes)
            _keep_size(fd)
        except OSError:
            os.close(fd)
            raise
        return cls(fd, num_bytes)

    def __len__(self) -> int:
        return self.num_bytes

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # the interpreter ends, or it never was whole
            os.close(self._fd)

    @property
    def fd(self) -> int:
        """To hand on; still ours to close."""
        return self._fd

    def write(self, data: bytes | memoryview, offset: int) -> int:
        """Put ``data`` there; where it ends. Raises ``OSError``."""
        return write_all(self._fd, data, offset)

    @property
    def view(self) -> memoryview:
        """All bytes, to be read; valid for as long as anybody has it. Raises ``OSError``."""
        if self._view is None:
            self._view = memoryview(mmap(self._fd, self.num_bytes, access=ACCESS_READ))
        return self._view

    def private(self) -> mmap:
        """All bytes; what is changed in them nobody else sees. Raises ``OSError``."""
        return mmap(self._fd, self.num_bytes, access=ACCESS_COPY)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Put all of ``data`` into a file; where it ends. Raises ``OSError``."""
    rest = memoryview(data).cast("B")
    while rest:
        done = os.pwrite(fd, rest[:MAX_WRITE_BYTES], offset)
        rest, offset = rest[done:], offset + done
    return offset


def shared_or_not(num_bytes: int) -> SharedBytes | None:
    """Room for so many bytes; None where plain memory does as well, or there is nothing to be had."""
    if num_bytes < SHARED_FROM_BYTES:
        return None
    try:
        return SharedBytes.create(num_bytes)
    except OSError:
        return None


def _new_file() -> int:
    if sys.platform == "linux" and hasattr(os, "memfd_create"):  # it was built for a C library that has it
        with contextlib.suppress(OSError):  # an old kernel
            return os.memfd_create("p2ptrain", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _keep_size(fd: int) -> None:
    """Whoever has it can't make it smaller: who reads what is no more there is killed."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError, AttributeError):  # of a plain file, or in a Python that does not know them
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
