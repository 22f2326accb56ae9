"""Freed memory is kept by the process where the C library can be told to."""

import platform
import subprocess
import sys

import pytest

from p2ptrain.learning.profiling import allocator

FAULTS = """
import ctypes, resource, sys
from p2ptrain.learning.profiling import allocator
allocator.available_memory = lambda: 4 << 30
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "kept":
    assert allocator.keep_for_messages()
if sys.argv[1] == "all kept":
    assert allocator.keep_for_training()
def work():
    for _ in range(3):
        blocks = [libc.malloc(24 << 20) for _ in range(int(sys.argv[2]))]
        for block in blocks:
            ctypes.memset(block, 1, 24 << 20)
            libc.free(block)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
trained = faults()
allocator.give_back()
print(trained, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_costs_no_page_faults_again() -> None:
    def faults(how: str, num_blocks: int) -> tuple[int, int]:
        """While working, and once it was given back."""
        environment = {"PATH": "", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # given back at once, whatever came before
        command = [sys.executable, "-c", FAULTS, how, str(num_blocks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        trained, after = map(int, done.stdout.split())
        return trained, after

    assert faults("kept", 1)[0] < 200
    assert faults("kept", 4)[0] > 1000  # a node keeps little
    trained, after = faults("all kept", 24)  # 600 MB, an eighth of the device's memory is 512
    assert trained < 200 and after > 100_000  # each page once
    assert faults("given back", 1)[0] > 1000


def test_blocks_up_to_a_fraction_of_what_a_device_has_are_kept_and_none_of_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator, "keep_freed", lambda *sizes: asked.append(sizes) or True)
    for available in (1 << 30, 4 << 30, 64 << 30):
        monkeypatch.setattr(allocator, "available_memory", lambda available=available: available)
        assert allocator.keep_for_training() == allocator.keep_for_messages() == (available > 1 << 30)
    trainers, nodes = asked[::2], asked[1::2]
    assert trainers == [(allocator.NO_LIMIT, 512 << 20), (allocator.NO_LIMIT, 1 << 30)]
    assert nodes == [(allocator.NODE_BYTES, allocator.NODE_BYTES)] * 2


HELD = """
import ctypes, sys
from p2ptrain.learning.profiling import allocator
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


def test_a_trainer_is_started_with_huge_pages_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "available_memory", lambda: 1 << 30)
    assert allocator.training_environment() == {}
    assert allocator.training_environment(8 << 30).keys() == {"GLIBC_TUNABLES"}  # for another device
    monkeypatch.setattr(allocator, "available_memory", lambda: 8 << 30)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert allocator.training_environment() == {"GLIBC_TUNABLES": allocator.HUGE_PAGES}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")  # what the person set stays
    assert allocator.training_environment() == {"GLIBC_TUNABLES": f"glibc.malloc.check=0:{allocator.HUGE_PAGES}"}
