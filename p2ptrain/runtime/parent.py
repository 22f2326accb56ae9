"""Processes that are of use to the one that started them alone.

Invariant: on Linux such a process ends with its parent, however that one ends. Elsewhere it has to look for itself,
once it has begun.
"""

from __future__ import annotations

import os
import signal
import sys

_PARENT = "P2PTRAIN_PARENT"
_PR_SET_PDEATHSIG = 1


def own_child() -> dict[str, str]:
    """For the environment of a process that calls ``die_with_parent``."""
    return {_PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread dies that started it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ.get(_PARENT, os.getppid())):
        sys.exit("who started this process was gone before it began")
