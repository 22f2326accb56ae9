"""What this peer does about the plan: gets its part, has it trained, shares it and keeps it safe.

    idle --plan gives a part--> seeking --own or fetched snapshot, or none anywhere--> following
    following --a plan with another part--> seeking          following --a plan with the same part--> following

Invariant: a peer only changes what it trains when the plan does, and starts from the freshest copy of the part that
it can get hold of (its own, one in its custody, or one that a member holds), trying one after another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.core.effects import Effects, KeepPlan, KeepSnapshot, ToTrainer
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.planning.plan import Plan
from p2ptrain.protocol import gossip as g
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.replication import Custody
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.keeping import Keeping
from p2ptrain.runtime.payloads import Masses, Payloads
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.runtime.peer import Peer
    from p2ptrain.runtime.peer_io import Resume

MAX_REFUSED_SNAPSHOTS = 2
"""After so many, those who offered one are not asked for others."""


class Duty(Keeping):
    """One peer's part, in one job."""

    def __init__(self, peer: Peer, job: Job, custody: Custody, gossip: g.Gossip, resume: Resume) -> None:
        super().__init__(peer, job, custody, resume)
        self._shards: dict[PeerId, tuple[str, ...]] = {}
        """Of the others that follow our plan, as far as we know."""
        self._gossip = gossip
        self._following: tuple[int, str] | None = None
        """(part, partition) that the trainer trains."""
        self._candidates: list[m.Holding] = []
        self._seeking: m.Holding | None = None
        self._merges: dict[BlobId, g.FetchAndMerge] = {}
        self._merging: dict[int, g.FetchAndMerge] = {}
        self._making: dict[int, PeerId] = {}
        """Exchanges whose payload the trainer makes, and for whom."""
        self._payloads = Payloads()
        self._has_finished = False
        """The trainer has had all its rounds."""
        self._num_refused = 0
        self._mistrusted: set[PeerId] = set()
        """Whose copies of the part were of no use."""
        peer.on_effects(
            {
                g.MakePayload: self._make_payload,
                g.FetchAndMerge: self._fetch_and_merge,
                g.ExchangeEnded: self._exchange_ended,
            }
        )

    # --- the plan ---

    @property
    def seeking(self) -> bool:
        """A copy of the own part is being fetched or tried."""
        return self._seeking is not None

    def awaits(self, blob: BlobId) -> bool:
        return self._seeking is not None and self._seeking.blob == blob

    def plan_adopted(self, plan: Plan, now: float) -> Effects:
        """Do what the plan says. The data must be loaded; before that the plan waits."""
        peer = self._peer
        if self.plan is None or plan.epoch >= self.plan.epoch:
            self.plan, self.plan_hash = plan, plan.hash
        part = plan.part_of(peer.own_id)
        self.part = part.index if part else m.NO_PART
        effects: Effects = [KeepPlan(plan), *self.custody.epoch_changed(plan.epoch, now)]
        effects += peer.records.update(now, epoch=plan.epoch, plan=self.plan_hash, part=self.part)
        effects += self.members_changed(now)
        if part is None or not peer.records.own.counts:
            return effects
        if self._following == (part.index, plan.partition):
            own = next((h for h in reversed(self._own) if h.part == part.index), None)
            effects.append(ToTrainer(c.Retain(plan.to_json())))
            if own is not None:  # the same snapshot, under the new epoch
                effects += self._offer(dataclasses.replace(own, epoch=plan.epoch), now)
            return effects
        self._candidates = self._copies_of(part.index)
        self._num_refused = 0
        self._mistrusted.clear()
        return effects + self._seek(now)

    def members_changed(self, now: float) -> Effects:
        """Who is alive, and what each of them holds according to the plan."""
        peer, plan = self._peer, self.plan
        alive = peer.membership.alive()
        parts = {p: r.part for p in peer.members() if p != peer.own_id and (r := peer.records.get(p)) is not None}
        effects: Effects = list(self.custody.members_changed(parts, now))
        if plan is not None:
            trainers = plan.trainers()
            same = {p for p in trainers if (r := peer.records.get(p)) is not None and r.plan == self.plan_hash}
            self._shards = {p: plan.parts[trainers[p]].shards for p in same}
            effects += self._tell_gossip(plan, now)
            effects += self._gossip.peers_alive(alive, now)
        return effects

    def _tell_gossip(self, plan: Plan, now: float) -> Effects:
        part = plan.part_of(self._peer.own_id)
        return list(self._gossip.shards(self._shards, part.shards if part else (), plan.epoch, now))

    def _copies_of(self, part: int) -> list[m.Holding]:
        """Every copy of a part that is here or that a member has, the freshest last; our own wins a tie."""
        peer, rounds = self._peer, self._job.training.rounds
        found = {h.blob: h for h in self.custody.kept() if h.part == part}
        for member in peer.members():
            record = peer.records.get(member)
            held = record.holdings if record else ()
            found |= {h.blob: h for h in held if h.part == part and h.round <= rounds}
        found |= {h.blob: h for h in self._own if h.part == part}
        own = {h.blob for h in self._own}
        return sorted(found.values(), key=lambda h: (h.round, h.step, h.blob in own, self._has_blob(h.blob), h.blob))

    def _seek(self, now: float) -> Effects:
        """Get the freshest copy that is left to try; without any, start from the job's initial weights."""
        plan = self.plan
        if plan is None or self.part == m.NO_PART:
            return []
        while self._candidates:
            holding = self._seeking = self._candidates.pop()
            if self._has_blob(holding.blob):
                return self._follow(holding, now)
            holders = self._peer.holders(holding.blob)
            if sources := [peer for peer in holders if peer not in self._mistrusted]:
                note = Note("fetching-part", (("part", holding.part), ("round", holding.round), ("from", sources[0])))
                return [note, *self.fetch(holding.blob, holding.num_bytes, sources, now)]
        self._seeking = None
        return self._follow(None, now)

    def _follow(self, holding: m.Holding | None, now: float) -> Effects:
        plan, self._has_finished = self.plan, False
        if plan is None:
            return []
        own = holding is not None and holding.trainer == self._peer.own_id
        command = c.Follow(plan.to_json(), self.part, own=own)
        self._payloads.forget()
        self._following = (self.part, plan.partition)
        return [ToTrainer(command, holding.blob, "snapshot") if holding else ToTrainer(command)]

    # --- the trainer ---

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        peer = self._peer
        if isinstance(event, c.Following):
            self._seeking = None
            note = Note("training", (("part", event.part), ("round", event.round), ("rounds", event.rounds)))
            return [note, *peer.records.update(now, phase="training", round=event.round, part=event.part)]
        if isinstance(event, c.Progress):
            changes = {"round": event.round, "step": event.step, "samples": event.samples}
            return list(peer.records.update(now, loss=event.loss, samples_per_s=event.samples_per_s, **changes))
        if isinstance(event, c.SnapshotTaken):
            return self._snapshot_taken(event, blob, num_bytes, now)
        if isinstance(event, c.PayloadMade):
            return self._payload_made(event, blob, num_bytes, now)
        if isinstance(event, c.Merged):
            return self._merged(event, now)
        if isinstance(event, c.SnapshotRefused):
            return self._snapshot_refused(event, now)
        if isinstance(event, c.TrainerFailed):
            return self._trainer_failed(event, now)
        return []

    def _snapshot_taken(self, event: c.SnapshotTaken, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """Without a ``blob`` it could not be saved: training goes on, and ends, all the same."""
        peer, plan = self._peer, self.plan
        if plan is None:
            return []
        effects: Effects = []
        if blob is not None:
            holding = m.Holding(
                part=event.part,
                trainer=peer.own_id,
                epoch=plan.epoch,
                round=event.round,
                step=event.step,
                samples=event.samples,
                blob=blob,
                num_bytes=num_bytes,
            )
            effects += self.keep_snapshot(holding)
        self._has_finished = event.training_finished
        if peer.records.own.phase == "waiting":
            effects += peer.records.update(now, phase="training")
        if event.training_finished and blob is None:
            effects += self._trained(now)
        effects += peer.records.update(now, round=event.round, step=event.step, samples=event.samples, loss=event.loss)
        if event.accuracy >= 0:
            effects += peer.records.update(now, accuracy=event.accuracy)
        if event.round_finished:
            self._num_restarts = 0
            note = Note("round", (("part", event.part), ("round", event.round), ("loss", round(event.loss, 4))))
            effects += [note, *self._gossip.round_finished(now)]
        return effects

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """Only now it is said that training is over: whoever hears that finds the last round's snapshot, too."""
        effects = super().snapshot_kept(effect, saved, now)
        return effects + (self._trained(now) if self._has_finished else [])

    def _trained(self, now: float) -> Effects:
        peer = self._peer
        if peer.records.own.phase != "training":
            return []
        return list(peer.records.update(now, phase="trained", samples_per_s=0.0))

    def _snapshot_refused(self, event: c.SnapshotRefused, now: float) -> Effects:
        note = Note("snapshot-refused", (("detail", event.detail[:200]),))
        if self._seeking is None:
            return [note]
        self._num_refused += 1
        refused = self._peer.holders(self._seeking.blob)
        if self._num_refused >= MAX_REFUSED_SNAPSHOTS:  # no more of what the same peers say that they have
            self._mistrusted.update(refused)
        return [note, *self._seek(now)]

    def _trainer_failed(self, event: c.TrainerFailed, now: float) -> Effects:
        self._following = None
        self._payloads.forget()
        self._making.clear()
        self._merging.clear()
        return self._after_failure(event, now)

    # --- gossip ---

    def gossip_push(self, sender: PeerId, push: m.GossipPush, now: float) -> Effects:
        """Its sender may follow our plan, or another of the same epoch, before we know that."""
        plan, effects = self.plan, Effects()
        if plan is not None and push.epoch == plan.epoch and sender not in self._shards:
            part, shards = plan.part_of(sender), {mass.shard for mass in push.masses}
            own = plan.part_of(self._peer.own_id)
            if part is None or own is None or not shards <= set(part.shards) & set(own.shards):
                return [Note("gossip-other-plan", (("peer", sender),))]
            self._shards[sender] = part.shards
            effects += self._tell_gossip(plan, now)
        return [*effects, *self._gossip.received(sender, push, now)]

    def _make_payload(self, effect: g.MakePayload, now: float) -> Effects:
        self._making[effect.exchange] = effect.partner
        return [ToTrainer(c.MakePayload(effect.exchange, effect.shards, effect.partner))]

    def _payload_made(self, event: c.PayloadMade, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """The trainer has halved its masses: publish the payload, or give the halves back."""
        partner = self._making.pop(event.exchange, None)
        if blob is None or not event.masses or partner is None:
            return [*self._give_back([event.masses]), *self._gossip.failed(event.exchange, now)]
        back = self._payloads.publish(event.exchange, blob, num_bytes, partner, event.masses)
        masses = [m.ShardMass(shard, mass) for shard, mass in event.masses]
        return [
            *self._give_back(back),
            *self._gossip.payload_ready(event.exchange, blob, num_bytes, masses, now),
        ]

    @staticmethod
    def _give_back(masses: Iterable[Masses]) -> Effects:
        return [ToTrainer(c.Reclaim(each)) for each in masses if each]

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        """Not a payload whose masses were taken back."""
        return self._payloads.may_serve(to, blob)

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """``to`` was sent the bytes of a blob up to ``end``."""
        self._payloads.served(to, blob, end)

    def _fetch_and_merge(self, effect: g.FetchAndMerge, now: float) -> Effects:
        if effect.blob in self._merges:  # no two payloads are alike
            return list(self._gossip.failed(effect.exchange, now))
        self._merges[effect.blob] = effect
        return self.fetch(effect.blob, effect.num_bytes, [effect.sender], now, ephemeral=True)

    def _merge(self, effect: g.FetchAndMerge) -> Effects:
        self._merging[effect.exchange] = effect
        masses = tuple((mass.shard, mass.mass) for mass in effect.masses)
        return [ToTrainer(c.Merge(effect.exchange, effect.sender, masses, b"", effect.reply), effect.blob, "payload")]

    def _merged(self, event: c.Merged, now: float) -> Effects:
        effect = self._merging.pop(event.exchange, None)
        if event.error:
            self._peer.refused["payload"] += 1
            note = Note("payload-refused", (("peer", event.sender), ("detail", event.error[:200])))
            return [note, *self._gossip.failed(event.exchange, now)]
        name = self._peer.name_of(PeerId(event.sender))
        note = Note("gossip", (("peer", name), ("bytes", effect.num_bytes if effect else 0)))
        return [note, *self._gossip.merged(event.exchange, now)]

    def _exchange_ended(self, effect: g.ExchangeEnded, now: float) -> Effects:
        done = effect.outcome == "done"
        self._making.pop(effect.exchange, None)
        effects = self._give_back(self._payloads.ended(effect.exchange, done, now + self._gossip.config.ceiling_s))
        if done:
            return effects
        name = self._peer.name_of(effect.partner)
        fields = (
            ("peer", name),
            ("stage", effect.stage),
            ("outcome", effect.outcome),
            ("s", round(effect.waited_s, 2)),
        )
        return [*effects, Note("gossip-ended", fields)]

    # --- blobs ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effects: Effects = []
        if merge := self._merges.pop(blob, None):
            effects += self._merge(merge)
        effects += self._kept_if_whole(blob, now)
        if self._seeking is not None and self._seeking.blob == blob:
            effects += self._follow(self._seeking, now)
        return effects

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effects: Effects = []
        if merge := self._merges.pop(blob, None):
            effects += self._gossip.failed(merge.exchange, now)
        effects += self._not_kept(blob, now)
        if self._seeking is not None and self._seeking.blob == blob:
            effects += self._seek(now)
        return effects

    # --- time ---

    def tick(self, now: float) -> Effects:
        expired = self._give_back(self._payloads.expire(now))
        return [*self.custody.tick(now), *self._gossip.tick(now), *expired]

    def next_deadline(self) -> float:
        deadlines = (self.custody.next_deadline(), self._gossip.next_deadline(), self._payloads.next_deadline())
        return min(*deadlines, NEVER)

    def waiting_for(self, now: float) -> str:
        """In words: a copy of the part, or a partner's answer."""
        if self._seeking is not None and not self._has_blob(self._seeking.blob):
            for progress in self._peer.transfers.progress():
                if progress.blob == self._seeking.blob:
                    done = 100 * progress.received_bytes // max(1, progress.num_bytes)
                    return f"part {self.part} from {self._peer.name_of(PeerId(progress.waiting_for))}: {done} % here"
        if self.plan is not None and self.part == m.NO_PART:
            return "a part: the plan has none for this peer (more peers than parts, or no samples that fit)"
        for wait in self._gossip.waiting():
            if now - wait.since > 5:
                left = max(0.0, wait.deadline - now)
                return f"gossip with {self._peer.name_of(wait.partner)} ({wait.stage}), given up in {left:.0f} s"
        return ""
