"""What only Linux has is only asked for where it is known to be Linux, or to be there: macOS has none of it.

Names are looked for in the code, as a system that lacks them is not here; what goes on without them is tried where it
stands (``test_shared_bytes``, ``test_disk``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2ptrain

PACKAGE = Path(p2ptrain.__file__).parent
LINUX = {
    "os": "memfd_create MFD_CLOEXEC MFD_ALLOW_SEALING eventfd sched_getaffinity sched_setaffinity sched_setscheduler "
    "posix_fadvise posix_fallocate splice copy_file_range getrandom setns unshare pidfd_open fdatasync pipe2 O_TMPFILE "
    "O_DIRECT O_PATH O_NOATIME getxattr setxattr listxattr getresuid setresuid POSIX_FADV_DONTNEED",
    "socket": "TCP_INFO TCP_USER_TIMEOUT TCP_QUICKACK TCP_CORK SO_BINDTODEVICE SO_PEERCRED MSG_CMSG_CLOEXEC "
    "MSG_ERRQUEUE MSG_NOSIGNAL IP_MULTICAST_ALL IP_RECVERR AF_NETLINK AF_PACKET SOCK_CLOEXEC SOCK_NONBLOCK",
    "signal": "sigwaitinfo sigtimedwait pidfd_send_signal SIGRTMIN SIGRTMAX SIGPWR SIGSTKFLT SIGPOLL",
    "fcntl": "F_ADD_SEALS F_GET_SEALS F_SEAL_SHRINK F_SEAL_GROW F_SEAL_SEAL F_SETPIPE_SZ F_NOTIFY F_OFD_SETLK",
    "mmap": "MAP_POPULATE MAP_NORESERVE MADV_HUGEPAGE MADV_DONTFORK MADV_REMOVE",
    "select": "epoll EPOLLIN EPOLLOUT",
    "resource": "prlimit RLIMIT_RTPRIO RLIMIT_SIGPENDING RLIMIT_MSGQUEUE",
    "psutil": "sensors_temperatures sensors_fans RLIMIT_NOFILE",
}
"""By module, names that macOS lacks."""
NAMES = re.compile("|".join(rf"\b{module}\.(?:{'|'.join(names.split())})\b" for module, names in LINUX.items()))
ASKED = ("sys.platform", "hasattr(", "getattr(", "AttributeError", "UNTOLD")
"""What a piece of code says that knows of it; the last is a list of errors that are caught."""


def careless(text: str) -> Iterator[str]:
    """Names of Linux alone in functions, or statements at the top of a module, that do not ask if they are there."""
    if not NAMES.search(text):
        return
    lines, pieces = text.splitlines(), list[ast.stmt]()
    for node in ast.parse(text).body:
        pieces += node.body if isinstance(node, ast.ClassDef) else [node]
    for piece in pieces:
        said = "\n".join(lines[piece.lineno - 1 : piece.end_lineno])
        if not any(word in said for word in ASKED):
            yield from (f"{found[0]}, below line {piece.lineno}" for found in NAMES.finditer(said))


def test_names_of_linux_alone_are_asked_for_first() -> None:
    found = {str(path.relative_to(PACKAGE)): list(careless(path.read_text("utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("import os\ndef f():\n    return os.memfd_create('x')", 1),
        ("import os, sys\ndef f():\n    return os.memfd_create('x') if sys.platform == 'linux' else 0", 0),
        ("import socket\nINFO = socket.TCP_INFO", 1),
        (
            "class A:\n    def f(self):\n        os.sched_getaffinity(0)\n    def g(self):\n        getattr(1, 2)",
            1,
        ),
    ],
)
def test_a_careless_one_would_be_seen(text: str, number: int) -> None:
    assert len(list(careless(text))) == number


def test_no_file_of_linux_is_opened_without_a_word() -> None:
    """Files below /proc and /sys are read by what takes their absence for an answer. ``outputs`` opens none: it only
    knows names of standard output that a person may give."""
    reads = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "/proc" in (text := path.read_text("utf-8")) or "/sys/" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(("/proc", "/sys/"))
    }
    known = {"runtime/doctor/device.py", "learning/profiling/device.py", "cli/shared/outputs.py"}
    assert reads <= known, "each has a test without them"
