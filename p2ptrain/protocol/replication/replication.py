"""Replication: every peer's newest snapshot also lies with others, so that a part survives its trainer.

Responsible for who keeps what for whom. Invariant: once a snapshot has been acknowledged, there is at every moment one
at least as fresh, unless a full store says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2ptrain.ids import PeerId
from p2ptrain.protocol.replication.holder import Holder
from p2ptrain.protocol.replication.owner import Owner
from p2ptrain.protocol.replication.rules import Effect, ReplicationConfig, freshness
from p2ptrain.wire.messages import ReplicaAck, ReplicaOffer, SnapshotRef

_MAX_RECORD_HOLDINGS = 256


class Replication:
    """Both duties of one peer: owner of its snapshot, and holder of others'. ``kept``: over a restart, for others."""

    def __init__(
        self, own_id: PeerId, config: ReplicationConfig | None = None, kept: Iterable[SnapshotRef] = ()
    ) -> None:
        config = config or ReplicationConfig()
        self.owner = Owner(own_id, config)
        self.holder = Holder(own_id, config, kept)

    def holdings(self) -> tuple[SnapshotRef, ...]:
        """For the own record: the own newest snapshot, then what is kept for others, the freshest first."""
        kept = sorted(self.holder.kept(), key=lambda h: (freshness(h), h.part, h.trainer), reverse=True)
        own = [self.owner.snapshot] if self.owner.snapshot is not None else []
        return tuple([*own, *kept][:_MAX_RECORD_HOLDINGS])

    def epoch_changed(self, epoch: int, now: float) -> list[Effect]:
        """A new plan holds. Offers of older epochs are refused from now on; what is kept stays."""
        return [*self.holder.epoch_changed(epoch), *self.owner.choose(now)]

    def members_changed(self, members: Mapping[PeerId, int], now: float) -> list[Effect]:
        """The alive peers that can keep something (no observers), each with the part it trains (or ``NO_PART``)."""
        return [*self.holder.thin_out(), *self.owner.members_changed(members, now)]

    def received(self, sender: PeerId, message: ReplicaOffer | ReplicaAck) -> list[Effect]:
        """A message of ``sender``. Raises ``RemoteError`` when it speaks for somebody else."""
        if isinstance(message, ReplicaOffer):
            return self.holder.offered(sender, message.holding)
        return self.owner.acked(sender, message.blob)

    def tick(self, now: float) -> list[Effect]:
        return self.owner.tick(now)

    def next_deadline(self) -> float:
        return self.owner.next_deadline()
