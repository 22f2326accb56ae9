"""What a peer's own trainer has made at the end of a round, as the others hear of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from p2ptrain.core.effects import Effects, ReleaseBlob
from p2ptrain.core.group_view import GroupView
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.split.commands import PieceMade, UpdateMade
from p2ptrain.protocol.machine import Send
from p2ptrain.wire.messages import Records, SnapshotRef


class OwnUpdate:
    """Of one round at a time: it goes into the average, or never will."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._ref: SnapshotRef | None = None

    def holdings(self) -> tuple[SnapshotRef, ...]:
        """For the own record."""
        return (self._ref,) if self._ref is not None else ()

    def made(self, event: UpdateMade, blob: BlobId, num_bytes: int) -> SnapshotRef:
        """It is in the store."""
        self._ref = own_ref(event, self._group.own_id, blob, num_bytes, "update")
        return self._ref

    def drop(self, now: float) -> Effects:
        """Nobody needs it any more."""
        ref, self._ref = self._ref, None
        return [] if ref is None else [ReleaseBlob(ref.blob), *self._group.say_holdings(now)]


def own_ref(
    event: UpdateMade | PieceMade, own: PeerId, blob: BlobId, num_bytes: int, kind: Literal["part", "update"]
) -> SnapshotRef:
    """Of what the own trainer made. A step is a round here."""
    return SnapshotRef(
        part=event.part,
        trainer=own,
        epoch=event.epoch,
        round=event.round,
        step=event.round,
        samples=event.samples,
        blob=blob,
        num_bytes=num_bytes,
        span=event.span,
        kind=kind,
    )


def tell(group: GroupView, peers: Iterable[PeerId]) -> Effects:
    """What this peer has, at once: they wait for it, and by hearsay it takes a second."""
    alive = set(group.alive())
    return [Send(peer, Records((group.own,))) for peer in peers if peer in alive]
