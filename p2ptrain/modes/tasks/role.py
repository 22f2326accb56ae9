"""What this peer does about the plan: gets its part, has it trained, shares it and keeps it safe.

    Idle --plan gives a part--> Seeking --own or fetched snapshot, or none anywhere--> Following
    Following --a plan with another part--> Seeking          Following --a plan with the same part--> Following
    any --the trainer dies--> Idle, until it is back

Invariant: a peer only changes what it trains when the plan does, and starts from the freshest copy of the part that
it can get hold of (its own, one that it keeps for others, or one that a member holds), trying one after another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2ptrain.core import commands as c
from p2ptrain.core.downloads import Borrowed
from p2ptrain.core.effects import Effects, Handler, KeepPlan, KeepSnapshot, MessageHandler, ToTrainer
from p2ptrain.core.mode import Given
from p2ptrain.core.plan import Plan
from p2ptrain.core.replicas import Replicas
from p2ptrain.core.restarts import Restarts
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks.averaging.exchanges import Exchanges
from p2ptrain.modes.tasks.commands import FinishRound, Follow, Merged, PayloadMade, Retain
from p2ptrain.modes.tasks.head.fit import HeadFit
from p2ptrain.modes.tasks.rules import TasksRules
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.replication.replication import Replication
from p2ptrain.protocol.replication.rules import ReplicationConfig
from p2ptrain.wire import messages as m

MAX_LAST_TRIES = 3
"""Copies that are asked for of such as handed out nothing before, where there is no other."""
MAX_REFUSED_SNAPSHOTS = 2
"""After so many, those who offered one are not asked for others."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The trainer trains nothing."""


@dataclass(slots=True)
class Seeking:
    """A copy of a part is looked for, fetched, or with the trainer, which has not said yet that it fits."""

    part: int
    partition: str
    candidates: list[m.SnapshotRef]
    """Left to try, the best last."""
    trying: m.SnapshotRef | None = None
    is_given: bool = False
    """To the trainer: a copy, or, without any, the job's initial weights."""
    num_refused: int = 0
    mistrusted: set[PeerId] = field(default_factory=set)
    """Whose copies of the part were of no use."""
    asked: dict[BlobId, set[PeerId]] = field(default_factory=dict)
    """Who was asked for each copy that was tried; nobody for one that was here."""
    put_off: list[m.SnapshotRef] = field(default_factory=list)
    """The freshest first: only such peers say to have them as handed out nothing before."""
    num_last: int = 0
    """How many of those were tried."""


@dataclass(frozen=True, slots=True)
class Following:
    """The trainer trains a part."""

    part: int
    partition: str


