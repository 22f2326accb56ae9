"""Someone who only looks: joins for a status or a harvest, and is never a member.

Invariant: an observer publishes no record, so nobody plans with it, pings it or leaves anything with it. What it asks
of one peer does not grow with the group: each is asked for what is new of itself, and a few, in turn, for the others.
"""

from __future__ import annotations

import random
from collections import Counter

from p2ptrain.config import Job
from p2ptrain.core.effects import AbandonBlob, BlobArrived, BlobLost, Effects
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, JobId, PeerId, peer_id
from p2ptrain.modes.jobs import job_told
from p2ptrain.modes.registry import read_plan
from p2ptrain.protocol.group import record_changes
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.session.abuse import JOB_UNREAD
from p2ptrain.protocol.session.door import OPEN_DOOR, Door
from p2ptrain.protocol.session.effects import PeerAdmitted, PeerDropped
from p2ptrain.protocol.session.sessions import MAX_PEERS
from p2ptrain.protocol.signing import Signing, Statements
from p2ptrain.runtime.peer.core import MOST_ASKED, Core
from p2ptrain.version import SOFTWARE
from p2ptrain.wire import messages as m

ASK_S = 1.0
FEW = 3
"""So many of those that are met first are asked for what they know of everybody; and so many for the same plan."""
MAX_VERSIONS = 1024
MAX_RECORDS = 4096
"""Of peers that only others tell of. For one that is linked there is room in any case."""
MAX_PLANS, MAX_JOBS = 64, 16
MAX_LAST_TRIES = 3
"""Copies that are asked for of such as have handed out nothing before."""


