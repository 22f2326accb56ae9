"""Someone who only looks: joins for a status or a harvest, and is never a member.

Invariant: an observer publishes no record, so nobody plans with it, pings it or leaves anything with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core.effects import AbandonBlob, BlobArrived, BlobLost, Effects, VerifyBlob
from p2ptrain.core.plan import Plan
from p2ptrain.errors import JobError, NobodyError, RemoteError, UserError
from p2ptrain.ids import BlobId, JobId, PeerId, peer_id
from p2ptrain.modes.jobs import job_from_json
from p2ptrain.modes.registry import read_plan
from p2ptrain.net.group.admission import visitors_door
from p2ptrain.net.keys import Group, new_identity
from p2ptrain.net.signing import signing_of
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.session.door import OPEN_DOOR, Door
from p2ptrain.protocol.session.effects import Knocked, NoticeTold, PeerAdmitted, PeerDropped
from p2ptrain.protocol.session.sessions import MAX_PEERS
from p2ptrain.protocol.signing import Signing, Statements
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig, Node
from p2ptrain.runtime.peer.core import Core
from p2ptrain.runtime.store.blobs import Blobs
from p2ptrain.runtime.store.disk import Disk, StorageError
from p2ptrain.version import SOFTWARE
from p2ptrain.wire import messages as m

ASK_S = 1.0
MAX_RECORDS = 4096
"""Of peers that only others tell of. For one that is linked there is room in any case."""
MAX_PLANS = 64
MAX_BLOB_BYTES = 1 << 40
MAX_LAST_TRIES = 3
"""Copies that are asked for of such as have handed out nothing before."""
GOODBYE_S = 0.5
"""At most, for the last words to go out."""
SETTLE_S, TOLD_SETTLE_S = 0.5, 0.1
"""News that comes in bunches: look a little longer after the last; less long when nothing is missing."""
PATIENCE_S = 3.0
"""After the first answer, for everyone to answer for itself."""


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
        self.job: Job | None = None
        self._job_id = ""
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
        self._leaving = False
        self._handlers |= {
            PeerAdmitted: self._admitted,
            PeerDropped: self._dropped,
            BlobArrived: lambda e, now: self._ended(e.blob, "", now),
            BlobLost: lambda e, now: self._ended(e.blob, e.reason, now),
        }
        self._on_message |= {
            m.Records: self._records_came,
            m.RecordDigest: lambda sender, message, now: [],
            m.StatusReply: self._status_came,
            m.StopReply: self._stop_answered,
            m.JobReply: self._job_came,
            m.PlanReply: self._plan_came,
            m.Ping: lambda sender, message, now: [],
        }

    @property
    def job_id(self) -> str:
        return self._job_id

    def alive(self) -> list[m.Record]:
        """Records of the peers that are alive, by peer id."""
        return [r for p, r in sorted(self.records.items()) if self.states.get(p) in ("alive", "suspect")]

    def members(self) -> list[m.Record]:
        """Those of them that train the group's job, once that is known."""
        return [record for record in self.alive() if record.job == self._job_id]

    def plan(self) -> Plan | None:
        """The one that most follow of those that have answered themselves, once it is here; of several the newest. What
        one alone follows, of an epoch that it made up, say, is not the group's."""
        telling = [record for record in (self.members() if self._job_id else self.alive()) if record.plan]
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
        """Ask everyone for news."""
        effects: Effects = []
        for peer in self.sessions.peers():
            effects += [Send(peer, m.RecordDigest(versions=(), want_reply=True)), Send(peer, m.StatusRequest())]
            if self.job is None:
                effects.append(Send(peer, m.JobRequest()))
        for record in self.alive():
            if record.plan and record.plan not in self.plans and self.sessions.key_of(record.peer):
                effects.append(Send(record.peer, m.PlanRequest(record.plan)))
        return self.run(effects, now)

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
        return (ref.trainer, ref.part, ref.blob) in made or self._statements.is_trainers(ref, JobId(self._job_id))

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
        self._next_ask = now
        return [Note("admitted", (("peer", effect.peer), ("address", effect.address)))]

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
                if record.plan and record.plan not in self.plans and key:
                    effects.append(Send(record.peer, m.PlanRequest(record.plan)))
                if key is None:
                    for address in record.addresses:
                        effects += self.sessions.propose(address, now)
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
        if self.job is None:
            try:
                job = job_from_json(message.data.decode("utf-8", errors="replace"))
            except (JobError, RecursionError) as error:
                raise RemoteError("job", str(error)) from None
            linked = [record for record in self.records.values() if self.sessions.key_of(record.peer)]
            most = Counter(record.job for record in linked if record.job).most_common(1)
            if not most or job.id == most[0][0]:  # one member may tell anything, and of made-up peers
                self.job, self._job_id = job, job.id
        return []

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
        followed = {record.plan for record in self.alive()}
        left = sorted(self.plans, key=lambda name: (name in followed, self.plans[name].epoch))
        for name in left[: max(0, len(left) - MAX_PLANS)]:
            del self.plans[name]


