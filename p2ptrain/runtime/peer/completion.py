"""How a job ends: everyone is trained, the group does what its mode does then, and is done.

Invariant: a peer is done only when all that it waits for have ended, and when its mode has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable

from p2ptrain.core.effects import Effects, JobDone
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.mode import ENDED, Role
from p2ptrain.core.plan import Plan
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.wire.messages import Record


class Completion:
    """One peer's view of the end of one job. ``is_settled``: whether the group agrees on its plan."""

    def __init__(self, group: GroupView, role: Role, rounds: int, is_settled: Callable[[], bool]) -> None:
        self._group = group
        self._role = role
        self._rounds = rounds
        self._is_settled = is_settled

    def look(self, now: float) -> Effects:
        """Something changed: is everyone trained?"""
        group, plan, ending = self._group, self._role.plan, self._role.ending
        if plan is None:
            return []
        trains = plan.part_of(group.own_id) is not None
        if ending is None and not trains:
            return self._look_from_outside(plan, now)
        if ending is not None and ending.is_busy(plan, now):
            return []
        if self._waited_for(plan) or not self._role.is_complete():
            return []
        if group.own.phase not in ENDED:
            if trains or ending is None or group.own.phase != "waiting" or not ending.takes_part(plan):
                return []
            return group.say(now, phase="trained") if self._is_settled() else []
        left = ending.look(plan, now) if ending is not None else None
        return self.done(now) if left is None else left

    def _waited_for(self, plan: Plan) -> list[Record]:
        """Who has not ended yet: trainers, then also those that stand by and take part in the end."""
        own, ending = self._group.own, self._role.ending
        busy = [r for r in self._group.records() if r.peer != own.peer and r.phase not in (*ENDED, "failed")]
        trainers = [r for r in busy if plan.part_of(r.peer) is not None]
        if ending is None or own.phase not in ENDED:
            return trainers
        return trainers + [r for r in busy if r not in trainers and ending.is_awaited(r, plan)]

    def _look_from_outside(self, plan: Plan, now: float) -> Effects:
        """A peer that stands by is done when those who train are."""
        name, alive = self._role.plan_hash, set(self._group.members())
        records = [r for p in plan.trainers() if (r := self._group.record(p)) is not None and r.plan == name]
        here = [record for record in records if record.peer in alive]
        return self.done(now) if here and all(record.phase == "done" for record in here) else []

    def done(self, now: float) -> Effects:
        """Nothing is left to do."""
        if self._group.own.phase == "done":
            return []
        return [*self._group.say(now, phase="done", model_samples=0), Note("done"), JobDone()]

    def members_changed(self, now: float) -> Effects:
        ending = self._role.ending
        return [*(ending.members_changed(now) if ending is not None else ()), *self.look(now)]

    # --- time ---

    def tick(self, now: float) -> Effects:
        ending = self._role.ending
        return [*(ending.tick(now) if ending is not None else ()), *self.look(now)]

    def next_deadline(self) -> float:
        return self._role.ending.next_deadline() if self._role.ending is not None else NEVER

    def waiting_for(self, now: float) -> str:
        """In words: who still trains, or what the group's last work waits for."""
        group, plan, ending = self._group, self._role.plan, self._role.ending
        if ending is not None and (words := ending.waiting_for(now)):
            return words
        if plan is None or group.own.phase not in ("trained", "fitting"):
            return ""
        busy = [
            f"{record.peer} (round {record.round}/{self._rounds})"
            for record in group.records()
            if plan.part_of(record.peer) is not None and record.phase not in (*ENDED, "failed")
        ]
        return group.with_names(f"others to finish: {', '.join(busy)}; whoever dies is left out") if busy else ""
