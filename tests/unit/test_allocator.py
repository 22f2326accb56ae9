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
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
blocks = [libc.malloc(100_000) for _ in range(1000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[:-1]:  # what lies below a block in use stays
    libc.free(block)
before = resident_kb()
allocator.give_back()
print(before - resident_kb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_free_is_given_back_where_there_is_little() -> None:
    def returned_kb(available: int) -> int:
        command = [sys.executable, "-c", HELD, str(available)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": ""})
        return int(done.stdout)

    assert returned_kb(1 << 30) > 80_000
    assert returned_kb(8 << 30) < 8_000
