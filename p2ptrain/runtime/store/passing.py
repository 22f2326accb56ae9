"""Blobs that stay in memory for a while: payloads of gossip, and what the head fit needs of others.

Invariant: only what has its hash is read by anybody. All together, what is being received counted in full, they are
never above a bound: the oldest go. Large ones lie where a trainer can map them.
"""

from __future__ import annotations

from collections import OrderedDict

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, blob_id
from p2ptrain.runtime.store.arriving import ArrivingHash
from p2ptrain.runtime.store.disk import StorageError
from p2ptrain.wire.shared_bytes import SharedBytes, shared_or_not

_MAX_SHARED = 64
"""Each takes two open files; more lie in plain memory."""
Data = bytes | bytearray | SharedBytes


def view_of(data: Data) -> memoryview:
    """The bytes, to be read where they are."""
    return data.view if isinstance(data, SharedBytes) else memoryview(data).toreadonly()


class _Incoming:
    """One that is being received."""

    def __init__(self, data: bytearray | SharedBytes) -> None:
        self.data = data
        self.hash = ArrivingHash()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if isinstance(self.data, SharedBytes):
            self.data.write(data, offset)
        else:
            self.data[offset : offset + len(data)] = data
        self.hash.written(offset, data, self.read)

    def read(self, start: int, end: int) -> memoryview:
        return view_of(self.data)[start:end]


class PassingBlobs:
    """One thread writes; any may read what is complete."""

    def __init__(self, bound_bytes: int) -> None:
        self._bound_bytes = bound_bytes
        self._complete: OrderedDict[BlobId, Data] = OrderedDict()
        self._incoming: dict[BlobId, _Incoming] = {}

    def __contains__(self, blob: object) -> bool:
        return blob in self._complete

    def is_incoming(self, blob: BlobId) -> bool:
        return blob in self._incoming

    def num_bytes(self, blob: BlobId) -> int | None:
        data = self._complete.get(blob)
        return None if data is None else len(data)

    def incoming_bytes(self, blob: BlobId) -> int:
        """Size of one being received; 0 if it isn't."""
        return len(self._incoming[blob].data) if blob in self._incoming else 0

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self._complete.values())) + self._receiving_bytes

    @property
    def _receiving_bytes(self) -> int:
        return sum(len(incoming.data) for incoming in self._incoming.values())

    def get(self, blob: BlobId) -> Data | None:
        """All of a complete one."""
        return self._complete.get(blob)

    def read(self, blob: BlobId, offset: int, length: int) -> memoryview | None:
        """A range of a complete one, not copied; ``None`` if it isn't here. Raises ``RemoteError`` outside of it."""
        data = self._complete.get(blob)
        if data is None:
            return None
        if offset < 0 or length < 1 or offset + length > len(data):
            raise RemoteError("range", f"{length} bytes at {offset} of a blob of {len(data)}")
        return view_of(data)[offset : offset + length]

    def put(self, data: bytes | SharedBytes) -> BlobId:
        """Keep ``data``. Raises ``StorageError`` if it alone is above the bound."""
        blob = blob_id(self._mapped(data))
        if blob not in self._complete:
            self._make_room(len(data))
            self._complete[blob] = data
        return blob

    def begin(self, blob: BlobId, num_bytes: int) -> None:
        """Get ready to receive it (again). Raises ``StorageError``."""
        self.abandon(blob)
        self._make_room(num_bytes)
        self._incoming[blob] = _Incoming(self._room(num_bytes))

    def write(self, blob: BlobId, offset: int, data: bytes | memoryview) -> None:
        """Received bytes, where they belong. Raises ``StorageError``; then ``abandon`` it."""
        incoming = self._incoming[blob]
        if offset < 0 or offset + len(data) > len(incoming.data):
            raise LocalError(f"{len(data)} bytes at {offset} of an incoming blob of {len(incoming.data)}")
        try:
            incoming.write(offset, data)
        except OSError as error:
            raise _no_memory(len(data), error) from error

    def finish(self, blob: BlobId) -> bool:
        """All bytes are written: with the right hash it is complete now; if not, write again, or ``abandon`` it."""
        incoming = self._incoming[blob]
        data = incoming.data
        self._mapped(data)  # before anybody reads it, who could do nothing about it if it can't be
        if incoming.hash.of(len(data), incoming.read) != blob:
            incoming.hash.start_over()
            return False
        self.abandon(blob)
        self._make_room(len(data))
        self._complete[blob] = data
        return True

    def abandon(self, blob: BlobId) -> None:
        self._incoming.pop(blob, None)

    def forget(self, blob: BlobId) -> None:
        self._complete.pop(blob, None)

    @staticmethod
    def _mapped(data: Data) -> memoryview:
        try:
            return view_of(data)
        except OSError as error:
            raise _no_memory(len(data), error) from error

    def _room(self, num_bytes: int) -> bytearray | SharedBytes:
        held = [*self._complete.values(), *(incoming.data for incoming in self._incoming.values())]
        num_shared = sum(isinstance(each, SharedBytes) for each in held)
        shared = shared_or_not(num_bytes) if num_shared < _MAX_SHARED else None
        return bytearray(num_bytes) if shared is None else shared

    def _make_room(self, num_bytes: int) -> None:
        receiving = self._receiving_bytes
        if receiving + num_bytes > self._bound_bytes:
            raise StorageError(
                f"{num_bytes} bytes for a while: memory for passing blobs is bounded to {self._bound_bytes}"
                f" ({receiving} being received); choose a smaller model or a larger bound",
                full=True,
            )
        while self.used_bytes + num_bytes > self._bound_bytes:
            self._complete.popitem(last=False)


def _no_memory(num_bytes: int, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(f"{num_bytes} bytes for a while can't be had ({reason}); training goes on without", full=True)
