"""Blocks that this peer's trainer has handed over at a change of plan, for others to fetch."""

from __future__ import annotations

from p2ptrain.core.effects import Effects, ReleaseBlob
from p2ptrain.core.group_view import GroupView
from p2ptrain.wire.messages import SnapshotRef


class HandedOver:
    """Of one change of plan at a time: they go when everyone has its stage."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._pieces: list[SnapshotRef] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def holdings(self) -> tuple[SnapshotRef, ...]:
        """For the own record."""
        return tuple(self._pieces)

    def add(self, piece: SnapshotRef, now: float) -> Effects:
        """The trainer has handed it over; it is in the store."""
        self._pieces.append(self._group.made(piece))
        return self._group.say_holdings(now)

    def release(self, now: float) -> Effects:
        """Nobody needs them any more."""
        if not self._pieces:
            return []
        released = [ReleaseBlob(holding.blob) for holding in self._pieces]
        self._pieces = []
        return [*released, *self._group.say_holdings(now)]