class TasksRole:
    """One peer's part, in one job."""

    loading = "own data: being loaded"
    hands_over = True

    def __init__(self, given: Given) -> None:
        group, job, resume = given.group, given.job, given.resume
        self.plan: Plan | None = None
        self.plan_hash = ""
        self.part = m.NO_PART
        self.rules: TasksRules = TasksRules(group.own_id, job)
        replication = Replication(group.own_id, ReplicationConfig(num_holders=job.group.replicas), resume.kept)
        replication.owner.has_it = self._averages_with
        self.replicas = Replicas(group, given.downloads, replication, resume.own, self._is_awaited)
        self.ending: HeadFit = HeadFit(given, lambda: self.plan)
        self._exchanges = Exchanges(group, given.downloads, given.rng, job)
        self._group = group
        self._job = job
        self._downloads, self._borrowed = given.downloads, Borrowed(given.downloads)
        self._restarts = Restarts(group)
        self._state: Idle | Seeking | Following = Idle()
        self._has_finished = False
        """The trainer has had all its rounds."""
        self._cut_since = 0
        """The epoch of the first plan that divides the model as the one in force does."""
        self._partition = resume.plan.partition if resume.plan is not None else ""
        self._is_ending = False
        """The group stops: the round under way is the last."""
        self._is_last = False
        """Nothing is averaged after the newest own snapshot: it is the last of training, or this peer leaves."""
        self.handlers: Mapping[type, Handler] = (
            dict(self.replicas.handlers) | dict(self._exchanges.handlers) | dict(self.ending.handlers)
        )
        self.messages: Mapping[type[m.Message], MessageHandler] = {
            m.GossipPush: self._exchanges.pushed,
            **self.replicas.messages,
            **self.ending.messages,
        }

    # --- what is known ---

    @property
    def data_epoch(self) -> int:
        return self.plan.epoch if self.plan else 0

    @property
    def is_free_to_leave(self) -> bool:
        return True

    @property
    def seeking(self) -> bool:
        return isinstance(self._state, Seeking) and self._state.trying is not None

    def holdings(self) -> tuple[m.SnapshotRef, ...]:
        return (*self.ending.holdings(), *self.replicas.replication.holdings())

    def is_complete(self) -> bool:
        return True

    def ends_round(self, ref: m.SnapshotRef) -> bool:
        return ref.epoch >= self._cut_since

    def end_after(self, rounds: int, now: float) -> Effects:
        """Rounds are a peer's own here, so it is the one under way."""
        if self._is_ending:
            return []
        self._is_ending, own = True, self._group.own
        said = self._group.say(now, ends_after=min(own.round + 1, self._job.training.rounds))
        return [*said, ToTrainer(FinishRound())] if isinstance(self._state, Following) else said

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        return self._exchanges.may_serve(to, blob)

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        self._exchanges.served(to, blob, end)

    def _is_awaited(self, blob: BlobId) -> bool:
        state = self._state
        is_tried = isinstance(state, Seeking) and state.trying is not None and state.trying.blob == blob
        return is_tried or self.ending.wants(blob)

    def _is_needed(self, blob: BlobId) -> bool:
        """Also what the trainer began with, until there is an own snapshot to begin with again."""
        return self._is_awaited(blob) or all(own.part != self.part for own in self.replicas.own)

    # --- the plan ---

    def plan_adopted(self, plan: Plan, now: float) -> Effects:
        """Do what the plan says. The data must be loaded; before that the plan waits."""
        if self.plan is None or plan.epoch >= self.plan.epoch:
            self.plan, self.plan_hash = plan, plan.hash
            if plan.partition != self._partition:
                self._partition, self._cut_since = plan.partition, plan.epoch
        part = plan.part_of(self._group.own_id)
        self.part = part.index if part else m.NO_PART
        effects: Effects = [KeepPlan(plan), *self.replicas.epoch_changed(plan.epoch, now)]
        effects += self._group.say(now, epoch=plan.epoch, plan=self.plan_hash, part=self.part)
        effects += self.members_changed(now)
        if part is None or not self._group.own.counts:
            return effects
        if self._has(part.index, plan.partition):
            own = next((h for h in reversed(self.replicas.own) if h.part == part.index), None)
            effects.append(ToTrainer(Retain(plan.to_json())))
            if own is not None:  # the same snapshot, under the new epoch
                effects += self.replicas.offer(dataclasses.replace(own, epoch=plan.epoch), now)
            return effects
        self._state = Seeking(part.index, plan.partition, self._copies_of(part.index))
        return effects + self._seek(self._state, now)

    def _has(self, part: int, partition: str) -> bool:
        """Whether the trainer trains that part already, or was given it."""
        state = self._state
        if isinstance(state, Idle) or (isinstance(state, Seeking) and not state.is_given):
            return False
        return (state.part, state.partition) == (part, partition)

    def members_changed(self, now: float) -> Effects:
        """Who is alive, and what each of them holds according to the plan."""
        effects = self.replicas.members_changed(now)
        if self.plan is not None:
            effects += self._exchanges.members_changed(self.plan, self.plan_hash, now)
        return effects

    def _averages_with(self, own: m.SnapshotRef, peer: PeerId) -> bool:
        """Whether it gets what this peer has learnt by averaging."""
        return not self._is_last and self._exchanges.has_reached(peer, own)

    def peer_admitted(self, peer: PeerId, now: float) -> Effects:
        return []

    # --- getting the part ---

    def _copies_of(self, part: int) -> list[m.SnapshotRef]:
        """Every copy of a part that is here or that a member has, the freshest last; our own wins a tie."""
        rounds, own = self._job.training.rounds, self.replicas.own
        told = (h for record in self._group.records() for h in record.holdings if h.kind == "part")
        known = dict.fromkeys((*own, *self.replicas.replication.holder.kept(), *(h for h in told if h.round <= rounds)))
        is_local = self._downloads.is_local
        of_part = (h for h in known if h.part == part)
        return sorted(of_part, key=lambda h: (h.round, h.step, h in own, is_local(h.blob), h.blob))

    def _seek(self, state: Seeking, now: float) -> Effects:
        """Get the freshest copy that is left to try; without any, start from the job's initial weights."""
        state.is_given = False
        while state.candidates or self._look_again(state):
            holding = state.trying = state.candidates.pop()
            asked = state.asked.setdefault(holding.blob, set())
            if self._downloads.is_local(holding.blob):
                return self._give(state)
            holders = [peer for peer in self._group.holders(holding.blob) if peer not in state.mistrusted]
            asked.update(holders)
            if sources := [peer for peer in holders if not self._downloads.hands_out_nothing(peer)]:
                return self._fetch(holding, sources, now)
            state.put_off += [holding] if holders else []
        while state.put_off and state.num_last < MAX_LAST_TRIES:
            holding = state.trying = state.put_off.pop(0)
            state.num_last += 1
            if sources := [peer for peer in self._group.holders(holding.blob) if peer not in state.mistrusted]:
                return self._fetch(holding, sources, now)
        state.trying = None
        told = sorted({peer for asked in state.asked.values() for peer in asked}, key=self._group.name_of)
        note = Note("copies-not-had", (("part", state.part), ("from", self._group.names_of(told))))
        return [*([note] if told else []), *self._give(state)]

    def _fetch(self, holding: m.SnapshotRef, sources: list[PeerId], now: float) -> Effects:
        note = Note("fetching-part", (("part", holding.part), ("round", holding.round), ("from", sources[0])))
        return [note, *self._borrowed.fetch(holding.blob, holding.num_bytes, sources, now)]

    def _look_again(self, state: Seeking) -> bool:
        """Who had a copy may have a newer one in its place by now, and others may have one: better than none."""
        fresh = []
        for holding in self._copies_of(state.part):
            unasked = set(self._group.holders(holding.blob)) - state.mistrusted - state.asked.get(holding.blob, set())
            if unasked or (holding.blob not in state.asked and self._downloads.is_local(holding.blob)):
                fresh.append(holding)
        state.candidates = fresh
        return bool(fresh)

    def _give(self, state: Seeking) -> Effects:
        """What is tried goes to the trainer."""
        plan, holding = self.plan, state.trying
        if plan is None:
            return []
        state.is_given, self._has_finished = True, False
        self._exchanges.trainer_begins_anew()
        own = holding is not None and holding.trainer == self._group.own_id
        command = Follow(plan.to_json(), state.part, own=own)
        return [ToTrainer(command, holding.blob, "snapshot") if holding else ToTrainer(command)]

    def _refused(self, event: c.SnapshotRefused, now: float) -> Effects:
        note, state = Note("snapshot-refused", (("detail", event.detail[:200]),)), self._state
        if not isinstance(state, Seeking) or state.trying is None or not state.is_given:
            return [note]
        state.num_refused += 1
        if state.num_refused >= MAX_REFUSED_SNAPSHOTS:  # no more of what the same peers say that they have
            state.mistrusted.update(r.peer for r in self._group.records() if state.trying in r.holdings)
        return [note, *self._seek(state, now)]

    # --- the trainer ---

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if isinstance(event, c.Following):
            state = self._state
            if isinstance(state, Seeking):
                if not state.is_given or state.part != event.part:
                    return []  # of the plan before: another part is on its way to the trainer
                self._state = Following(state.part, state.partition)
            note = Note("training", (("part", event.part), ("round", event.round), ("rounds", event.rounds)))
            ending = [ToTrainer(FinishRound())] if self._is_ending else []
            return [note, *self._group.say(now, phase="training", round=event.round, part=event.part), *ending]
        if isinstance(event, c.Progress):
            changes = {"round": event.round, "step": event.step, "samples": event.samples}
            return self._group.say(now, loss=_known(event.loss), samples_per_s=event.samples_per_s, **changes)
        if isinstance(event, c.SnapshotTaken):
            return self._snapshot_taken(event, blob, num_bytes, now)
        if isinstance(event, PayloadMade):
            return self._exchanges.payload_made(event, blob, num_bytes, now)
        if isinstance(event, Merged):
            return self._exchanges.merged(event, now)
        if isinstance(event, c.SnapshotRefused):
            unusable = [] if self.seeking else self.ending.trainer_refused(now)
            return [*unusable, *self._refused(event, now)]
        if isinstance(event, c.TrainerFailed):
            unable = self.ending.trainer_unable(now)
            self._state = Idle()
            return [*unable, *self._exchanges.trainer_lost(), *self._restarts.after(event, now)]
        return self.ending.trainer_said(event, now)

    def _snapshot_taken(self, event: c.SnapshotTaken, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """Without a ``blob`` it could not be saved: training goes on, and ends, all the same."""
        group, plan = self._group, self.plan
        if plan is None:
            return []
        effects: Effects = []
        if blob is not None:
            holding = m.SnapshotRef(
                part=event.part,
                trainer=group.own_id,
                epoch=plan.epoch,
                round=event.round,
                step=event.step,
                samples=event.samples,
                blob=blob,
                num_bytes=num_bytes,
            )
            effects += self.replicas.keep_snapshot(holding)
        self._has_finished = event.training_finished
        self._is_last = event.training_finished or not event.round_finished
        if group.own.phase == "waiting":
            effects += group.say(now, phase="training")
        if event.training_finished and blob is None:
            effects += self._trained(now)
        work = {"work_flops": event.work_flops, "central_flops": event.central_flops}
        effects += group.say(
            now, round=event.round, step=event.step, samples=event.samples, loss=_known(event.loss), **work
        )
        if event.accuracy >= 0:
            effects += group.say(now, accuracy=event.accuracy)
        if event.round_finished:
            self._restarts.round_finished()
            loss = (("loss", round(event.loss, 4)),) if math.isfinite(event.loss) else ()
            skipped = (("skipped", event.num_skipped),) if event.num_skipped else ()
            note = Note("round", (("part", event.part), ("round", event.round), *loss, *skipped))
            effects.append(note)
            effects += self._exchanges.round_finished(event.round, now, finished=event.training_finished)
        return effects

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """Only now it is said that training is over: whoever hears that finds the last round's snapshot, too."""
        effects = self.replicas.snapshot_kept(effect, saved, now)
        return effects + (self._trained(now) if self._has_finished else [])

    def _trained(self, now: float) -> Effects:
        if self._group.own.phase != "training":
            return []
        return self._group.say(now, phase="trained", samples_per_s=0.0)

    # --- blobs and time ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effects = [*self._exchanges.blob_arrived(blob, now), *self.replicas.blob_arrived(blob, now)]
        if isinstance(self._state, Seeking) and self._state.trying is not None and self._state.trying.blob == blob:
            effects += self._give(self._state)
        return effects + self.ending.blob_arrived(blob, now)

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effects = [*self._exchanges.blob_lost(blob, now), *self.replicas.blob_lost(blob, now)]
        if isinstance(self._state, Seeking) and self._state.trying is not None and self._state.trying.blob == blob:
            effects += self._seek(self._state, now)
        return effects + self.ending.blob_lost(blob, now)

    def tick(self, now: float) -> Effects:
        return [*self.replicas.tick(now), *self._exchanges.tick(now), *self._borrowed.let_go(self._is_needed)]

    def next_deadline(self) -> float:
        return min(self.replicas.next_deadline(), self._exchanges.next_deadline(), NEVER)

    def waiting_for(self, now: float) -> str:
        """In words: a copy of the part, or a partner's answer."""
        state = self._state
        if isinstance(state, Seeking) and state.trying is not None and not self._downloads.is_local(state.trying.blob):
            progress = self._downloads.progress_of(state.trying.blob)
            if progress is not None:
                done = 100 * progress.received_bytes // max(1, progress.num_bytes)
                source = self._group.name_of(PeerId(progress.waiting_for))
                return f"part {self.part} from {source}: {done} % here"
        if self.plan is not None and self.part == m.NO_PART:
            return "a part: the plan has none for this peer (more peers than parts, or no samples that fit)"
        return self._exchanges.waiting_for(now)


def _known(loss: float) -> float:
    """As records have it: 0 where none is known."""
    return loss if math.isfinite(loss) else 0.0
