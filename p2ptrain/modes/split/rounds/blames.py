"""Whose work is of no use, as the peers that got it say: a next plan goes on without those.

The averager can say it of everyone's updates, and the two peers of a unit of each other's stage messages. What others
say counts for nothing. Who is blamed is shut out of some rounds, and of ever more (``planner``).

Invariant: only what is said under the plan in force counts, and each peer is blamed once.
"""

from __future__ import annotations

from p2ptrain.core.effects import Effects
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.commands import UnitRefused
from p2ptrain.modes.split.plan import body_of, workers
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.messages import MAX_BLAMES, Blame, Record

WHY_CHARACTERS = 200
HARMLESS = "stage-message-twice"
"""The reason for which a stage message is refused that is here already."""
NOT_GIVEN = "it says that it has an update, and does not give it"


class Blames:
    """As one peer sees them."""

    def __init__(self, group: GroupView) -> None:
        self._group = group
        self._plan: Plan | None = None
        self._seen: frozenset[PeerId] = frozenset()

    def look(self) -> bool:
        """Whether others are blamed than at the last look."""
        before, self._seen = self._seen, frozenset(self.counted())
        return self._seen != before

    def begin(self, plan: Plan, now: float) -> Effects:
        """This plan holds."""
        self._plan = plan
        return self._group.say(now, blames=()) if self._group.own.blames else []

    def say(self, peer: str, round: int, why: str, now: float) -> Effects:
        """What came of that peer is of no use; ``round`` rounds are over when that is mended."""
        plan, said = self._plan, self._group.own.blames
        if plan is None or len(said) >= MAX_BLAMES or any(blame.peer == peer for blame in said):
            return []
        blame = Blame(PeerId(peer), plan.epoch, round, why[:WHY_CHARACTERS])
        fields = (("peer", peer), ("name", self._group.name_of(PeerId(peer))), ("round", round), ("detail", blame.why))
        return [Note("blamed", fields), *self._group.say(now, blames=(*said, blame))]

    def unit_refused(self, event: UnitRefused, now: float) -> Effects:
        """A tail of the own trainer can't go on."""
        if self._plan is None or event.epoch != self._plan.epoch:
            return []
        return self.say(event.owner, event.round + 1, event.detail, now)

    def counted(self) -> dict[PeerId, tuple[PeerId, Blame]]:
        """By the peer that is blamed, who blames it."""
        plan, found = self._plan, dict[PeerId, tuple[PeerId, Blame]]()
        for record in self._group.records() if plan is not None else ():
            for blame in record.blames:
                if plan is not None and self._counts(plan, record, blame):
                    found.setdefault(blame.peer, (record.peer, blame))
        return found

    @staticmethod
    def _counts(plan: Plan, record: Record, blame: Blame) -> bool:
        body = body_of(plan)
        if blame.epoch != plan.epoch or blame.peer not in workers(body.split):
            return False
        share_a_unit = any({unit.owner, unit.helper} >= {record.peer, blame.peer} for unit in body.split.units)
        return record.peer == body.averager or (share_a_unit and record.peer != blame.peer)
