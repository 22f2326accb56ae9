"""Has the C library keep freed memory for the next allocation, in processes that are ours alone, or give it back.

glibc gives large blocks back to the kernel as soon as they are free, and the next one then costs a page fault for each
4 kB; in a virtual machine that may be 13 us. torch allocates every activation anew and libzmq every message: training
MobileNetV2 at 256 samples a batch spent three quarters of its time on faults, and passing on a message of 2 MB took
six times as long. Other C libraries are left as they are.

The price is memory that is free and not given back: so a trainer keeps but a fraction of what its device has. Where
that is little it does the contrary. Left alone glibc holds blocks of up to 32 MB once it has seen such, and what lies
between blocks in use: some 200 MB of the 1,000 MB that a device had, after the blocks of its model were timed.
"""

from __future__ import annotations

import ctypes
import platform

from p2ptrain.runtime.probe import available_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of ``malloc.h``."""
OLD_LIMIT_BYTES = 32 << 20
"""Of the second, before glibc 2.35."""
NODE_BYTES = 32 << 20
LARGE_BLOCK_BYTES = 128 << 10
"""What glibc begins with."""
TRAINER_SHARE = 1 / 8
"""Of the memory that its device can give it."""
MOST_BYTES = 1 << 30
LEAST_AVAILABLE_BYTES = 4 << 30
"""With less, plans fill a device's memory, and what is kept may be what is missing."""


def keep_freed(at_most_bytes: int) -> bool:
    """Keep so much at the top of the heap, and blocks up to that size in it; whether that could be had."""
    sizes = (at_most_bytes, min(at_most_bytes, OLD_LIMIT_BYTES))
    return _set(M_TRIM_THRESHOLD, at_most_bytes) and any(_set(M_MMAP_THRESHOLD, size) for size in sizes)


def _set(option: int, value: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(option, ctypes.c_int(value)))
    except (OSError, AttributeError):
        return False


def training_bytes() -> int:
    """How much a trainer may keep on this device."""
    available = available_memory()
    return min(MOST_BYTES, round(available * TRAINER_SHARE)) if available >= LEAST_AVAILABLE_BYTES else 0


def keep_for_training() -> bool:
    """In a process that trains, before it does. False: nothing is kept, and large blocks go back as soon as free."""
    size = training_bytes()
    if size == 0:
        _set(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)  # glibc would raise it with every larger block that is freed
        return False
    return keep_freed(size)


def keep_for_messages() -> bool:
    """In a peer's node."""
    return training_bytes() > 0 and keep_freed(NODE_BYTES)
