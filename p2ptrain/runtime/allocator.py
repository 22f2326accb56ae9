"""Has the C library keep freed memory for the next allocation, in processes that are ours alone.

glibc gives large blocks back to the kernel as soon as they are free, and the next one then costs a page fault for each
4 kB. libzmq allocates every message anew, torch every activation: passing on a message of 2 MB takes six times as
long for it, and training some percent more. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of ``malloc.h``."""
LARGEST_BYTES = 32 << 20
"""Larger blocks are still given back at once; glibc takes no higher limit than this."""

NODE_BYTES = 32 << 20
TRAINER_BYTES = 128 << 20


def keep_freed(at_most_bytes: int) -> bool:
    """Keep so much at the top of each heap; whether that could be had."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        libc = ctypes.CDLL(None)
        kept = libc.mallopt(M_TRIM_THRESHOLD, ctypes.c_int(at_most_bytes))
        return bool(kept and libc.mallopt(M_MMAP_THRESHOLD, ctypes.c_int(LARGEST_BYTES)))
    except (OSError, AttributeError):
        return False
