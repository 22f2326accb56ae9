"""One peer's protocol side: every state machine of the group, wired together. No I/O, no clock, no torch.

Invariant: this class decides nothing that a machine decides; it passes on what one machine's effect means to the
others. Who is alive (membership), what each says of itself (records), who trains what (agreement), what this peer does
about it (duty), how the group ends (completion).

A member is an admitted peer that has a record; observers (status, harvest) never publish one.
"""

from __future__ import annotations

import random

from p2ptrain.config import Job, job_from_json
from p2ptrain.core.effects import BlobArrived, BlobLost, Effects, JobReceived, KeepSnapshot, StartTrainer, Unusable
from p2ptrain.errors import JobError, RemoteError
from p2ptrain.ids import BlobId, JobId, PeerId
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import model_from_json
from p2ptrain.planning.plan import Plan
from p2ptrain.protocol import gossip as g
from p2ptrain.protocol.blobs.profile_book import ProfileBook, ProfileLearnt
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.consensus.agreement import Agreement, AgreementConfig, Answer, PlanAdopted, VoteFor
from p2ptrain.protocol.group.link_probe import LinkMeter
from p2ptrain.protocol.group.membership import (
    LAN,
    Membership,
    PeerFailed,
    PeerJoined,
    PeerLeft,
    PeerRefuted,
    PeerSuspected,
)
from p2ptrain.protocol.group.records import RecordBook, RecordChanged
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.replication import Custody, CustodyConfig
from p2ptrain.protocol.session.effects import PeerAdmitted, PeerDropped
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.completion import Completion
from p2ptrain.runtime.core import Core
from p2ptrain.runtime.duty import Duty
from p2ptrain.runtime.peer_io import PeerConfig, Resume
from p2ptrain.runtime.plan_rules import PlanRules
from p2ptrain.runtime.stage_duty import StageDuty
from p2ptrain.runtime.verdict import Verdict
from p2ptrain.wire import messages as m

