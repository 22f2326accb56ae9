"""One peer's protocol side: every state machine of the group, wired together. No I/O, no clock, no torch.

Invariant: this class decides nothing that a machine decides; it passes on what one machine's effect means to the
others. Who is alive (membership), what each says of itself (records), who trains what (agreement), what this peer does
about it (its mode's role), how the group ends (completion).

A member is an admitted peer that has a record; observers (status, harvest) never publish one.
"""

from __future__ import annotations

import random
from typing import Any

from p2ptrain.config import Job
from p2ptrain.core import commands as c
from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import (
    BlobArrived,
    BlobLost,
    Effects,
    EndingOver,
    Handler,
    JobReceived,
    KeepSnapshot,
    MessageHandler,
    Reconsider,
)
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.looks.looks import Looks
from p2ptrain.core.mode import Given, Role
from p2ptrain.core.peer_config import PeerConfig, Resume, first_record
from p2ptrain.core.plan import Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.registry import mode_of
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.consensus.agreement import Agreement
from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.protocol.consensus.rules import AgreementConfig, PlanAdopted, PlanResult, VoteFor
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.record import matters_to_plans
from p2ptrain.protocol.group.records import RECORD_MESSAGES, RecordBook, RecordChanged
from p2ptrain.protocol.group.swim import PeerFailed, PeerJoined, PeerLeft, PeerRefuted, PeerSuspected
from p2ptrain.protocol.machine import NEVER, Machine, Note, Send
from p2ptrain.protocol.session.effects import PeerAdmitted, PeerDropped
from p2ptrain.protocol.signing import Statements
from p2ptrain.runtime.peer.completion import Completion
from p2ptrain.runtime.peer.core import Core
from p2ptrain.runtime.peer.init_search import InitSearch
from p2ptrain.runtime.peer.job_search import JobSearch
from p2ptrain.runtime.peer.reach import Reach
from p2ptrain.runtime.peer.status import status_reply
from p2ptrain.runtime.peer.stopping import GroupStop
from p2ptrain.runtime.peer.waiting import waiting_words
from p2ptrain.wire import messages as m

STATUS_INTERVAL_S = 1.0
LOOK_S = 0.05  # news of others comes in bunches: so long after the first, see what they mean for plan, replicas and end
MAX_WARNED = 1024


