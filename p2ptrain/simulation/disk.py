"""A device's disk in memory: what the store does, as strict as it, without files."""

from __future__ import annotations

from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.errors import LocalError
from p2ptrain.ids import BlobId, blob_id
from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.wire.messages import SnapshotRef

MAX_PASSING = 64
MAX_BLOB_BYTES = 1 << 24


class SimulatedDisk:
    """One job, its plan, own snapshots, replicas of others' and blobs. It survives its peer."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.plan: Plan | None = None
        self.voted: PlanRef | None = None
        self.own: tuple[SnapshotRef, ...] = ()
        self.replicas: tuple[SnapshotRef, ...] = ()
        self.blobs: dict[BlobId, bytes] = {}
        self.fresh: set[BlobId] = set()
        self.pinned: frozenset[BlobId] = frozenset()
        self.passing: dict[BlobId, bytes] = {}
        self.incoming: dict[BlobId, tuple[bytearray, bool]] = {}

    def keep_vote(self, ref: PlanRef) -> None:
        if self.voted is None or ref.epoch >= self.voted.epoch:
            self.voted = ref

    def opened(self) -> None:
        """As a store is: what is not what it should be is put aside."""
        self.blobs = {blob: data for blob, data in self.blobs.items() if blob_id(data) == blob}
        self.own = tuple(holding for holding in self.own if holding.blob in self.blobs)
        self.replicas = tuple(holding for holding in self.replicas if holding.blob in self.blobs)

    def restarted(self) -> None:
        """What a kill leaves."""
        self.passing.clear()
        self.incoming.clear()
        self.fresh.clear()
        self._collect(frozenset())

    def __contains__(self, blob: object) -> bool:
        return blob in self.blobs or blob in self.passing

    def get(self, blob: BlobId) -> bytes | None:
        return self.passing.get(blob, self.blobs.get(blob))

    def put(self, data: bytes, *, passing: bool = False) -> BlobId:
        blob = blob_id(data)
        (self.passing if passing else self.blobs)[blob] = data
        if not passing:
            self.fresh.add(blob)
        while len(self.passing) > MAX_PASSING:
            del self.passing[next(iter(self.passing))]
        return blob

    def begin(self, blob: BlobId, num_bytes: int, passing: bool) -> None:
        if num_bytes > MAX_BLOB_BYTES:
            raise OSError("no room")
        self.incoming[blob] = (bytearray(num_bytes), passing)

    def write(self, blob: BlobId, offset: int, data: bytes) -> None:
        if blob not in self.incoming:
            raise OSError("not being received")
        memory = self.incoming[blob][0]
        if offset + len(data) > len(memory):
            raise LocalError("more than the blob holds")
        memory[offset : offset + len(data)] = data

    def finish(self, blob: BlobId) -> bool:
        memory, passing = self.incoming.get(blob, (bytearray(), True))
        if blob_id(memoryview(memory)) != blob:
            return False
        del self.incoming[blob]
        self.put(bytes(memory), passing=passing)
        return True

    def release(self, blob: BlobId) -> None:
        self.fresh.discard(blob)
        self._collect(self.pinned)

    def save(self, pinned: frozenset[BlobId], **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.pinned = pinned
        for holding in (*self.own, *self.replicas):
            if holding.blob not in self.blobs:
                raise LocalError(f"the manifest would name {holding}, which is not here")
            self.fresh.discard(holding.blob)
        self._collect(pinned)

    def _collect(self, pinned: frozenset[BlobId]) -> None:
        needed = {h.blob for h in (*self.own, *self.replicas)} | pinned | self.fresh
        self.blobs = {blob: data for blob, data in self.blobs.items() if blob in needed}
