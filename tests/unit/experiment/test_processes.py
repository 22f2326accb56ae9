"""Processes of a group: what they say is kept, all that they started ends with them, ports are free."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from p2ptrain.experiment import processes
from p2ptrain.experiment.processes import LOOPBACK, free_port, port_is_free, wait_until

READY_S = 60.0
PARENT = """
import signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def parent(log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A process that has started another one, and that one."""
    process = processes.start([sys.executable, "-c", PARENT, *arguments], log, dict(os.environ))
    try:
        wait_until(lambda: log.read_bytes().endswith(b"\n"), READY_S, "a child")
        yield process, psutil.Process(int(log.read_text().split()[-1]))
    finally:
        processes.end(process)


def is_gone(process: psutil.Process) -> bool:
    """Whoever inherited it may have yet to take note."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("arguments", [(), ("deaf",)])
def test_whoever_is_stopped_ends_with_all_that_it_started(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.5)
    with parent(tmp_path / "log", *arguments) as (process, child):
        processes.stop([process])
        assert process.poll() is not None
        wait_until(lambda: is_gone(child), READY_S, "the child's end")
    assert is_gone(child)


def test_a_kill_takes_the_children_too(tmp_path: Path) -> None:
    with parent(tmp_path / "log") as (process, child):
        found = processes.with_children(process.pid)
        assert [other.pid for other in found] == [process.pid, child.pid]
        processes.kill(found)
        assert process.wait(READY_S) != 0
        wait_until(lambda: is_gone(child), READY_S, "the child's end")
    assert processes.with_children(process.pid) == []


def test_a_log_is_added_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        assert processes.start([sys.executable, "-c", f"print('{word}')"], log, dict(os.environ)).wait(READY_S) == 0
    assert processes.last_lines(log) == ["one", "two"] and processes.last_lines(log, 1) == ["two"]
    assert processes.log_end(log).endswith("one\n  two")
    assert "can't be read" in processes.log_end(tmp_path / "none")


def test_who_waits_in_vain_says_for_what() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"rain: not within 0\.05 s"):
        wait_until(lambda: False, 0.05, "rain", poll_s=0.01)
    assert time.monotonic() - start >= 0.05


def test_ports_are_given_out_once_and_two_in_a_row() -> None:
    given = [free_port() for _ in range(20)]
    assert len({own for port in given for own in (port, port + 1)}) == 40
    first = given[0]
    with socket.create_server((LOOPBACK, first)):
        assert not port_is_free(first) and port_is_free(first + 1)
