"""Gossip of this peer's part: who shares what with it, payloads made and merged by the trainer, masses never lost.

Invariant: each exchange that the gossip machine begins is told how it ended, and masses that nobody got come back to
the trainer.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping

from p2ptrain.config import Job
from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import CountRefused, Effects, ForgetBlob, Handler, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks.averaging.payloads import Masses, Payloads
from p2ptrain.modes.tasks.commands import MakePayload, Merge, Merged, PayloadMade, Reclaim
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.plan import body_of, parts_of
from p2ptrain.protocol import gossip as g
from p2ptrain.protocol.machine import Note
from p2ptrain.wire import messages as m

MAX_PROPORTION = 16
"""One peer's samples, to those of all others together: what is above that does not count. Where merges are guarded,
and there are two others at least, nobody counts more than all others together."""
LATE_S = 5.0
"""A partner that answers later than that is worth a word."""
MAX_MERGING = 4
"""Payloads that the trainer was given and has not answered yet. One that hangs is given no more for a minute: their
senders keep them."""
TURNS_MISSED = 2
"""A peer that got nothing of ours while all others had their turns so often does not have what we have learnt."""


def gossip_config(job: Job) -> g.GossipConfig:
    """How the peers of a job exchange what they train."""
    # An answer in top-k has the entries that came, which is how both sides agree on something.
    return g.GossipConfig(replies_after_merge=job.group.compression == "topk")


def exchange_due(job: Job, round: int, *, finished: bool) -> int | None:
    """Which exchange is due after so many rounds, or after the last one; None: not yet."""
    number, rest = divmod(round, tasks_of(job).exchange_every)
    return number if not rest or finished else None


def believable_mass(own: float, others: float, *, is_guarded: bool) -> float:
    """The most that a push can bring, of who says to have trained on ``own`` samples where all others have on
    ``others``."""
    return float(others + min(own, (1 if is_guarded else MAX_PROPORTION) * others))


class Exchanges:
    """Of one peer, in one job."""

    def __init__(self, group: GroupView, downloads: Downloads, rng: random.Random, job: Job) -> None:
        self._group = group
        self._job = job
        self._is_guarded = job.group.robust != "none"
        self._downloads = downloads
        self._gossip = g.Gossip(group.own_id, rng, gossip_config(job))
        self._plan: Plan | None = None
        self._name = ""
        """Of the plan."""
        self._shards: dict[PeerId, tuple[str, ...]] = {}
        """Of the others that follow our plan, as far as we know."""
        self._merges: dict[BlobId, g.FetchAndMerge] = {}
        """Payloads on their way here."""
        self._merging: dict[int, tuple[g.FetchAndMerge, float]] = {}
        """Exchanges whose payload the trainer merges, and since when."""
        self._making: dict[int, PeerId] = {}
        """Exchanges whose payload the trainer makes, and for whom."""
        self._is_trainer_lost = False
        """There is none until one begins anew: what it is given nobody would answer."""
        self._payloads = Payloads()
        self._reached: dict[PeerId, int] = {}
        """Our round in which a peer got a payload of ours whole, the last time."""
        self.handlers: Mapping[type, Handler] = {
            g.MakePayload: self._make_payload,
            g.FetchAndMerge: self._fetch_and_merge,
            g.ExchangeEnded: self._exchange_ended,
        }

    # --- who shares what ---

    def members_changed(self, plan: Plan, name: str, now: float) -> Effects:
        """Who follows the plan with this hash, as far as members say."""
        self._plan, self._name, trainers, parts = plan, name, plan.trainers(), parts_of(plan)
        same = {p for p in trainers if (r := self._group.record(p)) is not None and r.plan == name}
        self._shards = {p: parts[trainers[p]].shards for p in same}
        self._reached = {p: round for p, round in self._reached.items() if p in trainers}
        return [*self._tell(plan, now), *self._gossip.peers_alive(frozenset(self._group.alive()), now)]

    def _tell(self, plan: Plan, now: float) -> Effects:
        part = body_of(plan).part_of(self._group.own_id)
        return list(self._gossip.shards(self._shards, part.shards if part else (), plan.epoch, now))

    def pushed(self, sender: PeerId, push: m.GossipPush, now: float) -> Effects:
        """Its sender may follow our plan, or another of the same epoch, before we know that."""
        plan, effects = self._plan, Effects()
        if plan is not None and push.epoch == plan.epoch and sender not in self._shards:
            part, shards = body_of(plan).part_of(sender), {mass.shard for mass in push.masses}
            own = body_of(plan).part_of(self._group.own_id)
            if part is None or own is None or not shards <= set(part.shards) & set(own.shards):
                return [Note("gossip-other-plan", (("peer", sender),))]
            self._shards[sender] = part.shards
            effects += self._tell(plan, now)
        if push.num_bytes and self._trainer_hangs(now):
            return [*effects, Note("gossip-busy", (("peer", sender),))]
        push, is_less = self._believable(sender, push)
        effects += [CountRefused("gossip-mass-cut")] if is_less else []
        return [*effects, *self._gossip.received(sender, push, now)]

    def _believable(self, sender: PeerId, push: m.GossipPush) -> tuple[m.GossipPush, bool]:
        """The push with no more mass than there can be, and whether that is less: mass is samples trained on.

        What all others say that they trained on, and what the sender says, as far as that is not out of all proportion;
        and one pass over everything, as records come later than pushes.
        """
        if self._plan is None:
            return push, False
        counts = sum(peer.num_samples for peer in self._plan.peers if peer.peer != sender)
        records = [record for peer in self._plan.peers if (record := self._group.record(peer.peer)) is not None]
        others = counts + sum(record.samples for record in records if record.peer != sender)
        own = max((record.samples + sum(record.counts) for record in records if record.peer == sender), default=0)
        limit = believable_mass(own, others, is_guarded=self._is_guarded and len(self._plan.peers) > 2)
        masses = tuple(m.ShardMass(each.shard, min(each.mass, limit)) for each in push.masses)
        if self._gossip.config.max_mass < max(each.mass for each in push.masses) or masses == push.masses:
            return push, False  # what no honest peer sends is refused, not cut
        return dataclasses.replace(push, masses=masses), True

    def _trainer_hangs(self, now: float) -> bool:
        """Or is so far behind that no more should wait for it."""
        waiting = (since for _, since in self._merging.values() if now - since < self._gossip.config.ceiling_s)
        return sum(1 for _ in waiting) >= MAX_MERGING

    def round_finished(self, round: int, now: float, *, finished: bool) -> Effects:
        """There is something new to share."""
        number = exchange_due(self._job, round, finished=finished)
        return [] if number is None else list(self._gossip.round_finished(number, now))

    def has_reached(self, peer: PeerId, own: m.SnapshotRef) -> bool:
        """Whether what this peer learns gets to another all the time: it trains the same part by the same plan, all of
        it is averaged after every round, and what we gave of it got there lately.

        Of several parts few rounds bring the same two together, and top-k brings little at a time.
        """
        record, plan, job = self._group.record(peer), self._plan, self._job
        if plan is None or record is None or len(plan.parts) > 1:
            return False
        if job.group.compression == "topk" or tasks_of(job).exchange_every > 1 or peer not in self._reached:
            return False
        is_same = (record.plan, record.part, record.phase) == (self._name, own.part, "training")
        return is_same and own.round - self._reached[peer] <= TURNS_MISSED * len(plan.trainers())

    # --- payloads ---

    def _make_payload(self, effect: g.MakePayload, now: float) -> Effects:
        self._making[effect.exchange] = effect.partner
        return [ToTrainer(MakePayload(effect.exchange, effect.shards, effect.partner))]

    def payload_made(self, event: PayloadMade, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """The trainer has halved its masses: publish the payload, or give the halves back."""
        partner = self._making.pop(event.exchange, None)
        if blob is None or not event.masses or partner is None:
            spent: Effects = [ForgetBlob(blob)] if blob is not None else []
            return [*spent, *self._give_back([event.masses]), *self._gossip.failed(event.exchange, now)]
        back = self._payloads.publish(event.exchange, blob, num_bytes, partner, event.masses)
        masses = [m.ShardMass(shard, mass) for shard, mass in event.masses]
        return [*self._give_back(back), *self._gossip.payload_ready(event.exchange, blob, num_bytes, masses, now)]

    @staticmethod
    def _give_back(masses: Iterable[Masses]) -> Effects:
        return [ToTrainer(Reclaim(each)) for each in masses if each]

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        """Not a payload whose masses were taken back."""
        return self._payloads.may_serve(to, blob)

    def served(self, to: PeerId, blob: BlobId, end: int) -> None:
        """``to`` was sent the bytes of a blob up to ``end``."""
        if self._payloads.served(to, blob, end):
            self._reached[to] = self._group.own.round

    def _fetch_and_merge(self, effect: g.FetchAndMerge, now: float) -> Effects:
        if effect.blob in self._merges:  # no two payloads are alike
            return list(self._gossip.failed(effect.exchange, now))
        self._merges[effect.blob] = effect
        return self._downloads.fetch(effect.blob, effect.num_bytes, [effect.sender], now, ephemeral=True)

    def merged(self, event: Merged, now: float) -> Effects:
        """The trainer has merged a payload, or refused it."""
        effect, _ = self._merging.pop(event.exchange, (None, now))
        spent: Effects = [ForgetBlob(effect.blob)] if effect is not None else []
        if event.error:
            note = Note("payload-refused", (("peer", event.sender), ("detail", event.error[:200])))
            return [*spent, CountRefused("payload"), note, *self._gossip.failed(event.exchange, now)]
        name = self._group.name_of(PeerId(event.sender))
        note = Note("gossip", (("peer", name), ("bytes", effect.num_bytes if effect else 0)))
        return [*spent, note, *self._gossip.merged(event.exchange, now)]

    def _exchange_ended(self, effect: g.ExchangeEnded, now: float) -> Effects:
        done = effect.outcome == "done"
        self._making.pop(effect.exchange, None)
        effects = self._give_back(self._payloads.ended(effect.exchange, done, now + self._gossip.config.ceiling_s))
        if done:
            return effects
        name = self._group.name_of(effect.partner)
        figures = (("stage", effect.stage), ("outcome", effect.outcome), ("s", round(effect.waited_s, 2)))
        return [*effects, Note("gossip-ended", (("peer", name), *figures))]

    def trainer_begins_anew(self) -> None:
        """From a snapshot: nobody knows whether it counts the masses that are out."""
        self._is_trainer_lost = False
        self._payloads.forget()
        self._reached.clear()

    def trainer_lost(self) -> Effects:
        """Nothing comes of what it was making and merging."""
        self._is_trainer_lost = True
        self._payloads.forget()
        self._making.clear()
        spent: Effects = [ForgetBlob(effect.blob) for effect, _ in self._merging.values()]
        self._merging.clear()
        return spent

    # --- blobs and time ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effect = self._merges.pop(blob, None)
        if effect is None:
            return []
        if self._is_trainer_lost:
            return [ForgetBlob(blob), *self._gossip.failed(effect.exchange, now)]
        self._merging[effect.exchange] = effect, now
        masses = tuple((mass.shard, mass.mass) for mass in effect.masses)
        return [ToTrainer(Merge(effect.exchange, effect.sender, masses, b"", effect.reply), blob, "payload")]

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effect = self._merges.pop(blob, None)
        return list(self._gossip.failed(effect.exchange, now)) if effect else []

    def tick(self, now: float) -> Effects:
        back = self._give_back(self._payloads.expire(now))
        return [*self._gossip.tick(now), *back, *(ForgetBlob(blob) for blob in self._payloads.spent(now))]

    def next_deadline(self) -> float:
        return min(self._gossip.next_deadline(), self._payloads.next_deadline())

    def waiting_for(self, now: float) -> str:
        """In words: a partner's answer."""
        for wait in self._gossip.waiting():
            if now - wait.since > LATE_S:
                left = max(0.0, wait.deadline - now)
                return f"gossip with {self._group.name_of(wait.partner)} ({wait.stage}), given up in {left:.0f} s"
        return ""
