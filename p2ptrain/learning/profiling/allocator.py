"""Has the C library keep freed memory for the next allocation, in processes that are ours alone, or give it back.

glibc gives large blocks back to the kernel as soon as they are free, and the next one then costs a page fault for each
4 kB; in a virtual machine that may be 13 us. torch allocates every activation anew and libzmq every message: training
MobileNetV2 at 256 samples a batch spent three quarters of its time on faults, and passing on a message of 2 MB took
six times as long. Other C libraries are left as they are.

So a trainer keeps what it has freed for as long as it trains: its peak is no higher for it, as it will need as much in
the next pass. (With an eighth of the device's memory kept, the front of MobileNetV2 at 64 samples a micro-batch took
300,000 faults a batch of 256, and a third longer.) What is kept between blocks in use, though, adds to the peak; so
where a device has little, large blocks go back at once. Left alone glibc holds blocks of up to 32 MB once it has seen
such, and what lies between: some 200 MB of the 1,000 MB that a device had, after the blocks of its model were timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform

from p2ptrain.learning.profiling.device import available_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of ``mallopt``, as in ``malloc.h``."""
OLD_LIMIT_BYTES = 32 << 20
"""Of the second, before glibc 2.35."""
NODE_BYTES = 32 << 20
LARGE_BLOCK_BYTES = 128 << 10
"""What glibc begins with."""
BLOCK_SHARE = 1 / 8
"""Of the memory that a device can give its trainer: blocks up to that size lie in the heap, which is what is kept."""
MOST_BYTES = 1 << 30
NO_LIMIT = -1
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Of glibc 2.35 and later: ask for pages of 2 MB, where the kernel gives them to who asks."""
LEAST_AVAILABLE_BYTES = 4 << 30
"""With less, plans fill a device's memory, and what is kept may be what is missing."""


def keep_freed(at_most_bytes: int, block_bytes: int) -> bool:
    """Keep so much at the top of the heap, and blocks up to some size in it; whether that could be had."""
    sizes = (block_bytes, min(block_bytes, OLD_LIMIT_BYTES))
    return _set(M_TRIM_THRESHOLD, at_most_bytes) and any(_set(M_MMAP_THRESHOLD, size) for size in sizes)


def settle() -> None:
    """What is there by now stays, such as torch's own modules: no collection looks through it again, which takes a
    sixth of a second of a fast core, seconds of a slow one."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """What was kept for training that is over. Traced modules refer to themselves, so they are garbage to be collected
    first: a model's blocks, and whole stages."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set(option: int, value: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(option, ctypes.c_int(value)))
    except (OSError, AttributeError):
        return False


def kept_block_bytes(available: int | None = None) -> int:
    """The largest block that a trainer keeps on a device with so many bytes (this one, if not given); 0 = it keeps
    nothing."""
    available = available_memory() if available is None else available
    return min(MOST_BYTES, round(available * BLOCK_SHARE)) if available >= LEAST_AVAILABLE_BYTES else 0


def keep_for_training() -> bool:
    """In a process that trains, before it does. False: nothing is kept, and large blocks go back as soon as free."""
    size = kept_block_bytes()
    if size == 0:
        _set(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)  # glibc would raise it with every larger block that is freed
        return False
    return keep_freed(NO_LIMIT, size)


def training_environment(available: int | None = None) -> dict[str, str]:
    """Variables for a process that is to train, as they have to be there when it starts.

    With huge pages its memory grows by one fault for each 2 MB, and MobileNetV2's passes take a tenth less.
    """
    if kept_block_bytes(available) == 0:
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES)))}


def keep_for_messages() -> bool:
    """In a peer's node."""
    return kept_block_bytes() > 0 and keep_freed(NODE_BYTES, NODE_BYTES)
