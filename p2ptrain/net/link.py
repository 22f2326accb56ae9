"""One direction to one neighbour on one lane: a queue bounded in bytes, and the task that drains it into a DEALER.

Invariant: ``put`` never waits. What does not fit pushes out what waited longest: by then its sender has given up on it
and will ask again, while the newest frames are what the other side needs to know.

A link: queued while libzmq (re)connects --> sent --> closed: what still waits is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq.asyncio

BURST_S = 0.1


class TokenBucket:
    """Lets ``bytes_per_s`` through, after a burst of a tenth of a second; without a rate, everything."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def delay_s(self, num_bytes: int, now: float) -> float:
        """Reserve ``num_bytes``: how long to wait before sending them."""
        if not self.bytes_per_s:
            return 0.0
        start = max(self._free_at, now - BURST_S)
        self._free_at = start + num_bytes / self.bytes_per_s
        return max(0.0, start - now)


class Link:
    def __init__(
        self, socket: zmq.asyncio.Socket, max_bytes: int, bucket: TokenBucket, on_sent: Callable[[int], None]
    ) -> None:
        self.queued_bytes = 0
        self._socket = socket
        self._max_bytes = max_bytes
        self._bucket = bucket
        self._on_sent = on_sent
        self._queue: deque[tuple[int, Sequence[bytes | memoryview]]] = deque()
        self._sending = False
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._drain(), name="link")

    def put(self, frames: Sequence[bytes | memoryview]) -> int:
        """Queue a message; how many were pushed out for it (itself, if it alone is too large)."""
        num_bytes = sum(map(len, frames))
        if num_bytes > self._max_bytes:
            return 1
        num_dropped = 0
        while self.queued_bytes + num_bytes > self._max_bytes:
            self.drop_oldest()
            num_dropped += 1
        self._queue.append((num_bytes, frames))
        self.queued_bytes += num_bytes
        self._wake.set()
        return num_dropped

    def drop_oldest(self) -> int:
        """Forget what waited longest; how many bytes that was."""
        num_bytes, _ = self._queue.popleft()
        self.queued_bytes -= num_bytes
        return num_bytes

    @property
    def busy(self) -> bool:
        """Something is not with libzmq yet."""
        return bool(self._queue) or self._sending

    async def close(self, linger_s: float = 0.0) -> None:
        """What libzmq has goes out within ``linger_s``, in the background."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close(linger=round(1000 * linger_s))

    async def _drain(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            num_bytes, frames = self._queue.popleft()
            self.queued_bytes -= num_bytes
            self._sending = True
            # A sleep even of zero seconds lets the loop breathe: a send that succeeds at once does not.
            await asyncio.sleep(self._bucket.delay_s(num_bytes, time.monotonic()))
            await self._socket.send_multipart(frames, copy=False)
            self._sending = False
            self._on_sent(num_bytes)
