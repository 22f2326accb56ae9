"""Output that nobody waits for: a thread writes it, from a queue that is bounded.

Invariant: ``put`` never waits and never raises, whatever becomes of the disk, the terminal or the pipe behind it. What
can't be written, or no longer fits into the queue, is counted in ``lost``.

    put --> queue --thread--> write, or lost    (a writer that hangs is left behind when the process ends)
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

MAX_WAITING = 4096
CLOSE_S = 2.0
"""What waits at the end has so long to be written."""


class Outlet:
    def __init__(self, name: str, max_waiting: int = MAX_WAITING) -> None:
        self.lost = 0
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, write: Callable[[], object]) -> None:
        """Call ``write`` in the thread. If it raises, what it would have written is lost."""
        try:
            self._waiting.put_nowait(write)
        except queue.Full:
            self.lost += 1

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until all that was put so far is written; False if that took too long."""
        done = threading.Event()
        try:
            self._waiting.put(done.set, timeout=timeout_s)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def close(self) -> bool:
        """Write what waits; False if that took too long, and the thread is left behind."""
        written = self.flush()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        return written

    def _work(self) -> None:
        while (write := self._waiting.get()) is not None:
            try:
                write()
            except (OSError, ValueError):  # ValueError: closed, or letters that the terminal has not
                self.lost += 1


class Aside(io.TextIOBase):
    """A text stream that is written by an outlet's thread, past any lock that would hold up the end of the process."""

    def __init__(self, stream: TextIO, outlet: Outlet) -> None:
        self._stream = stream
        self._fd = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._outlet = outlet

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def lost(self) -> int:
        """What was printed, here or on a stream beside it, and was read by nobody."""
        return self._outlet.lost

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode(self._encoding, "replace")
        self._outlet.put(lambda: _write_all(self._fd, data))
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def output_aside() -> Iterator[None]:
    """Within, nothing that is printed can hold up or end this process. Streams without a file stay as they are."""
    outlet, before = Outlet("console"), (sys.stdout, sys.stderr)
    aside = []
    for stream in before:
        try:
            stream.flush()
            aside.append(Aside(stream, outlet))
        except (AttributeError, OSError, ValueError):
            aside.append(stream)  # type: ignore[arg-type]
    sys.stdout, sys.stderr = aside
    try:
        yield
    finally:
        outlet.close()
        if (sys.stdout, sys.stderr) == tuple(aside):
            sys.stdout, sys.stderr = before