STATUS_INTERVAL_S = 1.0
LOOK_S = 0.05
"""News of others comes in bunches: this long after the first of them, see what they mean for plan, custody and end."""
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
        )
        self.config = config
        self.job: Job | None = None
        self._job_id = JobId("")
        """Of ``job``: to hash it for every message would be most of a node's work."""
        self.membership = Membership(self.own_id, rng, now, LAN, incarnation=wall_ms // 1000)
        record = m.Record(
            peer=self.own_id,
            version=wall_ms,
            key=config.own_key,
            name=config.name,
            addresses=config.addresses,
            job=JobId(""),
            counts=(),
            wishes=(),
            flops_per_s=config.flops_per_s,
            memory_bytes=config.memory_bytes,
            epoch=0,
            plan="",
            part=m.NO_PART,
            phase="waiting",
            round=0,
            step=0,
            samples=0,
            loss=0.0,
            samples_per_s=0.0,
            bytes_sent=0,
            waiting_for="a group: nobody found yet",
            holdings=(),
            link_bytes_per_s=config.link_bytes_per_s,
        )
        self.records = RecordBook(record, rng, now, version_base=wall_ms)
        self.agreement: Agreement[Plan] | None = None
        self.duty: Duty | StageDuty | None = None
        self.model: ModelProfile | None = None
        """The blocks of the job's model, in mode slices, once the trainer has counted them."""
        self.profiles = ProfileBook()
        self.completion: Completion | None = None
        self._rng = rng
        self._next_status = now
        self._look_at = NEVER
        self._warned: set[str] = set()
        self._left = False
        self._init_ready = False
        self._wire()

    def _wire(self) -> None:
        self._handlers |= {
            PeerAdmitted: self._admitted,
            PeerDropped: self._dropped,
            PeerJoined: self._joined,
            PeerSuspected: lambda e, now: [Note("suspected", (("peer", e.peer), ("name", self.name_of(e.peer))))],
            PeerRefuted: lambda e, now: [Note("refuted", (("peer", e.peer), ("name", self.name_of(e.peer))))],
            PeerFailed: lambda e, now: self._gone(e.peer, "failed", now),
            PeerLeft: lambda e, now: self._gone(e.peer, "left", now),
            RecordChanged: self._record_changed,
            PlanAdopted: self._plan_adopted,
            VoteFor: lambda e, now: list(self.records.update(now, vote=e.hash)),
            ProfileLearnt: lambda e, now: list(self.agreement.reconsider(now)) if self.agreement else [],
            BlobArrived: self._blob_arrived,
            BlobLost: self._blob_lost,
        }
        self._on_message |= {
            m.Ping: lambda s, msg, now: list(self.membership.received(s, msg, now)),
            m.PingRequest: lambda s, msg, now: list(self.membership.received(s, msg, now)),
            m.Ack: lambda s, msg, now: list(self.membership.received(s, msg, now)),
            m.RecordDigest: lambda s, msg, now: list(self.records.received(s, msg, now)),
            m.Records: lambda s, msg, now: list(self.records.received(s, msg, now)),
            m.StatusRequest: self._status_asked,
            m.JobRequest: self._job_asked,
            m.JobReply: self._job_came,
            m.PlanRequest: lambda s, msg, now: list(self.agreement.received(s, msg, now)) if self.agreement else [],
            m.PlanReply: lambda s, msg, now: list(self.agreement.received(s, msg, now)) if self.agreement else [],
            m.ProfileRequest: lambda s, msg, now: list(self.profiles.received(s, msg, now)),
            m.ProfileReply: lambda s, msg, now: list(self.profiles.received(s, msg, now)),
            m.StageData: self._stage_data,
            m.StageAck: self._stage_data,
            m.LinkProbe: self._link_message,
            m.LinkEcho: self._link_message,
            m.GossipPush: lambda s, msg, now: self.duty.gossip_push(s, msg, now) if self.duty else [],
            m.CustodyOffer: lambda s, msg, now: list(self.duty.custody.received(s, msg, now)) if self.duty else [],
            m.CustodyAck: lambda s, msg, now: list(self.duty.custody.received(s, msg, now)) if self.duty else [],
        }
        for kind in (m.CalibrationCall, m.CalibrationReady, m.CalibrationGradient, m.CalibrationHead):
            self._on_message[kind] = lambda s, msg, now: (
                self.completion.received(s, msg, now) if self.completion else []
            )

    # --- who we are ---

    @property
    def job_id(self) -> str:
        return self._job_id

    @property
    def epoch(self) -> int:
        return self.duty.data_epoch if self.duty else 0

    def name_of(self, peer: PeerId) -> str:
        record = self.records.get(peer)
        return record.name if record and record.name else peer

    def members(self) -> list[PeerId]:
        """Alive members that have a record of this job, ourselves included."""
        return sorted(
            peer
            for peer in {*self.membership.alive(), self.own_id}
            if (record := self.records.get(peer)) is not None and record.job == self.job_id
        )

    # --- what the node calls ---

    def job_opened(self, job: Job, resume: Resume, now: float) -> Effects:
        """The job is known and its store is open. Training may begin once the data are counted."""
        self.job, self._job_id = job, job.id
        sliced = job.mode == "slices"
        keeping = CustodyConfig(num_custodians=job.group.custodians, past_epochs=sliced)
        custody = Custody(self.own_id, keeping, resume.kept)
        timing = AgreementConfig(min_peers=job.group.min_peers, settle_s=job.group.settle_s, majority=sliced)
        if sliced:
            stage = self.duty = StageDuty(self, job, custody, resume, LinkMeter(self.own_id, self._rng))
            rules = PlanRules(
                self.own_id,
                job,
                model=lambda: self.model,
                profile_of=self.profiles.get,
                steps=stage.steps.next_and_covered,
                batch_s=stage.steps.batch_s,
                is_under_way=stage.steps.is_under_way,
                is_lost=stage.steps.is_lost,
            )
        else:
            self.duty = Duty(self, job, custody, g.Gossip(self.own_id, self._rng), resume)
            rules = PlanRules(self.own_id, job)
        self.agreement = Agreement(self.own_id, job.id, rules, now, timing, restored=resume.plan)
        self.completion = Completion(self, job, resume.head)
        note = Note("job", (("job", job.id), ("name", job.name), ("mode", job.mode)))
        effects: Effects = [note, *self.records.update(now, job=job.id), *self.publish_holdings(now)]
        return self.run([*effects, *self._seek_init(now)], now)

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """An event of the trainer; tensors that came with it are in the store under ``blob``."""
        if self.job is None or self.duty is None or self.completion is None:
            return []
        effects: Effects
        if isinstance(event, c.Ready):
            effects = self._ready(event, now)
        elif isinstance(event, c.Profiled):
            effects = self._profiled(event, now)
        elif isinstance(event, (c.FeaturesExtracted, c.Contributed, c.Combined)):
            effects = self.completion.trainer_said(event, now)
        else:
            effects = []
            if isinstance(event, c.TrainerFailed):
                effects += self.completion.trainer_unable(now)
            elif isinstance(event, c.SnapshotRefused) and not self.duty.seeking:
                effects += self.completion.trainer_refused(now)
            effects += self.duty.trainer_said(event, blob, num_bytes, now)
            effects += self.completion.look(now)
        return self.run(effects, now)

    def snapshot_kept(self, effect: KeepSnapshot, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepSnapshot``: it is safe on disk, or could not be saved."""
        if self.duty is None or self.completion is None:
            return []
        return self.run([*self.duty.snapshot_kept(effect, saved, now), *self.completion.look(now)], now)

    def custody_kept(self, holding: m.Holding, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepCustody``."""
        return self.run(self.duty.custody_kept(holding, saved, now) if self.duty else [], now)

    def head_kept(self, holding: m.Holding, verdict: Verdict | None, now: float) -> Effects:
        """A head is in the store; ``verdict``: what it says of the group's model."""
        return self.run(self.completion.head_kept(holding, verdict, now) if self.completion else [], now)

    def chunk_read(self, effect: ReadChunk, data: bytes | None, now: float) -> Effects:
        if data is not None and self.duty is not None:
            if self.duty.may_serve(effect.to, effect.blob):
                self.duty.served(effect.to, effect.blob, effect.offset + len(data))
            else:
                data = None
        return super().chunk_read(effect, data, now)

    def plan_worked_out(self, answer: Answer[Plan], now: float) -> Effects:
        """The node's answer to ``Question``."""
        return self.run(self.agreement.answered(answer, now) if self.agreement else [], now)

    def traffic(self, bytes_sent: int, now: float) -> Effects:
        return self.run(self.records.update(now, bytes_sent=bytes_sent), now)

    def leave(self, now: float) -> Effects:
        """Say goodbye. What is held in custody and the own snapshot stay on disk."""
        self._left = True
        return self.run([*self.records.tick(now), *self.membership.leave(now)], now)

    def readdressed(self, addresses: tuple[str, ...], now: float) -> Effects:
        """The device's addresses changed."""
        self.sessions.readdress(addresses)
        return self.run(self.records.update(now, addresses=addresses), now)

    def tick(self, now: float) -> Effects:
        effects: Effects = [*self.membership.tick(now), *self.records.tick(now)]
        if self.duty and self.agreement and self.completion:
            effects += [*self.agreement.tick(now), *self.duty.tick(now), *self.completion.tick(now)]
            effects += self.profiles.tick(now)
        if now >= self._look_at:
            effects += self._members_changed(now)
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL_S
            effects += [*self._ask_again(now), *self._seek_init(now)]
            words = self._waiting_for(now)
            for peer in self.members():
                words = words.replace(peer, self.name_of(peer))
            effects += self.records.update(now, waiting_for=words[:256])
        return super().tick(now) + self.run(effects, now)

    def next_deadline(self) -> float:
        deadlines = [super().next_deadline(), self.membership.next_deadline(), self.records.next_deadline()]
        if self.duty and self.agreement and self.completion:
            deadlines += [
                self.agreement.next_deadline(),
                self.duty.next_deadline(),
                self.completion.next_deadline(),
                self.profiles.next_deadline(),
            ]
        return min(*deadlines, self._next_status, self._look_at)

    # --- peers come and go ---

    def _admitted(self, effect: PeerAdmitted, now: float) -> Effects:
        note = Note("admitted", (("peer", effect.peer), ("address", effect.address), ("software", effect.software)))
        effects: Effects = [note, Send(effect.peer, m.RecordDigest(versions=(), want_reply=True))]
        if self.job is None:
            effects.append(Send(effect.peer, m.JobRequest()))
        if isinstance(self.duty, StageDuty):
            effects += self.duty.peer_admitted(effect.peer, now)
        if self.records.get(effect.peer) is not None:
            effects += self.membership.peer_reachable(effect.peer, now)
        return effects

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
        return [
            Note("link-closed", (("peer", effect.peer), ("reason", effect.reason))),
            *self.transfers.peer_gone(effect.peer, now),
        ]

    def _joined(self, effect: PeerJoined, now: float) -> Effects:
        self.records.peers_alive(self.membership.alive(), now)
        self._look_at = min(self._look_at, now + LOOK_S)
        return [Note("joined", (("peer", effect.peer), ("name", self.name_of(effect.peer))))]

    def _gone(self, peer: PeerId, how: str, now: float) -> Effects:
        effects: Effects = [Note(how, (("peer", peer), ("name", self.name_of(peer))))]
        effects += self.transfers.peer_gone(peer, now)
        effects += self.sessions.drop(peer, how, now)
        return effects + self._members_changed(now)

    def _members_changed(self, now: float) -> Effects:
        self._look_at = NEVER
        self.records.peers_alive(self.membership.alive(), now)
        if not (self.duty and self.agreement and self.completion):
            return []
        return [*self.duty.members_changed(now), *self.completion.members_changed(now), *self._tell_agreement(now)]

    def _tell_agreement(self, now: float) -> Effects:
        if self.agreement is None or self._left:
            return []
        members = [self.records.all()[peer] for peer in self.members()]
        return [
            *self.profiles.members_changed(members, now),
            *self.agreement.view_changed(members, now, self._gone_for_good()),
        ]

    def _gone_for_good(self) -> list[PeerId]:
        """Peers that said goodbye."""
        return [peer for peer in self.records.all() if self.membership.state(peer) == "left"]

    def _record_changed(self, effect: RecordChanged, now: float) -> Effects:
        old, new = effect.old, effect.new
        if new.peer == self.own_id:
            return self._tell_agreement(now) if old is None or _plans_differ(old, new) else []
        effects: Effects = []
        if old is None or old.addresses != new.addresses:
            for address in new.addresses:
                effects += self.sessions.propose(address, now, peer=new.peer)
        if self.sessions.key_of(new.peer) is not None:
            effects += self.membership.peer_reachable(new.peer, now)
        if self.job is None:
            return effects
        if new.job and new.job != self.job_id and new.peer not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(new.peer)
            effects.append(Note("other-job", (("peer", new.peer), ("theirs", new.job), ("ours", self.job_id))))
        if old is None or _plans_differ(old, new) or old.part != new.part or old.holdings != new.holdings:
            self._look_at = min(self._look_at, now + LOOK_S)
        return effects

    def _status_asked(self, sender: PeerId, _: m.StatusRequest, now: float) -> Effects:
        rumours = [m.Rumour(self.own_id, "left" if self._left else "alive", 0)]
        for peer in sorted(self.records.all())[:511]:
            state = self.membership.state(peer)
            if peer != self.own_id and state is not None:
                rumours.append(m.Rumour(peer, state, self.membership.incarnation(peer) or 0))
        counts = (self.refused + self.sessions.refused).most_common(64)
        refused = tuple(m.RefusedCount(reason[:256], count) for reason, count in counts)
        return [Send(sender, m.StatusReply(members=tuple(rumours), refused=refused))]

    # --- job and plan ---

    def _job_asked(self, sender: PeerId, _: m.JobRequest, now: float) -> Effects:
        return [Send(sender, m.JobReply(data=self.job.to_json().encode()))] if self.job else []

    def _job_came(self, sender: PeerId, message: m.JobReply, now: float) -> Effects:
        if self.job is not None:
            return []
        try:
            job = job_from_json(message.data.decode("utf-8", errors="replace"))
        except (JobError, RecursionError) as error:
            raise RemoteError("job", str(error)) from None
        if ":" in job.model.name and job.model.name != self.config.allow_user_code:
            reason = (
                f"the group's model is its own code ({job.model.name}), which would run on this device; look at it, "
                f"put it on the Python path, and start with --allow-model {job.model.name}"
            )
            return [Unusable(reason)]
        return [Note("job-from", (("peer", sender), ("job", job.id))), JobReceived(job)]

    def _seek_init(self, now: float) -> Effects:
        """The checkpoint that the job starts from comes from any member, if it is not here."""
        if self.job is None or self.duty is None or self._init_ready:
            return []
        init = BlobId(self.job.model.init) if self.job.model.init else None
        if init is None or self.duty.is_local(init):
            self._init_ready = True
            return [StartTrainer(init)]
        sources = [p for p in self.sessions.peers() if (r := self.records.get(p)) is not None and r.job == self.job_id]
        if not sources or any(progress.blob == init for progress in self.transfers.progress()):
            return []
        return self.duty.fetch(init, self.job.model.init_bytes, sources, now)

    def _ready(self, event: c.Ready, now: float) -> Effects:
        """The data are counted: from now on plans can have us."""
        if self.job is None:
            return []
        names = [name.casefold() for name in self.job.data.classes]
        wishes = tuple(sorted({names.index(w.casefold()) for w in self.config.wishes if w.casefold() in names}))
        effects: Effects = list(
            self.records.update(now, counts=event.counts, wishes=wishes, max_groups=event.max_groups)
        )
        if self.agreement and self.agreement.current and self.duty:  # restarted: go on, until we hear of a newer plan
            effects += self.duty.plan_adopted(self.agreement.current, now)
        return effects

    def _profiled(self, event: c.Profiled, now: float) -> Effects:
        """The model's blocks are counted and measured: planning can have us."""
        self.model = model_from_json(event.model)
        return list(self.records.update(now, profile=self.profiles.set_own(event.profile.encode())))

    def _stage_data(self, sender: PeerId, message: m.StageData | m.StageAck, now: float) -> Effects:
        return self.duty.stage_data(sender, message, now) if isinstance(self.duty, StageDuty) else []

    def _link_message(self, sender: PeerId, message: m.LinkProbe | m.LinkEcho, now: float) -> Effects:
        return self.duty.link_message(sender, message, now) if isinstance(self.duty, StageDuty) else []

    def _plan_adopted(self, effect: PlanAdopted[Plan], now: float) -> Effects:
        if self.duty is None or self.completion is None:
            return []
        self._next_status = now  # what it waited for is over
        return [*self.duty.plan_adopted(effect.plan, now), *self.completion.look(now)]

    # --- blobs ---

    def _blob_arrived(self, effect: BlobArrived, now: float) -> Effects:
        effects = self.duty.blob_arrived(effect.blob, now) if self.duty else []
        if self.job and effect.blob == self.job.model.init:
            effects += self._seek_init(now)
        return effects + (self.completion.blob_arrived(effect.blob, now) if self.completion else [])

    def _blob_lost(self, effect: BlobLost, now: float) -> Effects:
        effects: Effects = [Note("blob-lost", (("blob", effect.blob[:12]), ("reason", effect.reason)))]
        effects += self.duty.blob_lost(effect.blob, now) if self.duty else []
        return effects + (self.completion.blob_lost(effect.blob, now) if self.completion else [])

    def holders(self, blob: BlobId) -> list[PeerId]:
        """Alive members that say they have a blob."""
        return [
            peer
            for peer in sorted(self.membership.alive())
            if (record := self.records.get(peer)) and any(h.blob == blob for h in record.holdings)
        ]

    def publish_holdings(self, now: float) -> Effects:
        """Tell the group what this peer has."""
        if self.duty is None or self.completion is None:
            return []
        holdings = (*self.completion.holdings(), *self.duty.holdings())[:256]
        return list(self.records.update(now, holdings=holdings))

    def _waiting_for(self, now: float) -> str:
        if self.job is None:
            return "the job: nobody has told it yet" if self.membership.alive() else "a group: nobody found yet"
        if not self._init_ready:
            return f"the checkpoint that the job starts from ({self.job.model.init[:12]}), from any member"
        if not self.records.own.counts:
            return "own data: being loaded" if self.job.mode != "slices" else "own data and the speed of the blocks"
        if self.agreement and self.agreement.problem:
            return f"a plan that can be made: {self.agreement.problem}"
        if self.agreement and (words := self.agreement.waiting_for(now)):
            return words
        waits = [
            self.duty.waiting_for(now) if self.duty else "",
            self.completion.waiting_for(now) if self.completion else "",
        ]
        return "; ".join(filter(None, waits))


def _plans_differ(old: m.Record, new: m.Record) -> bool:
    """Whether a change of a record can matter to planning."""
    figures = ("flops_per_s", "memory_bytes", "link_bytes_per_s", "links", "slowdown", "profile")
    fields = ("job", "counts", "wishes", "max_groups", *figures, "epoch", "plan", "part", "vote", "phase")
    return any(getattr(old, name) != getattr(new, name) for name in fields)
