"""Processes on this machine: started, waited for, ended. The demo, benchmarks, the lab and process tests share it.

Invariant: a process that ``start`` began leads a session of its own, so that it can be ended with all that it started.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

LOOPBACK = "127.0.0.1"
STOP_S = 8.0
LOG_LINES = 15
SLICE_S = 0.008
"""Of a slowed process: for a part of each it runs."""
LOOK_S = 1.0
"""Between two looks at what it has started."""


def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    pass_fds: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Run a command that reads nothing; ``log`` gets what it says, after what is there. ``folder``: where it runs."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until(ready: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.02) -> None:
    """Poll; raises ``TimeoutError`` naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(poll_s)


def stop(processes: Iterable[subprocess.Popen[Any]]) -> None:
    """Ask all to leave, then kill whoever has not, with all that they started."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill it, if it still runs, and all of its session, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def slowed_trainers(speeds: Mapping[int, float]) -> Iterator[None]:
    """What these processes (by id) have started runs for that share of the time only, as on a weaker device.

    They themselves are left alone: a weak device answers, too.
    """
    over = threading.Event()
    threads = [threading.Thread(target=_slow, args=(pid, speed, over), daemon=True) for pid, speed in speeds.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _slow(pid: int, speed: float, over: threading.Event) -> None:
    looked_at, children = -math.inf, list[psutil.Process]()
    while not over.wait(speed * SLICE_S):
        if time.monotonic() - looked_at > LOOK_S:
            looked_at, children = time.monotonic(), with_children(pid)[1:]
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()
        over.wait((1 - speed) * SLICE_S)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()


def kill(processes: Iterable[psutil.Process]) -> None:
    """``kill -9`` of all at once, as a power cut would."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def with_children(pid: int) -> list[psutil.Process]:
    """A process and all that it started, in this order, as far as they run."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def last_lines(log: Path, count: int = LOG_LINES) -> list[str]:
    """The end of a log. Raises ``OSError``."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def log_end(log: Path) -> str:
    """In words; the folder may be gone by the time that somebody wants to look."""
    try:
        lines = last_lines(log)
    except OSError as error:
        return f"its log {log} can't be read ({error.strerror})"
    return "\n  ".join([f"its log {log} ends with", *lines])


_given: set[int] = set()


def free_port() -> int:
    """The first of two ports in a row that nobody has, another one each time.

    By chance, so that others who look for one at the same moment find another; and below those that the system gives
    out, any of which could be given to somebody before it is used.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000, 2)
        if port not in _given and port_is_free(port) and port_is_free(port + 1):
            _given.add(port)
            return port


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
