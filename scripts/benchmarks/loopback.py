"""A loopback interface of our own, so that what crosses it can be counted.

Invariant: leaving the context brings the calling thread back to the network it came from. Processes started inside
stay inside, and reach nothing but each other.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

CLONE_NEWNET = 0x40000000
CURRENT = "/proc/thread-self/ns/net"
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # netdevice(7)


@contextmanager
def own_loopback() -> Iterator[bool]:
    """The calling thread in a network namespace of its own; false where that is not allowed, and nothing changes.

    Threads that already run stay where they are.
    """
    if not sys.platform.startswith("linux"):
        yield False
        return
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    is_own = libc.unshare(CLONE_NEWNET) == 0
    try:
        if is_own:
            _set_up("lo")
        yield is_own
    finally:
        if is_own and libc.setns(home, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(home)


def _set_up(interface: str) -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), IFF_UP))


def bytes_sent() -> int:
    """Over the loopback interface so far, headers and acknowledgements included."""
    return int(psutil.net_io_counters(pernic=True, nowrap=False)["lo"].bytes_sent)
