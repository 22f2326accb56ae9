"""The hash of a blob, computed while its bytes arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from p2ptrain.ids import BlobId

_PIECE_BYTES = 1 << 20
Read = Callable[[int, int], bytes | memoryview]
"""The bytes from a start to an end, as they were written."""


class ArrivingHash:
    """Tell it each write; bytes that came before others are read again when it is their turn."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """All bytes will be written again."""
        self._digest = hashlib.sha256()
        self._at: int | None = 0
        """Up to here it is hashed; None: something of that was written again, in no order."""
        self._early: list[tuple[int, int]] = []
        """Ranges that are written, and wait for others before them."""

    def written(self, offset: int, data: bytes | memoryview, read: Read) -> None:
        end = offset + len(data)
        if offset == 0:
            self.start_over()
        if self._at is None or offset < self._at:
            self._at = None
        elif offset > self._at:
            self._early.append((offset, end))
        else:
            self._digest.update(data)
            self._at = end
            self._catch_up(read)

    def _catch_up(self, read: Read) -> None:
        while self._at is not None and (ready := [end for start, end in self._early if start <= self._at < end]):
            self._at = self._hash(self._at, ready[0], read)
        self._early = [(start, end) for start, end in self._early if self._at is not None and end > self._at]

    def _hash(self, start: int, end: int, read: Read) -> int:
        for at in range(start, end, _PIECE_BYTES):
            self._digest.update(read(at, min(end, at + _PIECE_BYTES)))
        return end

    def of(self, num_bytes: int, read: Read) -> BlobId:
        """The name of all of them."""
        if self._at is None:
            self.start_over()
        self._at = self._hash(self._at or 0, num_bytes, read)
        return BlobId(self._digest.hexdigest())
