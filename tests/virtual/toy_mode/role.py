"""What a peer does about a toy plan: it gets a copy of its part, if there is any, and has it counted up.

Idle --plan gives a part--> Seeking --the freshest copy is here, or there is none--> Counting
"""

from __future__ import annotations

from dataclasses import dataclass

from p2ptrain.core import commands as c
from p2ptrain.core.effects import Effects, KeepPlan, ToTrainer
from p2ptrain.core.mode import Given
from p2ptrain.core.plan import Plan
from p2ptrain.core.replicas import Replicas
from p2ptrain.core.restarts import Restarts
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import Note
from p2ptrain.protocol.replication.replication import Replication
from p2ptrain.protocol.replication.rules import ReplicationConfig
from p2ptrain.wire.messages import NO_PART, SnapshotRef
from toy_mode.commands import Count
from toy_mode.plan import goal_of
from toy_mode.rules import ToyRules


@dataclass(frozen=True, slots=True)
class Idle:
    """The trainer counts nothing."""


@dataclass(frozen=True, slots=True)
class Seeking:
    """A copy is on its way."""

    part: int
    copy: SnapshotRef


@dataclass(frozen=True, slots=True)
class Counting:
    """The trainer was given a part."""

    part: int


class ToyRole:
    loading = "its trainer"
    ending = None
    hands_over = False

    def __init__(self, given: Given) -> None:
        self.plan: Plan | None = None
        self.plan_hash = ""
        self.part = NO_PART
        self.rules = ToyRules(given.group.own_id, given.job)
        config = ReplicationConfig(num_holders=given.job.group.replicas, past_epochs=True)
        replication = Replication(given.group.own_id, config, given.resume.kept)
        self.replicas = Replicas(given.group, given.downloads, replication, given.resume.own, self._is_awaited)
        self.handlers = self.replicas.handlers
        self.messages = self.replicas.messages
        self.next_deadline = self.replicas.next_deadline
        self.tick = self.replicas.tick
        self.members_changed = self.replicas.members_changed
        self.snapshot_kept = self.replicas.snapshot_kept
        self._group = given.group
        self._downloads = given.downloads
        self._restarts = Restarts(given.group)
        self._state: Idle | Seeking | Counting = Idle()

    @property
    def data_epoch(self) -> int:
        return self.plan.epoch if self.plan else 0

    @property
    def is_free_to_leave(self) -> bool:
        return True

    @property
    def seeking(self) -> bool:
        return isinstance(self._state, Seeking)

    def holdings(self) -> tuple[SnapshotRef, ...]:
        return self.replicas.kept()

    def is_complete(self) -> bool:
        """Somebody who is here has each part, counted to the end."""
        if self.plan is None:
            return False
        counted = {h.part for record in self._group.records() for h in record.holdings if h.round == goal_of(self.plan)}
        return counted.issuperset(part.index for part in self.plan.parts)

    def ends_round(self, ref: SnapshotRef) -> bool:
        return True

    def end_after(self, rounds: int, now: float) -> Effects:
        """A count that is not over is worth nothing: it goes on to its end."""
        return list(self._group.say(now, ends_after=rounds))

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        return True

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """Nothing hangs on it."""

    def peer_admitted(self, peer: PeerId, now: float) -> Effects:
        return []

    def waiting_for(self, now: float) -> str:
        return f"a copy of part {self.part}" if self.seeking else ""

    def _is_awaited(self, blob: BlobId) -> bool:
        return isinstance(self._state, Seeking) and self._state.copy.blob == blob

    # --- the plan ---

    def plan_adopted(self, plan: Plan, now: float) -> Effects:
        self.plan, self.plan_hash = plan, plan.hash
        part = plan.part_of(self._group.own_id)
        self.part = part.index if part else NO_PART
        effects: Effects = [KeepPlan(plan), *self.replicas.epoch_changed(plan.epoch, now)]
        effects += self._group.say(now, epoch=plan.epoch, plan=self.plan_hash, part=self.part)
        effects += self.members_changed(now)
        if part is None or not self._group.own.counts:
            return effects
        if not isinstance(self._state, Idle) and self._state.part == part.index:
            return effects
        return effects + self._seek(part.index, now)

    def _seek(self, part: int, now: float, but: BlobId | None = None) -> Effects:
        known = {h.blob: h for record in self._group.records() for h in record.holdings if h.kind == "part"}
        copies = [h for h in known.values() if h.part == part and h.blob != but]
        if not copies:
            return self._count(part, None)
        best = max(copies, key=lambda h: (h.round, h.blob))
        if self._downloads.is_local(best.blob):
            return self._count(part, best)
        self._state = Seeking(part, best)
        return self._downloads.fetch(best.blob, best.num_bytes, self._group.holders(best.blob), now)

    def _count(self, part: int, copy: SnapshotRef | None) -> Effects:
        self._state = Counting(part)
        command = Count(part, goal_of(self.plan)) if self.plan else None
        return [ToTrainer(command, copy.blob, "copy") if copy else ToTrainer(command)]

    # --- the trainer ---

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if isinstance(event, c.Following):
            note = Note("training", (("part", event.part), ("round", event.round), ("rounds", event.rounds)))
            return [note, *self._group.say(now, phase="training", round=event.round)]
        if isinstance(event, c.TrainerFailed):
            self._state = Idle()
            return self._restarts.after(event, now)
        if not isinstance(event, c.SnapshotTaken) or self.plan is None:
            return []
        effects: Effects = []
        if blob is not None:
            own = self._group.own_id
            fields = (event.part, own, self.plan.epoch, event.round, event.step, event.samples, blob, num_bytes)
            effects += self.replicas.keep_snapshot(SnapshotRef(*fields))
        phase = "trained" if event.training_finished else "training"
        return [*effects, *self._group.say(now, round=event.round, phase=phase)]

    # --- blobs ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effects = self.replicas.blob_arrived(blob, now)
        if isinstance(self._state, Seeking) and self._state.copy.blob == blob:
            effects += self._count(self._state.part, self._state.copy)
        return effects

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effects = self.replicas.blob_lost(blob, now)
        if isinstance(self._state, Seeking) and self._state.copy.blob == blob:
            effects += self._seek(self._state.part, now, but=blob)
        return effects
