"""What a simulated peer wants of its device's disk, carried out: all work takes equally long, and so comes in order.

Invariant: an answer goes to the peer that asked, and to none that was started in its place since.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from p2ptrain.core.effects import (
    AbandonBlob,
    BeginBlob,
    ForgetBlob,
    KeepPlan,
    KeepReplica,
    KeepResult,
    KeepSnapshot,
    ReadResult,
    ReleaseBlob,
    VerifyBlob,
)
from p2ptrain.core.replicas import NUM_OWN_SNAPSHOTS
from p2ptrain.ids import BlobId
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.consensus.ballot import KeepVote
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.simulation.disk import SimulatedDisk
from p2ptrain.wire.messages import SnapshotRef

DISK_S = 0.002
Work = Callable[[], Iterable[object]]
"""Gives what the peer wants done then."""


class DiskWork:
    """``core``: the peer that runs; ``now``: its clock; ``later``: does work after some seconds, if that peer still
    runs then; ``served``: what becomes of what others read."""

    def __init__(
        self,
        disk: SimulatedDisk,
        core: Callable[[], Peer],
        now: Callable[[], float],
        later: Callable[[float, Work], None],
        served: Callable[[bytes], bytes],
    ) -> None:
        self._disk, self._core, self._now, self._later, self._served = disk, core, now, later, served
        self.handlers: Mapping[type, Callable[[Any], None]] = {
            BeginBlob: lambda e: self._incoming(e.blob, lambda: disk.begin(e.blob, e.num_bytes, e.ephemeral)),
            WriteChunk: lambda e: self._incoming(e.blob, lambda: disk.write(e.blob, e.offset, bytes(e.data))),
            AbandonBlob: lambda e: self.do(lambda: disk.incoming.pop(e.blob, None)),
            ForgetBlob: lambda e: self.do(lambda: disk.passing.pop(e.blob, None)),
            ReleaseBlob: lambda e: self.do(lambda: disk.release(e.blob)),
            VerifyBlob: lambda e: self.do(
                lambda: disk.finish(e.blob), lambda sound: core().blob_checked(e.blob, bool(sound), now())
            ),
            ReadChunk: lambda e: self.do(lambda: self._read(e), lambda data: core().chunk_read(e, data, now())),
            KeepSnapshot: self._keep_snapshot,
            KeepReplica: self._keep_replica,
            KeepPlan: lambda e: self._save(lambda: {"plan": e.plan}, lambda: []),
            KeepVote: lambda e: self.do(lambda: disk.keep_vote(e.ref), lambda _: core().vote_kept(e.ref, True, now())),
            KeepResult: self._keep_result,
            ReadResult: lambda e: self.do(
                lambda: disk.get(e.holding.blob) or b"", lambda data: core().result_kept(e.holding, data, now())
            ),
        }
        """By the kind of effect."""

    def do(self, work: Callable[[], Any], then: Callable[[Any], Iterable[object]] = lambda _: ()) -> None:
        """Some work on the disk, and what comes of it."""
        self._later(DISK_S, lambda: then(work()))

    def _read(self, effect: ReadChunk) -> bytes | None:
        data = self._disk.get(effect.blob)
        if data is None or effect.offset + effect.length > len(data):
            return None
        return self._served(data[effect.offset : effect.offset + effect.length])

    def _incoming(self, blob: BlobId, work: Callable[[], None]) -> None:
        def tried() -> str:
            try:
                work()
            except OSError as error:
                return str(error)
            return ""

        self.do(tried, lambda error: self._core().blob_refused(blob, error, self._now()) if error else ())

    def _keep_snapshot(self, effect: KeepSnapshot) -> None:
        gone = (*effect.drop, effect.holding.blob)
        self._save(
            lambda: {"own": self._own_with(effect.holding, gone)},
            lambda: self._core().snapshot_kept(effect, True, self._now()),
        )

    def _own_with(self, holding: SnapshotRef, gone: Collection[str]) -> tuple[SnapshotRef, ...]:
        """As the store keeps them."""
        return (*(h for h in self._disk.own if h.blob not in gone), holding)[-NUM_OWN_SNAPSHOTS:]

    def _keep_replica(self, effect: KeepReplica) -> None:
        def change() -> dict[str, object]:
            others = tuple(h for h in self._disk.replicas if h != effect.holding)
            return dict(replicas=(*others, effect.holding) if effect.keep else others)

        def then() -> Iterable[object]:
            return self._core().replica_kept(effect.holding, True, self._now()) if effect.keep else ()

        self._save(change, then)

    def _keep_result(self, effect: KeepResult) -> None:
        def save() -> None:
            self._disk.put(effect.data)
            self._disk.save(frozenset(), replicas=(*self._disk.replicas, effect.holding))

        self.do(save, lambda _: self._core().result_kept(effect.holding, effect.data, self._now()))

    def _save(self, change: Callable[[], dict[str, object]], then: Work) -> None:
        role = self._core().role
        pinned = role.replicas.replication.owner.pinned() if role else frozenset()
        self.do(lambda: self._disk.save(pinned, **change()), lambda _: then())
