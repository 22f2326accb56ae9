"""A link that delays and loses frames, for kernels without netem: a thread of Python between two TAP interfaces.

Invariant: frames of one direction leave in the order they came, each ``delay_ms`` after it came; what does not fit into
the bounded queue is dropped, as on a real link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST_FRAME = 1 << 16
QUEUE_BYTES = 8 << 20


def open_tap(name: str) -> int:
    """Make a TAP interface in the calling thread's network namespace; it is gone when the descriptor is closed."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


class Relay:
    """A process of its own: the lab's must not be slowed by frames."""

    def __init__(self, near: int, far: int, delay_ms: float, loss: float, seed: int) -> None:
        self._fds = (near, far)
        self._arguments = [str(near), str(far), str(delay_ms / 1e3), str(loss), str(seed)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-S", "-E", str(Path(__file__)), *self._arguments]
        self._process = subprocess.Popen(command, pass_fds=self._fds, stdin=subprocess.PIPE, start_new_session=True)
        for fd in self._fds:
            os.close(fd)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()


class _Direction:
    def __init__(self, source: int, sink: int, delay_s: float, loss: float, rng: random.Random) -> None:
        self.source, self.sink = source, sink
        self._delay_s, self._loss, self._rng = delay_s, loss, rng
        self._queue: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def receive(self) -> None:
        now = time.monotonic()
        try:
            while True:
                frame = os.read(self.source, LARGEST_FRAME)
                if self._rng.random() >= self._loss and self._bytes + len(frame) <= QUEUE_BYTES:
                    self._queue.append((now + self._delay_s, frame))
                    self._bytes += len(frame)
        except BlockingIOError:
            pass

    def release(self) -> float:
        """Send what is due; seconds until the next frame is (a day if there is none)."""
        while self._queue:
            wait_s = self._queue[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            _, frame = self._queue.popleft()
            self._bytes -= len(frame)
            with contextlib.suppress(OSError):  # the interface is down or its queue full: lost
                os.write(self.sink, frame)
        return 86_400.0


def main(near: int, far: int, delay_s: float, loss: float, seed: int) -> None:
    """Relay until standard input closes, which is when the lab ends."""
    rng = random.Random(seed)
    both = [_Direction(near, far, delay_s, loss, rng), _Direction(far, near, delay_s, loss, rng)]
    by_fd = {direction.source: direction for direction in both}
    while True:
        wait_s = min(direction.release() for direction in both)
        readable, _, _ = select.select([*by_fd, 0], [], [], wait_s)
        if 0 in readable:
            return
        for fd in readable:
            by_fd[fd].receive()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
