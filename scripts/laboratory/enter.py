"""Becomes a device's process: moves into its network namespace and cgroups, then turns into the command.

    python -S -E enter.py NAMESPACE_FD ENTRANCE[,ENTRANCE...] COMMAND...

Invariant: the command runs on that device or not at all, and dies with the lab.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1


def entering(namespace_fd: int, entrances: Sequence[Path], command: Sequence[str]) -> list[str]:
    """The command line; start it with ``namespace_fd`` in ``pass_fds``."""
    where = ",".join(str(path) for path in entrances)
    return [sys.executable, "-S", "-E", __file__, str(namespace_fd), where, *command]


def main(namespace_fd: int, entrances: list[str], command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the lab died before
    if libc.setns(namespace_fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(namespace_fd)
    for entrance in entrances:
        with open(entrance, "w") as file:
            file.write("0")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), [path for path in sys.argv[2].split(",") if path], sys.argv[3:])
