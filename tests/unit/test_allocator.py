"""Freed memory is kept by the process where the C library can be told to."""

import platform
import subprocess
import sys

import pytest

from p2ptrain.runtime import allocator

FAULTS = """
import ctypes, resource, sys
from p2ptrain.runtime import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "kept":
    assert allocator.keep_freed(allocator.NODE_BYTES)
def work():
    for _ in range(20):
        block = libc.malloc(24 << 20)
        ctypes.memset(block, 1, 24 << 20)
        libc.free(block)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_costs_no_page_faults_again() -> None:
    def faults(how: str) -> int:
        environment = {"PATH": "", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # given back at once, whatever came before
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=environment
        )
        return int(done.stdout)

    assert faults("kept") < 200
    assert faults("given back") > 1000


def test_a_fraction_of_what_a_device_has_is_kept_and_nothing_of_little(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(allocator, "keep_freed", lambda at_most: asked.append(at_most) or True)
    for available in (1 << 30, 4 << 30, 64 << 30):
        monkeypatch.setattr(allocator, "available_memory", lambda available=available: available)
        assert allocator.keep_for_training() == allocator.keep_for_messages() == (available > 1 << 30)
    assert asked == [512 << 20, allocator.NODE_BYTES, 1 << 30, allocator.NODE_BYTES]


HELD = """
import ctypes, sys
from p2ptrain.runtime import allocator
allocator.available_memory = lambda: int(sys.argv[1])
assert allocator.keep_for_training() == (int(sys.argv[1]) > allocator.LEAST_AVAILABLE_BYTES)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
libc.free(libc.malloc(8 << 20))  # glibc would now hold what is smaller
before = resident_kb()
blocks = [libc.malloc(size) for _ in range(100) for size in (1 << 20, 4096)]
for block in blocks[::2]:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[::2]:  # what lies between blocks in use
    libc.free(block)
print(resident_kb() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_given_back_at_once_where_there_is_little() -> None:
    def held_kb(available: int) -> int:
        command = [sys.executable, "-c", HELD, str(available)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": ""})
        return int(done.stdout)

    assert held_kb(1 << 30) < 8_000
    assert held_kb(8 << 30) > 80_000
