"""The serving end of blob transfers: whose bytes are read next.

Responsible for fairness between those who fetch. Nothing is read for one whose link has no room for it. Invariant: at
most ``max_reads`` reads are under way (so this many chunks are in memory), at most ``max_queued_per_peer`` wait for
each requester, and requesters take turns. What does not fit is dropped without a word: whoever fetches asks again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from p2ptrain.errors import LocalError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import Send
from p2ptrain.wire.messages import Chunk, Fetch, FetchRefused
from p2ptrain.wire.schema import RawBytes


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Read these bytes for ``to``, then call ``chunk_read``.

    If they aren't there call ``unknown``, if they can't be read for now ``unread``.
    """

    to: PeerId
    blob: BlobId
    offset: int
    length: int


class Serving:
    """Reads for others: a bounded queue each, one read of each in turn, a bounded number of reads at once."""

    def __init__(self, max_reads: int, max_queued_per_peer: int, has_room: Callable[[PeerId], bool]) -> None:
        self._has_room = has_room
        self._max_reads = max_reads
        self._max_queued_per_peer = max_queued_per_peer
        self._queues: OrderedDict[PeerId, deque[Fetch]] = OrderedDict()
        self._reading: dict[tuple[PeerId, BlobId, int], int] = {}
        self.num_dropped = 0

    def asked(self, sender: PeerId, fetch: Fetch) -> list[Send | ReadChunk]:
        queue = self._queues.setdefault(sender, deque())
        if fetch in queue or self._reading.get((sender, fetch.blob, fetch.offset)) == fetch.length:
            return []  # asked again before the answer left
        if len(queue) >= self._max_queued_per_peer:
            self.num_dropped += 1
            return []
        queue.append(fetch)
        return self._pump()

    def chunk_read(self, to: PeerId, blob: BlobId, offset: int, data: RawBytes) -> list[Send | ReadChunk]:
        length = self._reading.pop((to, blob, offset), None)
        if length is None:  # the peer has gone
            return self._pump()
        if length != len(data):
            raise LocalError(f"read {len(data)} bytes at {offset} of blob {blob} in place of {length}")
        return [Send(to, Chunk(blob, offset, data)), *self._pump()]

    def unknown(self, to: PeerId, blob: BlobId) -> list[Send | ReadChunk]:
        self._forget(to, blob)
        return [Send(to, FetchRefused(blob)), *self._pump()]

    def unread(self, to: PeerId, blob: BlobId, offset: int) -> list[Send | ReadChunk]:
        self._reading.pop((to, blob, offset), None)
        self.num_dropped += 1
        return self._pump()

    def peer_gone(self, peer: PeerId) -> list[Send | ReadChunk]:
        self._forget(peer, None)
        return self._pump()

    @property
    def is_waiting(self) -> bool:
        """Somebody's read waits for nothing but room on a link: see again soon (``look``)."""
        return any(self._queues.values()) and len(self._reading) < self._max_reads

    def serves(self, peer: PeerId) -> bool:
        """Whether something that it asked for is not sent yet."""
        return bool(self._queues.get(peer)) or any(to == peer for to, _, _ in self._reading)

    def look(self) -> list[Send | ReadChunk]:
        """A link may have room now."""
        return self._pump()

    def _forget(self, peer: PeerId, blob: BlobId | None) -> None:
        queue = self._queues.pop(peer, deque())
        kept = deque(fetch for fetch in queue if blob is not None and fetch.blob != blob)
        if kept:
            self._queues[peer] = kept
        for key in [key for key in self._reading if key[0] == peer and blob in (None, key[1])]:
            del self._reading[key]

    def _pump(self) -> list[Send | ReadChunk]:
        effects: list[Send | ReadChunk] = []
        for _ in range(sum(map(len, self._queues.values()))):
            if len(self._reading) >= self._max_reads:
                break
            peer, queue = self._queues.popitem(last=False)
            if queue and self._has_room(peer):
                fetch = queue.popleft()
                if (peer, fetch.blob, fetch.offset) in self._reading:
                    queue.append(fetch)  # the same place in another length: after the read under way
                else:
                    self._reading[(peer, fetch.blob, fetch.offset)] = fetch.length
                    effects.append(ReadChunk(peer, fetch.blob, fetch.offset, fetch.length))
            if queue:
                self._queues[peer] = queue
        return effects
