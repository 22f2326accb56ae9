"""The end of a round, as one peer takes part in it: its own update, and the average where this peer makes it.

Invariant: an update is announced once it is in the store, and let go of when its round is averaged, or never will be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects, ReleaseBlob
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.split.commands import PieceMade, UpdateDrawnIn, UpdateMade
from p2ptrain.modes.split.plan import body_of
from p2ptrain.modes.split.rounds.averaging import Averaging
from p2ptrain.modes.split.rounds.saved import SavedStates
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import Records, SnapshotRef


class RoundEnd:
    """Of one round at a time."""

    def __init__(self, group: GroupView, downloads: Downloads, saved: SavedStates) -> None:
        self.averaging = Averaging(group, downloads)
        self._group = group
        self._saved = saved
        self._update: SnapshotRef | None = None

    def holdings(self) -> tuple[SnapshotRef, ...]:
        """For the own record."""
        return (self._update,) if self._update is not None else ()

    def _averages(self, plan: Plan) -> bool:
        return body_of(plan).averager == self._group.own_id

    def missing(self, plan: Plan) -> list[PeerId]:
        """Whose updates this peer waits for, to average them."""
        return self.averaging.missing() if self._averages(plan) else []

    def begin(self, plan: Plan, round: int, now: float) -> Effects:
        """The round is trained at whose end ``round`` rounds are over."""
        return self.averaging.begin(plan.epoch, round, list(plan.trainers()), now) if self._averages(plan) else []

    def stop(self, now: float) -> Effects:
        """The round is averaged, or never will be."""
        update, self._update = self._update, None
        effects = self.averaging.stop(now)
        return effects if update is None else [*effects, ReleaseBlob(update.blob), *self._group.say_holdings(now)]

    def update_made(self, plan: Plan, event: UpdateMade, blob: BlobId, num_bytes: int, now: float) -> Effects:
        """The own update is in the store."""
        self._update = self._ref(event, blob, num_bytes, "update")
        if self._averages(plan):
            return self.averaging.own_made(self._update, now)
        return [*self._group.say_holdings(now), *self._tell([body_of(plan).averager])]

    def piece_made(self, plan: Plan, event: PieceMade, blob: BlobId, num_bytes: int) -> Effects:
        """A piece of the average is in the store."""
        if event.epoch != plan.epoch or not self._averages(plan):
            return [ReleaseBlob(blob)]
        effects = self._saved.keep(self._ref(event, blob, num_bytes, "part"))
        return effects if self._saved.is_kept(blob) else [*effects, ReleaseBlob(blob)]

    def drawn_in(self, event: UpdateDrawnIn, now: float) -> Effects:
        """A peer's update counted in part."""
        name, counted = self._group.name_of(PeerId(event.peer)), round(event.counted, 4)
        fields = (("peer", event.peer), ("name", name), ("round", event.round), ("counted", counted))
        return [Note("drawn-in", fields)]

    def piece_kept(self, plan: Plan, piece: SnapshotRef) -> Effects:
        """It is safe here. All wait until the averager has made all of its state, and another peer has it, too: who is
        not that other peer has no news."""
        body = body_of(plan)
        if (piece.epoch, piece.trainer) != (plan.epoch, body.averager) or self._saved.is_finished(piece.round):
            return []
        is_news = self._saved.of_plan(piece.round) if self._averages(plan) else not self._saved.is_safe(piece)
        if not is_news:
            return []
        return self._tell(peer for peer in plan.trainers() if peer != self._group.own_id)

    def _tell(self, peers: Iterable[PeerId]) -> Effects:
        """What this peer has, at once: they wait for it, and by hearsay it takes a second."""
        alive = set(self._group.alive())
        return [Send(peer, Records((self._group.signed(),))) for peer in peers if peer in alive]

    def _ref(
        self, event: UpdateMade | PieceMade, blob: BlobId, num_bytes: int, kind: Literal["part", "update"]
    ) -> SnapshotRef:
        """Of what the own trainer made. A step is a round here."""
        ref = SnapshotRef(
            part=event.part,
            trainer=self._group.own_id,
            epoch=event.epoch,
            round=event.round,
            step=event.round,
            samples=event.samples,
            blob=blob,
            num_bytes=num_bytes,
            span=event.span,
            kind=kind,
        )
        return self._group.made(ref)
