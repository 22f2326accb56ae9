"""What every peer keeps: its own snapshots, and as a replica holder those of others.

Invariant: only what is safe on disk is offered, and a blob that somebody here still waits for is not given up because
somebody else here has stopped waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects, Handler, KeepReplica, KeepSnapshot, MessageHandler
from p2ptrain.core.group_view import GroupView
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.replication.replication import Replication
from p2ptrain.protocol.replication.rules import CancelSnapshot, DiscardSnapshot, FetchSnapshot
from p2ptrain.wire.messages import Message, ReplicaAck, ReplicaOffer, SnapshotRef

NUM_OWN_SNAPSHOTS = 4
"""At most. Two do, unless snapshots are of use only together with others' of the same step."""


def all_but_the_newest(older: Sequence[SnapshotRef]) -> list[SnapshotRef]:
    """Of the own snapshots beside a newer one: one is enough, should that one turn out to be damaged."""
    return list(older[:-1])


class Replicas:
    """Of one peer, in one job. ``is_awaited``: whether somebody else here waits for a blob. ``surplus``: which own
    snapshots are not needed beside a newer one."""

    def __init__(
        self,
        group: GroupView,
        downloads: Downloads,
        replication: Replication,
        own: Sequence[SnapshotRef],
        is_awaited: Callable[[BlobId], bool],
        surplus: Callable[[Sequence[SnapshotRef]], list[SnapshotRef]] = all_but_the_newest,
    ) -> None:
        self.replication = replication
        self._group = group
        self._downloads = downloads
        self._own = list(own)
        self._is_awaited = is_awaited
        self._surplus = surplus
        self.pace: Callable[[SnapshotRef], float] = lambda holding: 0.0
        """Bytes/s at which one is fetched to be kept, where it has time; 0 = as fast as it goes."""
        self._fetches: dict[BlobId, SnapshotRef] = {}
        self._adopting: set[BlobId] = set()
        self.handlers: Mapping[type, Handler] = {
            FetchSnapshot: self._fetch,
            DiscardSnapshot: lambda e, now: [KeepReplica(e.holding, keep=False), *self._group.say_holdings(now)],
            CancelSnapshot: self._cancel,
        }
        self.messages: Mapping[type[Message], MessageHandler] = dict.fromkeys(
            (ReplicaOffer, ReplicaAck), self._received
        )

    @property
    def own(self) -> Sequence[SnapshotRef]:
        """Own snapshots, the newest last."""
        return self._own

    def newest_own(self) -> SnapshotRef | None:
        """The own snapshot that was saved last."""
        return self._own[-1] if self._own else None

    def kept(self) -> tuple[SnapshotRef, ...]:
        """Everything that is here: others' snapshots, then the own ones."""
        return (*self.replication.holder.kept(), *self._own)

    def is_fetching(self, blob: BlobId) -> bool:
        """Whether it is on its way here, to be kept."""
        return blob in self._fetches

    # --- own snapshots ---

    def keep_snapshot(self, holding: SnapshotRef) -> Effects:
        """Save an own snapshot, whose blob is in the store."""
        older = [h for h in self._own if h.blob != holding.blob]
        return [KeepSnapshot(holding, tuple(h.blob for h in self._surplus(older)))]

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """It is safe here; now others get it too. Or the disk refused it."""
        if not saved:
            return []
        self._own = [h for h in self._own if h.blob not in effect.drop]
        return self.offer(effect.holding, now)

    def offer(self, holding: SnapshotRef, now: float) -> Effects:
        """Others may have an own snapshot, as this holding."""
        holding = self._group.made(holding)
        self._own = [*[h for h in self._own if h.blob != holding.blob], holding][-NUM_OWN_SNAPSHOTS:]
        return [*self.replication.owner.saved(holding, now), *self._group.say_holdings(now)]

    # --- others' ---

    def _received(self, sender: PeerId, message: ReplicaOffer | ReplicaAck, now: float) -> Effects:
        if isinstance(message, ReplicaOffer) and not self._group.is_trainers(message.holding):
            raise RemoteError("snapshot-unsigned", f"offered what {message.holding.trainer} did not sign")
        return list(self.replication.received(sender, message))

    def _fetch(self, effect: FetchSnapshot, now: float) -> Effects:
        holding = effect.holding
        if self._downloads.is_local(holding.blob) and not self._downloads.is_passing(holding.blob):
            return [KeepReplica(holding)]
        self._fetches[holding.blob] = holding
        pace = 0.0 if self._is_awaited(holding.blob) else self.pace(holding)
        return self._downloads.fetch(holding.blob, holding.num_bytes, [effect.source], now, bytes_per_s=pace)

    def adopt(self, holding: SnapshotRef) -> Effects:
        """Keep a snapshot that is here already: it was fetched for another reason."""
        if holding.blob in {h.blob for h in self.kept()}:
            return []
        self._adopting.add(holding.blob)
        return [KeepReplica(holding)]

    def replica_kept(self, holding: SnapshotRef, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepReplica``."""
        if holding.blob in self._adopting:
            self._adopting.remove(holding.blob)
            done = self.replication.holder.adopt(holding) if saved else []
        else:
            holder = self.replication.holder
            done = holder.stored(holding) if saved else holder.fetch_failed(holding)
        return [*done, *self._group.say_holdings(now)]

    def _cancel(self, effect: CancelSnapshot, now: float) -> Effects:
        self._fetches.pop(effect.holding.blob, None)
        return [] if self._is_awaited(effect.holding.blob) else self._downloads.cancel(effect.holding.blob, now)

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        """It may be one to keep."""
        holding = self._fetches.get(blob)
        if holding is None:
            return []
        if self._downloads.is_passing(blob):
            return self._downloads.fetch(blob, holding.num_bytes, [holding.trainer], now)
        del self._fetches[blob]
        return [KeepReplica(holding)]

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        """Nobody could deliver it."""
        holding = self._fetches.pop(blob, None)
        return list(self.replication.holder.fetch_failed(holding)) if holding else []

    # --- group and time ---

    def members_changed(self, now: float) -> Effects:
        """Who could keep what."""
        return list(self.replication.members_changed(self._group.parts(), now))

    def epoch_changed(self, epoch: int, now: float) -> Effects:
        """Another plan holds."""
        return list(self.replication.epoch_changed(epoch, now))

    def tick(self, now: float) -> Effects:
        return list(self.replication.tick(now))

    def next_deadline(self) -> float:
        return self.replication.next_deadline()
