"""Becomes a device's process: moves into its network namespace, its cgroups and onto its cores, then becomes a command.

    python -S -E enter.py NAMESPACE_FD ENTRANCE[,ENTRANCE...] [CPU,...] COMMAND...

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


def entering(namespace_fd: int, entrances: Sequence[Path], cpus: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command line; start it with ``namespace_fd`` in ``pass_fds``. No ``cpus``: any."""
    where, on = ",".join(map(str, entrances)), ",".join(map(str, cpus))
    return [sys.executable, "-S", "-E", __file__, str(namespace_fd), where, on, *command]


def main(namespace_fd: int, entrances: list[str], cpus: list[int], command: list[str]) -> None:
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
    if cpus:
        os.sched_setaffinity(0, cpus)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        [path for path in sys.argv[2].split(",") if path],
        [int(cpu) for cpu in sys.argv[3].split(",") if cpu],
        sys.argv[4:],
    )