class ObserverNode(Node):
    """An observer with a key of its own for this one visit; fetched blobs lie in ``directory``.

    It looks for peers and is not announced itself: it may be gone before they have heard of it.
    """

    announces = False
    linger_s = GOODBYE_S

    def __init__(
        self, group: Group, network: NetworkConfig, directory: Path, door: Callable[[bytes], Door] | None = None
    ) -> None:
        """``door``: of the visit with that key, where the group lets devices in one by one. Raises ``UserError``."""
        super().__init__(new_identity(), group, network, Journal(None))
        self._door = (door or visitors_door(group, None))(self.identity.public)
        self.blobs = Blobs(directory, quota_bytes=1 << 62, ephemeral_bytes=1 << 20, disk=Disk())
        self._observer: Observer | None = None

    async def close(self) -> None:
        """Say goodbye first, so that no peer keeps anything of this visit."""
        if self._observer is not None:
            self.feed(self._observer.leave)
        await super().close()

    @property
    def observer(self) -> Observer:
        if self._observer is None:
            raise UserError("the observer was not started")
        return self._observer

    def make_core(self) -> Observer:
        self._observer = Observer(
            self.identity.public,
            self.group.proof_key,
            self.addresses(),
            self.transport.bulk_port,
            self.rng,
            signing_of(self.identity),
            self._door,
        )
        return self._observer

    def carry_out_other(self, effect: object) -> None:
        if isinstance(effect, (WriteChunk, VerifyBlob)):
            try:
                self._store(effect)
            except StorageError as error:
                self.failure = self.failure or error
        elif isinstance(effect, AbandonBlob):
            self.blobs.abandon(effect.blob)
        elif isinstance(effect, ReadChunk):
            self.answer_read(effect, None)
        elif isinstance(effect, (NoticeTold, Knocked)):
            return  # who only looks follows nobody, and lets nobody in
        else:
            super().carry_out_other(effect)

    def _store(self, effect: WriteChunk | VerifyBlob) -> None:
        if isinstance(effect, WriteChunk):
            self.blobs.write(effect.blob, effect.offset, effect.data)
        else:
            sound = self.blobs.finish(effect.blob)
            self.feed(lambda now: self.observer.blob_checked(effect.blob, sound, now))

    async def _pause(self, seconds: float) -> None:
        """Let things happen. Raises what ended this node, if anything did."""
        await asyncio.sleep(seconds)
        if self.failure is not None:
            raise self.failure

    async def look_around(self, wait_s: float, need_job: bool = False) -> None:
        """Until everyone that is alive has been heard of. Raises ``NobodyError``."""
        observer, start = self.observer, self.now()
        while self.now() < start + wait_s:
            await self._pause(0.05)
            settle_s = TOLD_SETTLE_S if observer.misses_nothing() else SETTLE_S
            settled = self.now() - observer.changed_at > settle_s
            heard = observer.complete() or (observer.relayed() and self.now() - observer.first_answer_at > PATIENCE_S)
            if heard and settled and not (need_job and (observer.job is None or observer.plan() is None)):
                return
        if not observer.answered:
            tried = f" ({finding})" if (finding := observer.finding()) else ""
            raise NobodyError(
                f"no peer of this group answered within {wait_s:g} s{tried}; is one running, with this very code? "
                "`p2ptrain doctor` tells what this device sees; --peer HOST:PORT reaches one without discovery"
            )

    async def fetch(
        self, holding: m.SnapshotRef, timeout_s: float, progress: Callable[[], None] = lambda: None
    ) -> bytes | None:
        """A blob's bytes, or ``None`` if nobody delivers it in time. Raises ``UserError`` when the disk is full."""
        observer = self.observer
        if holding.num_bytes > MAX_BLOB_BYTES:
            return None  # whoever said so, it is no part of a model
        if holding.blob not in self.blobs:
            try:
                self.blobs.begin(holding.blob, holding.num_bytes)
            except RemoteError:
                return None
            self.feed(lambda now: observer.fetch(holding, now))
            deadline = time.monotonic() + timeout_s
            while holding.blob not in observer.blobs and time.monotonic() < deadline:
                await self._pause(0.02)
                progress()
            if holding.blob not in observer.blobs:
                self.feed(lambda now: observer.give_up(holding, now))
            if observer.blobs.get(holding.blob, "timeout"):
                return None
        data: Any = self.blobs.map(holding.blob)
        return bytes(data) if data is not None else None