class Observer(Core):
    """Collects records, job and plan, and fetches blobs."""

    def __init__(
        self,
        own_key: bytes,
        proof_key: bytes,
        addresses: tuple[str, ...],
        bulk_port: int,
        rng: random.Random,
        signing: Signing,
        door: Door = OPEN_DOOR,
    ) -> None:
        super().__init__(
            own_key,
            proof_key,
            addresses,
            bulk_port,
            rng,
            software=SOFTWARE,
            is_member=lambda peer: False,  # no membership here: whoever falls silent is dropped, and looked for
            max_visitors=MAX_PEERS,
            door=door,
        )
        self._statements = Statements(signing, proof_key)
        self.records: dict[PeerId, m.Record] = {}
        self.states: dict[PeerId, m.MemberState] = {}
        """As the admitted peers see it; one that answers us is alive."""
        self.peer_refused: dict[PeerId, Counter[str]] = {}
        self.jobs: dict[str, Job] = {}
        """By id: as somebody told them."""
        self.job_unread = ""
        """Why this version can't read a job that somebody told; "" = nobody told such."""
        self.only_job = ""
        """The id of the job that this visit is for; "" = whatever the group trains."""
        self.plans: dict[str, Plan] = {}
        self.answered: set[PeerId] = set()
        self.blobs: dict[BlobId, str] = {}
        """Fetches that ended: "" = arrived, else why not."""
        self.changed_at = 0.0
        self.stop_answers: dict[PeerId, m.StopAnswer] = {}
        """What each peer that was asked to stop does about it."""
        self.first_answer_at = NEVER
        self._num_last = 0
        """Fetches from such as have handed out nothing before."""
        self._next_ask = 0.0
        self._asked_at: dict[PeerId, float] = {}
        """When each that is linked was asked last."""
        self._asks: Counter[str] = Counter()
        """For each plan, since all were asked last; and for "all", ever."""
        self._num_rounds_asked = 0
        """How often all were asked."""
        self._leaving = False
        self._handlers |= {
            PeerAdmitted: self._admitted,
            PeerDropped: self._dropped,
            BlobArrived: lambda e, now: self._ended(e.blob, "", now),
            BlobLost: lambda e, now: self._ended(e.blob, e.reason, now),
        }
        self._on_message |= {
            m.Records: self._records_came,
            m.RecordChanges: self._changes_came,
            m.RecordDigest: lambda sender, message, now: [],
            m.StatusReply: self._status_came,
            m.StopReply: self._stop_answered,
            m.JobReply: self._job_came,
            m.PlanReply: self._plan_came,
            m.Ping: lambda sender, message, now: [],
        }

    @property
    def job(self) -> Job | None:
        """The one that is wanted, once it is here."""
        return self.jobs.get(self._wanted())

    @property
    def job_id(self) -> str:
        return self._wanted() if self.job is not None else ""

    def _wanted(self) -> str:
        """The id of the job that most train of those that have answered themselves; "" = none is known."""
        if self.only_job:
            return self.only_job
        told = Counter(record.job for record in self._telling() if record.job)
        return min(told, key=lambda name: (-told[name], name), default="")

    def _telling(self) -> list[m.Record]:
        """Of those that are alive the ones that have answered themselves; all if none has."""
        return [record for record in self.alive() if record.peer in self.answered] or self.alive()

    def alive(self) -> list[m.Record]:
        """Records of the peers that are alive, by peer id."""
        return [r for p, r in sorted(self.records.items()) if self.states.get(p) in ("alive", "suspect")]

    def members(self) -> list[m.Record]:
        """Those of them that train the group's job, once that is known."""
        job = self.job_id
        return [record for record in self.alive() if record.job == job]

    def plan(self) -> Plan | None:
        """The one that most follow of those that have answered themselves, once it is here; of several the newest. What
        one alone follows, of an epoch that it made up, say, is not the group's."""
        telling = [record for record in (self.members() if self.job is not None else self.alive()) if record.plan]
        told = [record for record in telling if record.peer in self.answered] or telling
        followed = Counter((-record.epoch, record.plan) for record in told)
        return self.plans.get(min(followed, key=lambda ref: (-followed[ref], ref), default=(0, ""))[1])

    def complete(self) -> bool:
        """Everyone that anybody calls alive has answered for itself: what others relay may be a second old."""
        alive = {p for p, state in self.states.items() if state in ("alive", "suspect")}
        return bool(self.answered) and alive <= self.answered

    def misses_nothing(self) -> bool:
        """All have answered, and the job that they train and every plan that one of them follows are here."""
        alive = self.alive()
        has_job = self.job is not None or not any(record.job for record in alive)
        return self.complete() and has_job and {record.plan for record in alive if record.plan} <= self.plans.keys()

    def relayed(self) -> bool:
        """There is a record of everyone that anybody calls alive, though some only from others."""
        alive = {p for p, state in self.states.items() if state in ("alive", "suspect")}
        return bool(self.answered) and alive <= self.records.keys()

    def ask(self, now: float) -> Effects:
        """Ask for news: everyone in a small room."""
        linked = self.sessions.peers()
        self._asked_at = {peer: self._asked_at.get(peer, -NEVER) for peer in linked}
        effects: Effects = []
        for peer in sorted(linked, key=self._asked_at.__getitem__)[:MOST_ASKED]:
            effects += self._ask(peer, now)
        if linked:
            effects.append(self._ask_of_all(linked[int(now) % len(linked)]))
        self._asks = Counter({"all": self._asks["all"]})
        alive = self.alive()
        start = FEW * self._num_rounds_asked % max(1, len(alive))  # others each time: those of the last may not answer
        self._num_rounds_asked += 1
        for record in (*alive[start:], *alive[:start]):
            effects += self._ask_for_plan(record)
        return self.run(effects, now)

    def _ask(self, peer: PeerId, now: float) -> Effects:
        """For what is new of itself, and for the job while it is not here."""
        self._asked_at[peer] = now
        told, wanted = self.records.get(peer), self._wanted()
        own = m.RecordDigest((m.RecordVersion(peer, told.version if told else 0),), want_reply=True, whole=False)
        effects: Effects = [Send(peer, own), Send(peer, m.StatusRequest())]
        if self.job is None and (not wanted or told is None or told.job == wanted):
            effects.append(Send(peer, m.JobRequest()))
        return effects

    def _ask_of_all(self, peer: PeerId) -> Send:
        known = list(self.records.items())[:MAX_VERSIONS]
        versions = tuple(m.RecordVersion(each, record.version) for each, record in known)
        return Send(peer, m.RecordDigest(versions, want_reply=True))

    def _ask_for_plan(self, record: m.Record) -> Effects:
        if not record.plan or record.plan in self.plans or self.sessions.key_of(record.peer) is None:
            return []
        self._asks[record.plan] += 1
        return [Send(record.peer, m.PlanRequest(record.plan))] if self._asks[record.plan] <= FEW else []

    def tick(self, now: float) -> Effects:
        effects = super().tick(now)
        if now >= self._next_ask and not self._leaving:
            self._next_ask = now + ASK_S
            effects += self.ask(now)
        return effects

    def next_deadline(self) -> float:
        return min(super().next_deadline(), NEVER if self._leaving else self._next_ask)

    def is_trainers(self, ref: m.SnapshotRef) -> bool:
        """Whether who it names made it; a head of an older version names copies that are signed by now."""
        made = ((h.trainer, h.part, h.blob) for record in self.alive() for h in record.holdings)
        return (ref.trainer, ref.part, ref.blob) in made or self._statements.is_trainers(ref, JobId(self.job_id))

    def fetch(self, holding: m.SnapshotRef, now: float) -> Effects:
        """Get a blob from whoever says that it has it."""
        self.blobs.pop(holding.blob, None)
        sources = [r.peer for r in self.alive() if any(h.blob == holding.blob for h in r.holdings)]
        sources = [peer for peer in sources if self.sessions.key_of(peer)] or self.sessions.peers()
        if sources and all(map(self.transfers.hands_out_nothing, sources)):
            self._num_last += 1
            if self._num_last > MAX_LAST_TRIES:  # it may tell of a hundred
                return self._ended(holding.blob, "who says to have it hands out nothing", now)
        return self.run(self.transfers.fetch(holding.blob, holding.num_bytes, sources, now), now)

    def give_up(self, holding: m.SnapshotRef, now: float) -> Effects:
        """It takes too long."""
        return self.run([*self.transfers.cancel(holding.blob, now), AbandonBlob(holding.blob)], now)

    def _ended(self, blob: BlobId, why: str, now: float) -> Effects:
        self.blobs[blob] = why
        self.changed_at = now
        return []

    def leave(self, now: float) -> Effects:
        """Say goodbye to everyone: the last thing to do."""
        self._leaving = True
        return self.run([Send(peer, m.Goodbye()) for peer in self.sessions.peers()], now)

    def _dropped(self, effect: PeerDropped, now: float) -> Effects:
        """What others say of it counts again."""
        self.answered.discard(effect.peer)
        return list(self.transfers.peer_gone(effect.peer, now))

    def _admitted(self, effect: PeerAdmitted, now: float) -> Effects:
        if self._leaving:
            return [Send(effect.peer, m.Goodbye())]
        effects: Effects = [Note("admitted", (("peer", effect.peer), ("address", effect.address)))]
        self._asks["all"] += 1
        if self._asks["all"] <= FEW:
            effects.append(self._ask_of_all(effect.peer))
        return effects + self._ask(effect.peer, now)

    def process_gone(self, peer: PeerId, now: float) -> Effects:
        """It answers no more: what the others say of it counts."""
        self.answered.discard(peer)
        return []

    def _records_came(self, sender: PeerId, message: m.Records, now: float) -> Effects:
        effects: Effects = []
        for record in message.records:
            known, key = self.records.get(record.peer), self.sessions.key_of(record.peer)
            has_room = known is not None or key is not None or len(self.records) < MAX_RECORDS
            if has_room and (known is None or record.version > known.version):
                if peer_id(record.key) != record.peer or not self._statements.is_owners(record):
                    self.refused["record-unsigned"] += 1
                    continue
                if self._statements.false_snapshot(record) is not None:
                    self.refused["snapshot-unsigned"] += 1
                    continue
                self.records[record.peer] = record
                self.changed_at = now if known is None else self.changed_at
                effects += self._ask_for_plan(record)
                if key is None:
                    for address in record.addresses:
                        effects += self.sessions.propose(address, now)
        return effects

    def _changes_came(self, sender: PeerId, message: m.RecordChanges, now: float) -> Effects:
        """Of records that are here; what comes of it is asked for as a whole where its owner did not sign that."""
        effects: Effects = []
        for change in message.changes:
            known = self.records.get(change.peer)
            if known is None or not change.since <= known.version < change.version:
                continue
            record = record_changes.changed(known, change)
            if self._statements.is_owners(record):
                effects += self._records_came(sender, m.Records((record,)), now)
            else:
                nothing = m.RecordVersion(change.peer, 0)
                effects.append(Send(sender, m.RecordDigest((nothing,), want_reply=True, whole=False)))
        return effects

    def _status_came(self, sender: PeerId, message: m.StatusReply, now: float) -> Effects:
        self.answered.add(sender)
        self.first_answer_at = min(self.first_answer_at, now)
        for rumour in message.members:
            if rumour.peer not in self.answered:
                self.states[rumour.peer] = rumour.state
        self.states[sender] = next((r.state for r in message.members if r.peer == sender), "alive")
        self.peer_refused[sender] = Counter({entry.reason: entry.count for entry in message.refused})
        self.answers[sender] = message
        return []

    def ask_to_stop(self, stop: m.Stop, now: float) -> Effects:
        """Everyone who is linked, has that job and has not answered yet."""
        has_it = {record.peer for record in self.alive() if record.job == stop.job}
        asked = [peer for peer in self.sessions.peers() if peer in has_it and peer not in self.stop_answers]
        return self.run([Send(peer, stop) for peer in asked], now)

    def _stop_answered(self, sender: PeerId, message: m.StopReply, now: float) -> Effects:
        self.stop_answers[sender] = message.answer
        return []

    def _job_came(self, sender: PeerId, message: m.JobReply, now: float) -> Effects:
        try:
            job = job_told(message.data)
        except RemoteError as error:
            self.job_unread = error.detail if error.reason == JOB_UNREAD else self.job_unread
            raise
        if job.id not in self.jobs:
            self.jobs[job.id] = job
            self.changed_at = now
            self._forget_jobs()
        return []

    def _forget_jobs(self) -> None:
        """Those that fewest train: one member may tell any number."""
        told: Counter[str] = Counter(record.job for record in self._telling())
        wanted = self._wanted()
        left = sorted(self.jobs, key=lambda name: (name == wanted, told[name]))
        for name in left[: max(0, len(left) - MAX_JOBS)]:
            del self.jobs[name]

    def _plan_came(self, sender: PeerId, message: m.PlanReply, now: float) -> Effects:
        plan = read_plan(message.data)
        name = plan.hash
        if any(record.plan == name for record in self.records.values()):
            self.plans[name] = plan
            self.changed_at = now
            self._forget_plans()
        return []

    def _forget_plans(self) -> None:
        """The oldest that nobody follows any more, or that somebody made up."""
        followed = {record.plan for record in self._telling()}
        left = sorted(self.plans, key=lambda name: (name in followed, self.plans[name].epoch))
        for name in left[: max(0, len(left) - MAX_PLANS)]:
            del self.plans[name]
