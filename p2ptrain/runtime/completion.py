"""How a job ends: everyone is trained, the group fits the head if the plan says so, looks at its model, and is done.

Invariant: the fit, and the look at everybody's validation samples, run over frozen snapshots, the freshest of each part
that members hold (of several trainers' copies their mean); any member can call for it, and the lowest id among those
that have samples does. What comes out, the head, is a holding like any other, which names the very snapshots that it
belongs to; who missed the fit fetches it from those that have it. It is done once, and again only for snapshots of a
later round, or of parts that had none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.core.effects import Effects, JobDone, KeepCustody, KeepHead, ReadHead, ToTrainer
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.planning.plan import Plan
from p2ptrain.protocol.head_fit.head_fit import Calibration
from p2ptrain.protocol.head_fit.run import (
    CalibrationFinished,
    CombineContributions,
    ComputeContribution,
    PrepareFeatures,
)
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.head import MAX_HOLDINGS, rounds_of
from p2ptrain.runtime.verdict import Verdict
from p2ptrain.wire import messages as m
from p2ptrain.wire.tensorfile import read_untrusted

if TYPE_CHECKING:
    from p2ptrain.runtime.peer import Peer

ENDED = ("trained", "calibrating", "done")
HEAD_RETRY_S = 10.0
MAX_COPIES = 16
"""Of one part, averaged before the head is fitted: those of the trainers with most samples."""


class Completion:
    """One peer's view of the end of one job."""

    def __init__(self, peer: Peer, job: Job, head: m.Holding | None) -> None:
        self._peer = peer
        self._job = job
        self._head = head
        self.verdict: Verdict | None = None
        """What the group found when it looked at its model."""
        self._calibration = Calibration(peer.own_id)
        self._to_fetch: list[m.Holding] = []
        self._fetching: m.Holding | None = None
        self._session = ""
        self._num_sent = 0
        """Copies that the trainer has been given."""
        self._others_head: m.Holding | None = None
        """A head that others made, on its way here."""
        self._next_head_at = 0.0
        self._callers: set[PeerId] = set()
        """Have called for a fit, and so have ended, though their records that say so are still on their way."""
        peer.on_effects(
            {
                PrepareFeatures: self._prepare,
                ComputeContribution: lambda e, now: [ToTrainer(c.Contribute(e.session, e.step, e.state))],
                CombineContributions: lambda e, now: [
                    ToTrainer(c.Combine(e.session, e.step, e.state, e.contributions))
                ],
                CalibrationFinished: lambda e, now: [KeepHead(e.holdings, e.state, e.step)],
            }
        )

    def holdings(self) -> tuple[m.Holding, ...]:
        return (self._head,) if self._head else ()

    # --- when is it over ---

    def look(self, now: float) -> Effects:
        """Something changed: is everyone trained?"""
        peer, plan = self._peer, self._plan()
        if plan is None:
            return []
        if plan.slices is not None and plan.part_of(peer.own_id) is None:
            return self._look_from_outside(plan, now)
        records = [record for member in peer.members() if (record := peer.records.get(member)) is not None]
        heads = self._heads_of_others(plan, records)
        if self._calibration.running:
            if not heads or self._calibration.step:
                return []
            self._calibration.stop()  # the others are through with it, and don't begin anew
        if self._waited_for(plan, records) or not peer.duty or not peer.duty.is_complete():
            return []
        if peer.records.own.phase not in ENDED:
            own = peer.records.own
            stands_by = plan.slices is None and plan.part_of(own.peer) is None and own.phase == "waiting"
            if not stands_by or not any(own.counts) or not peer.agreement or not peer.agreement.is_settled:
                return []
            return list(peer.records.update(now, phase="trained"))  # it stands by, and its samples count in the end
        if not self._is_wanted(plan) or self._calibration.hopeless:
            return self._done(now)
        holdings = self._freshest(plan, records)
        if self._head is not None and _covers(self._head, holdings):
            return self._done(now)
        if heads:
            return self._fetch_head(max(heads, key=lambda h: (h.epoch, h.step, h.samples, h.blob)), now)
        ended = [record.peer for record in records if record.phase in ENDED]
        if peer.own_id != min(ended, default=peer.own_id) or not holdings:
            return []
        effects = list(self._calibration.call(plan.epoch, holdings, self._num_steps(plan), ended, now))
        missing = sorted({part.index for part in plan.parts} - {h.part for h in holdings})
        if effects and missing:
            effects.insert(0, Note("calibration-without", (("parts", ", ".join(map(str, missing))),)))
        return [*effects, *peer.records.update(now, phase="calibrating")] if effects else []

    def _heads_of_others(self, plan: Plan, records: list[m.Record]) -> list[m.Holding]:
        """Heads that others are done with, and that nothing newer has come to since."""
        heads = [h for r in records if r.phase == "done" for h in r.holdings if h.part == m.HEAD_PART]
        if not heads:
            return []
        freshest = self._freshest(plan, records)
        return [head for head in heads if _covers(head, freshest)]

    def _waited_for(self, plan: Plan, records: list[m.Record]) -> list[m.Record]:
        """Who has not ended yet: trainers, then also those that stand by with samples of their own."""
        busy = [r for r in records if r.peer != self._peer.own_id and r.phase not in (*ENDED, "failed")]
        trainers = [r for r in busy if plan.part_of(r.peer) is not None]
        if plan.slices is not None or self._peer.records.own.phase not in ENDED:
            return trainers
        return trainers + [
            r for r in busy if r not in trainers and any(r.counts) and r.plan == self._peer.records.own.plan
        ]

    def _is_wanted(self, plan: Plan) -> bool:
        """Whether the group fits the head, or at least looks at its model, when all are trained."""
        return plan.slices is None and (plan.calibrate or self._job.data.val > 0)

    def _num_steps(self, plan: Plan) -> int:
        """The moments and the gradient steps of a fit; the look at the validation samples is the last."""
        return (1 + self._job.tasks.calibration_steps if plan.calibrate else 0) + 1

    def _look_from_outside(self, plan: Plan, now: float) -> Effects:
        """A peer that stands by is done when those who train are."""
        name = self._peer.duty.plan_hash if self._peer.duty else ""
        records = [r for p in plan.trainers() if (r := self._peer.records.get(p)) is not None and r.plan == name]
        alive = set(self._peer.members())
        here = [record for record in records if record.peer in alive]
        return self._done(now) if here and all(record.phase == "done" for record in here) else []

    def _plan(self) -> Plan | None:
        return self._peer.duty.plan if self._peer.duty else None

    def _freshest(self, plan: Plan, records: list[m.Record]) -> tuple[m.Holding, ...]:
        """Of each part the copies of its last round, one of each trainer; the blob's name settles ties everywhere."""
        best: dict[tuple[int, PeerId], m.Holding] = {}
        for holding in (h for record in records for h in record.holdings):
            if holding.part >= len(plan.parts) or holding.round > self._job.training.rounds:
                continue
            known = best.get((holding.part, holding.trainer))
            if known is None or _freshness(holding) > _freshness(known):
                best[holding.part, holding.trainer] = holding
        found: list[m.Holding] = []
        for part in sorted({part for part, _ in best}):
            copies = [h for (index, _), h in best.items() if index == part]
            last = max(h.round for h in copies)
            copies = sorted((h for h in copies if h.round == last), key=_freshness)[-MAX_COPIES:]
            found += sorted(copies, key=lambda h: h.trainer)
        return tuple(found[:MAX_HOLDINGS])

    def _done(self, now: float) -> Effects:
        if self._peer.records.own.phase == "done":
            return []
        return [*self._peer.records.update(now, phase="done"), Note("done"), JobDone()]

    # --- calibration ---

    def received(
        self,
        sender: PeerId,
        message: m.CalibrationCall | m.CalibrationReady | m.CalibrationGradient | m.CalibrationHead,
        now: float,
    ) -> Effects:
        if isinstance(message, m.CalibrationCall):
            plan = self._plan()
            if self._peer.records.own.phase not in ENDED or plan is None or plan.epoch != message.epoch:
                return []  # still training, or by another plan: it will be called again
            self._check_call(message)
            if self._head is not None and _covers(self._head, message.holdings):
                return []  # that is done, as our record tells: its sender fetches the head
            self._callers.add(sender)
            return self._received(sender, message, self._num_steps(plan), now)
        if isinstance(message, (m.CalibrationGradient, m.CalibrationHead)) and message.data:
            read_untrusted(message.data)
        return self._received(sender, message, 0, now)

    def _received(
        self,
        sender: PeerId,
        message: m.CalibrationCall | m.CalibrationReady | m.CalibrationGradient | m.CalibrationHead,
        num_steps: int,
        now: float,
    ) -> Effects:
        effects: Effects = list(self._calibration.received(sender, message, num_steps, now))
        if self._calibration.running and self._peer.records.own.phase == "trained":
            effects += self._peer.records.update(now, phase="calibrating")
        return effects

    def trainer_said(self, event: c.FeaturesExtracted | c.Contributed | c.Combined, now: float) -> Effects:
        if isinstance(event, c.FeaturesExtracted):
            return list(self._calibration.features_ready(event.session, event.samples, now))
        if isinstance(event, c.Contributed):
            return list(self._calibration.contribution_ready(event.session, event.step, event.samples, event.data, now))
        return list(self._calibration.state_ready(event.session, event.step, event.state, now))

    def _check_call(self, message: m.CalibrationCall) -> None:
        plan = self._plan()
        num_parts = len(plan.parts) if plan else 0
        if any(h.part >= num_parts or h.num_bytes < 1 for h in message.holdings):
            raise RemoteError("calibration", f"a snapshot that can't be of one of {num_parts} parts")

    def trainer_unable(self, now: float) -> Effects:
        """The trainer died, or could not use what it was given: this peer only listens."""
        self._to_fetch, self._fetching = [], None
        return list(self._calibration.features_ready(self._calibration.session, 0, now))

    def trainer_refused(self, now: float) -> Effects:
        """A snapshot or a state did not fit. A state: perhaps the next one does."""
        return self.trainer_unable(now) if self._calibration.preparing else []

    def members_changed(self, now: float) -> Effects:
        return [*self._calibration.members_changed(self._ended(), now), *self.look(now)]

    def _ended(self) -> list[PeerId]:
        ended, members = [], self._peer.members()
        self._callers.intersection_update(members)
        for member in members:
            record = self._peer.records.get(member)
            if record is not None and record.phase in ENDED:
                self._callers.discard(member)
                ended.append(member)
            elif member in self._callers:  # without its lead a peer would begin alone, and leave out all others
                ended.append(member)
        return ended

    def head_kept(self, holding: m.Holding, verdict: Verdict | None, now: float) -> Effects:
        self._head, self.verdict = holding, verdict
        plan, notes = self._plan(), []
        if plan is not None and plan.calibrate:
            fitted = self._job.tasks.calibration_steps
            notes.append(Note("calibrated", (("steps", fitted), ("samples", holding.samples))))
        if verdict is not None and verdict.samples:
            notes.append(Note("validated", (("accuracy", round(verdict.accuracy(), 4)), ("samples", verdict.samples))))
        return [*notes, *self._peer.publish_holdings(now), *self._done(now)]

    def _fetch_head(self, holding: m.Holding, now: float) -> Effects:
        duty = self._peer.duty
        if duty is None or self._others_head is not None or now < self._next_head_at:
            return []
        self._others_head, self._next_head_at = holding, now + HEAD_RETRY_S
        if duty.is_local(holding.blob):
            return [KeepCustody(holding)]
        return duty.fetch(holding.blob, holding.num_bytes, self._peer.holders(holding.blob), now)

    def others_head_kept(self, holding: m.Holding, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepCustody`` of a head: what that says comes with ``head_kept``."""
        self._others_head = None
        return [ReadHead(holding)] if saved else []

    def _prepare(self, effect: PrepareFeatures, now: float) -> Effects:
        self._session = effect.session
        self._to_fetch = sorted(effect.holdings, key=lambda h: (h.part, h.trainer))
        self._num_sent = 0
        self._fetching = None
        return self._next_part(now)

    def wants(self, blob: BlobId) -> bool:
        """Whether a fetch of it is waited for here."""
        return any(holding is not None and holding.blob == blob for holding in (self._fetching, self._others_head))

    def _next_part(self, now: float) -> Effects:
        """One part at a time, so that memory stays bounded."""
        duty = self._peer.duty
        effects: Effects = []
        while self._to_fetch and duty is not None:
            holding = self._to_fetch[0]
            if not duty.is_local(holding.blob):
                self._fetching = holding
                sources = self._peer.holders(holding.blob) or [holding.trainer]
                return [*effects, *duty.fetch(holding.blob, holding.num_bytes, sources, now, ephemeral=True)]
            self._to_fetch.pop(0)
            plan = self._plan() if self._num_sent == 0 else None
            command = c.ExtractFeatures(
                self._session,
                holding.part,
                holding.trainer,
                b"",
                weight=float(max(1, holding.samples)),
                last_copy=not self._to_fetch or self._to_fetch[0].part != holding.part,
                last=not self._to_fetch,
                plan=plan.to_json() if plan else "",
            )
            self._num_sent += 1
            effects.append(ToTrainer(command, holding.blob, "snapshot"))
        self._fetching = None
        return effects

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        if self._others_head is not None and self._others_head.blob == blob:
            return [KeepCustody(self._others_head)]
        return self._next_part(now) if self._fetching is not None and self._fetching.blob == blob else []

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        """Without one of the parts there are no features: this peer only listens."""
        if self._others_head is not None and self._others_head.blob == blob:
            self._others_head = None
        if self._fetching is None or self._fetching.blob != blob:
            return []
        return self.trainer_unable(now)

    # --- time ---

    def tick(self, now: float) -> Effects:
        return [*self._calibration.tick(now), *self.look(now)]

    def next_deadline(self) -> float:
        return min(self._calibration.next_deadline(), NEVER)

    def waiting_for(self, now: float) -> str:
        """In words: who still trains, or what calibration waits for."""
        if words := self._calibration.waiting_for(now):
            return words
        peer, plan = self._peer, self._plan()
        if plan is None or peer.records.own.phase not in ("trained", "calibrating"):
            return ""
        busy = []
        for member in peer.members():
            record = peer.records.get(member)
            if record is not None and plan.part_of(member) is not None and record.phase not in (*ENDED, "failed"):
                busy.append(f"{peer.name_of(member)} (round {record.round}/{self._job.training.rounds})")
        return f"others to finish: {', '.join(busy)}; whoever dies is left out" if busy else ""


def _covers(head: m.Holding, freshest: tuple[m.Holding, ...]) -> bool:
    """Whether a head is of the last rounds of all parts that there are copies of."""
    return head.span >= len({h.part for h in freshest}) and head.round >= rounds_of(freshest)


def _freshness(holding: m.Holding) -> tuple[int, int, int, str]:
    return holding.round, holding.step, holding.samples, holding.blob