class Peer(Core):
    """Feed it what happens; carry out what it returns."""

    def __init__(self, config: PeerConfig, rng: random.Random, now: float, wall_ms: int) -> None:
        super().__init__(
            config.own_key,
            config.proof_key,
            config.addresses,
            config.bulk_port,
            rng,
            software=config.software,
            is_member=lambda peer: self.records.get(peer) is not None,
            started_s=wall_ms // 1000,
            door=config.door,
        )
        self.config = config
        self.job: Job | None = None
        first, incarnation = first_record(config, self.own_id, wall_ms), wall_ms // 1000
        said: dict[str, Any] = {"statements": Statements(config.signing, config.proof_key), "refused": self.refused}
        self.records = RecordBook(first, rng, now, version_base=wall_ms, **said)
        self.records.linked = self.sessions.peers
        self.membership = Membership(self.own_id, rng, now, key_of=self._key_of, incarnation=incarnation, **said)
        self.group = GroupView(self.own_id, self.membership, self.records)
        self.agreement: Agreement[Plan] | None = None
        self.role: Role | None = None
        self.completion: Completion | None = None
        known = (self.sessions, self.transfers, self.membership, self.records.all, lambda: self.epoch)
        self.reach: Reach = Reach(self.own_id, *known, now)
        self.membership.knows_neighbours(self.reach.neighbours)
        self._machines: list[Machine] = [self.membership, self.records, self.reach]
        """In the order in which they hear of the time; those of a job come with it."""
        self._rng = rng
        self._next_status, self._look_at = now, NEVER
        self.trainer_waits = ""  # in words, while the trainer is silent for suspiciously long; the node keeps it true
        self._left, self._warned = False, set[str]()
        self._init = InitSearch(self.group, self.sessions.peers)
        self.looks: Looks | None = None
        self._stop = GroupStop(self.group, lambda: self.role, may=config.remote_stop)
        self._job_search = JobSearch(config.allow_user_code, self.refused)
        self._handlers |= self._own_handlers()
        self._on_message |= self._own_messages()

    def _own_handlers(self) -> dict[type, Handler]:
        return {
            PeerAdmitted: self._admitted,
            PeerDropped: self._dropped,
            PeerJoined: self._joined,
            PeerSuspected: lambda e, now: [Note("suspected", (("peer", e.peer), ("name", self.group.name_of(e.peer))))],
            PeerRefuted: lambda e, now: [Note("refuted", (("peer", e.peer), ("name", self.group.name_of(e.peer))))],
            PeerFailed: lambda e, now: self._gone(e.peer, "failed", now),
            PeerLeft: lambda e, now: self._gone(e.peer, "left", now),
            RecordChanged: self._record_changed,
            PlanAdopted: self._plan_adopted,
            VoteFor: lambda e, now: self.group.say(now, vote=e.hash),
            Reconsider: lambda e, now: list(self.agreement.reconsider(now)) if self.agreement else [],
            EndingOver: lambda e, now: self.completion.done(now) if self.completion else [],
            BlobArrived: self._blob_arrived,
            BlobLost: self._blob_lost,
        }

    def _own_messages(self) -> dict[type, MessageHandler]:  # a role's own come with it
        return {
            **dict.fromkeys((m.Ping, m.PingRequest, m.Ack), lambda *each: list(self.membership.received(*each))),
            **dict.fromkeys(RECORD_MESSAGES, lambda *each: list(self.records.received(*each))),
            m.StatusRequest: self._status_asked,
            **self._stop.messages,
            m.JobRequest: self._job_asked,
            m.JobReply: self._job_came,
            **dict.fromkeys((m.PlanRequest, m.PlanReply, m.PlanVote), self._of_plans),
        }

    # --- who we are ---

    @property
    def job_id(self) -> str:
        return self.group.job

    @property
    def epoch(self) -> int:
        return self.role.data_epoch if self.role else 0

    # --- what the node calls ---

    def job_opened(self, job: Job, resume: Resume, now: float) -> Effects:
        """The job is known and its store is open. Training may begin once the data are counted."""
        self.job = job
        resume, effects = self.group.take_up(job.id, resume, now)
        mode, downloads = mode_of(job), Downloads(self.transfers, resume.has_blob)
        role = self.role = mode.role(Given(job, self.group, downloads, resume, self._rng))
        timing = AgreementConfig(min_peers=job.group.min_peers, settle_s=job.group.settle_s, majority=mode.majority)
        agreement = Agreement(self.own_id, job.id, role.rules, now, timing, restored=resume.plan, voted=resume.voted)
        self.agreement, looks = agreement, Looks(job, self.group, downloads, role, mode.harvester, resume.looked_at)
        self.looks = looks
        self._init.begin(job, downloads)
        self._stop.begin(job)
        self.completion = Completion(self.group, role, job.training.rounds, lambda: agreement.is_settled)
        self.group.path, self.group.holdings = agreement.parentage.path, lambda: (*role.holdings(), *looks.holdings())
        self._machines += [agreement, role, looks, self.completion]
        self._handlers |= role.handlers
        self._on_message |= role.messages
        note = Note("job", (("job", job.id), ("name", job.name), ("mode", job.mode)))
        effects = [note, *effects, *self.group.say_holdings(now)]
        self._look_at = min(self._look_at, now + LOOK_S)
        return self.run([*effects, *self._init.look(now)], now)

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """An event of the trainer; tensors that came with it are in the store under ``blob``."""
        if self.role is None or self.completion is None:
            return []
        if isinstance(event, c.Ready):
            return self.run(self._ready(event, now), now)
        if isinstance(event, c.ModelLooked):
            return self.run(self.looks.looked(event, now) if self.looks else [], now)
        effects = self.run(self.role.trainer_said(event, blob, num_bytes, now), now)
        return effects + self.run(self.completion.look(now), now)

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepSnapshot``: it is safe on disk, or could not be saved."""
        if self.role is None or self.completion is None:
            return []
        kept = [*self.role.snapshot_kept(effect, saved, now), *(self.looks.keep() if self.looks else ())]
        return self.run([*kept, *self.completion.look(now)], now)

    def replica_kept(self, holding: m.SnapshotRef, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepReplica``."""
        if self.role is None or self.looks is None:
            return []
        if holding.kind == "kept":
            return self.run(self.looks.replica_kept(holding, saved, now), now)
        if holding.kind == "head":
            return self.run(self.role.ending.others_kept(holding, saved, now) if self.role.ending else [], now)
        return self.run([*self.role.replicas.replica_kept(holding, saved, now), *self.looks.keep()], now)

    def result_kept(self, holding: m.SnapshotRef, data: bytes | None, now: float) -> Effects:
        """The node's answer to ``KeepResult`` and ``ReadResult``: it is in the store. None: the disk refused it."""
        if self.role is None or self.role.ending is None:
            return []
        return self.run(self.role.ending.kept(holding, data, now), now)

    def chunk_read(self, effect: ReadChunk, data: m.RawBytes | None, now: float) -> Effects:
        if data is not None and self.role is not None:
            if self.role.may_serve(effect.to, effect.blob):
                self.role.served(effect.to, effect.blob, effect.offset + len(data))
            else:
                data = None
        return super().chunk_read(effect, data, now)

    def plan_worked_out(self, answer: PlanResult[Plan], now: float) -> Effects:
        """The node's answer to ``PlanWork``."""
        return self.run(self.agreement.answered(answer, now) if self.agreement else [], now)

    def process_gone(self, peer: PeerId, now: float) -> Effects:
        self.group.process_ended(peer)
        return self.run([*self.membership.process_gone(peer, now), *self._members_changed(now)], now)

    def vote_kept(self, ref: PlanRef, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepVote``."""
        return self.run(self.agreement.vote_kept(ref, saved, now) if self.agreement else [], now)

    def tell(self, now: float, **known: float) -> Effects:
        return self.run(self.group.say(now, **known), now)  # what the node knows: fields of ``Record``

    def leave(self, now: float) -> Effects:
        """Say goodbye. What is held for others and the own snapshot stay on disk."""
        self._left = True
        return self.run([*self.records.tick(now), *self.membership.leave(now)], now)

    def readdressed(self, addresses: tuple[str, ...], now: float) -> Effects:
        self.sessions.readdress(addresses)
        return self.run(self.group.say(now, addresses=self.sessions.told), now)

    def tick(self, now: float) -> Effects:
        effects: Effects = [effect for machine in self._machines for effect in machine.tick(now)]
        if now >= self._look_at:
            effects += self._members_changed(now)
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL_S
            effects += [*self._ask_again(now), *self._take_job(now), *self._init.look(now), *self._stop.look(now)]
            words = self.group.with_names(self._waiting_for(now))
            effects += self.group.say(now, waiting_for=words[:256])
        return super().tick(now) + self.run(effects, now)

    def next_deadline(self) -> float:
        deadlines = [machine.next_deadline() for machine in self._machines]
        return min(super().next_deadline(), *deadlines, self._next_status, self._look_at)

    # --- peers come and go ---

    def _key_of(self, peer: PeerId) -> bytes | None:
        """As its session or its record shows."""
        if peer == self.own_id:
            return self.config.own_key
        record = self.records.get(peer)
        return record.key if record is not None else self.sessions.key_of(peer)

    def _admitted(self, effect: PeerAdmitted, now: float) -> Effects:
        self.records.met(effect.peer)
        note = Note("admitted", (("peer", effect.peer), ("address", effect.address), ("software", effect.software)))
        effects: Effects = [note, Send(effect.peer, m.RecordDigest(versions=(), want_reply=True))]
        if self.job is None:
            effects.append(Send(effect.peer, m.JobRequest()))
        if self.role is not None:
            effects += self.role.peer_admitted(effect.peer, now)
        if self.records.get(effect.peer) is not None:
            effects += self.membership.peer_reachable(effect.peer, now)
        return effects + self.reach.admitted(effect.peer, now)

    def _ask_again(self, now: float) -> Effects:
        """What the first questions to a peer did not bring."""
        effects: Effects = []
        for peer in self.sessions.peers():
            record = self.records.get(peer)
            if record is None:
                effects.append(Send(peer, m.RecordDigest(versions=(), want_reply=True)))
            elif self.membership.state(peer) is None:
                effects += self.membership.peer_reachable(peer, now)
            if self.job is None and (record is None or record.job):
                effects.append(Send(peer, m.JobRequest()))
        return effects

    def _dropped(self, effect: PeerDropped, now: float) -> Effects:
        note = Note("link-closed", (("peer", effect.peer), ("reason", effect.reason)))
        if effect.reason == "idle":  # what it has is as good as before
            self.membership.link_closed(effect.peer)
            return [note]
        return [note, *self.transfers.peer_gone(effect.peer, now)]

    def _joined(self, effect: PeerJoined, now: float) -> Effects:
        self.group.ended.discard(effect.peer)
        self.records.peers_alive(self.membership.alive(), now)
        self._look_at = min(self._look_at, now + LOOK_S)
        return [Note("joined", (("peer", effect.peer), ("name", self.group.name_of(effect.peer))))]

    def _gone(self, peer: PeerId, how: str, now: float) -> Effects:
        effects: Effects = [Note(how, (("peer", peer), ("name", self.group.name_of(peer))))]
        effects += self.transfers.peer_gone(peer, now)
        effects += self.sessions.drop(peer, how, now)
        return effects + self._members_changed(now)

    def _members_changed(self, now: float) -> Effects:
        self._look_at = NEVER
        self.records.peers_alive(self.membership.alive(), now)
        if not (self.role and self.completion and self.looks):
            return []
        return [
            *self.role.members_changed(now),
            *self.looks.look(now),
            *self.completion.members_changed(now),
            *self._tell_agreement(now),
        ]

    def _tell_agreement(self, now: float) -> Effects:
        if self.agreement is None or self._left or self._stop.is_over:
            return []
        left = [peer for peer in self.records.all() if self.membership.state(peer) == "left"]
        self.agreement.arrivals.num_coming = self.group.num_coming()
        return list(self.agreement.view_changed(self.group.records(), now, left, self.group.ended))

    def _record_changed(self, effect: RecordChanged, now: float) -> Effects:
        old, new = effect.old, effect.new
        if new.peer == self.own_id:
            return self._tell_agreement(now) if old is None or matters_to_plans(old, new) else []
        effects = self.reach.told_of(old, new, now)
        if self.sessions.key_of(new.peer) is not None:
            effects += self.membership.peer_reachable(new.peer, now)
        if self.job is None:
            return effects
        if new.job and new.job != self.job_id and new.peer not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(new.peer)
            effects.append(Note("other-job", (("peer", new.peer), ("theirs", new.job), ("ours", self.job_id))))
        if old is None or matters_to_plans(old, new) or old.part != new.part or old.holdings != new.holdings:
            self._look_at = min(self._look_at, now + LOOK_S)
        return effects

    def _status_asked(self, sender: PeerId, _: m.StatusRequest, now: float) -> Effects:
        return [Send(sender, status_reply(self, self.records, self.membership, has_left=self._left))]

    # --- job and plan ---

    def _job_asked(self, sender: PeerId, _: m.JobRequest, now: float) -> Effects:
        reply = m.JobReply(data=self.job.to_json().encode()) if self.job else None
        return [*self.asked_again(sender), Send(sender, reply)] if reply else []

    def _job_came(self, sender: PeerId, message: m.JobReply, now: float) -> Effects:
        if self.job is None:
            self._job_search.told(sender, message.data, now)
        return []

    def _take_job(self, now: float) -> Effects:
        found = self._job_search.choose(now) if self.job is None else None
        if found is None:
            return []
        return [Note("job-from", (("peer", found[0]), ("job", found[1].id))), JobReceived(found[1])]

    def _ready(self, event: c.Ready, now: float) -> Effects:
        """The data are counted: from now on plans can have us."""
        if self.job is None:
            return []
        wishes = self.config.wished(self.job.data.classes)
        effects: Effects = [Note(kind, (("detail", text[:400]),)) for kind, text in event.told]
        effects += self.looks.ready(event.num_val, now) if self.looks else []
        effects += self.group.say(now, counts=event.counts, wishes=wishes, max_groups=event.max_groups)
        if self.agreement and self.agreement.current and self.role:  # restarted: go on, until we hear of a newer plan
            effects += self.role.plan_adopted(self.agreement.current, now)
        return effects

    def _of_plans(self, sender: PeerId, message: m.PlanRequest | m.PlanReply | m.PlanVote, now: float) -> Effects:
        return list(self.agreement.received(sender, message, now)) if self.agreement else []

    def _plan_adopted(self, effect: PlanAdopted[Plan], now: float) -> Effects:
        if self.role is None or self.completion is None:
            return []
        self._next_status = now  # what it waited for is over
        return [*self.role.plan_adopted(effect.plan, now), *self.completion.look(now)]

    # --- blobs ---

    def _blob_arrived(self, effect: BlobArrived, now: float) -> Effects:
        effects = self.role.blob_arrived(effect.blob, now) if self.role else []
        looked = self.looks.blob_arrived(effect.blob, now) if self.looks else []
        return [*effects, *looked, *(self._init.look(now) if self.job and effect.blob == self.job.model.init else [])]

    def _blob_lost(self, effect: BlobLost, now: float) -> Effects:
        effects: Effects = [Note("blob-lost", (("blob", effect.blob[:12]), ("reason", effect.reason)))]
        effects += self.role.blob_lost(effect.blob, now) if self.role else []
        return effects + (self.looks.blob_lost(effect.blob, now) if self.looks else [])

    def num_missing(self) -> int:
        return self.group.num_missing(self.job.group.min_peers if self.job else 2)

    def _waiting_for(self, now: float) -> str:
        if self.job is None:
            words = self._job_search.words(is_alone=not self.membership.alive())
        elif not self._init.is_here:
            words = f"the checkpoint that the job starts from ({self.job.model.init[:12]}), from any member"
        else:
            words = waiting_words(self.records.own, self.role, self.agreement, self.completion, now)
        looking = self.finding() if words and not self.membership.alive() else ""
        return "; ".join(filter(None, [self.trainer_waits, words, looking]))
