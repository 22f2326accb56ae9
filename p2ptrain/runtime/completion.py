"""How a job ends: everyone is trained, the group calibrates the head if the plan says so, and then it is done.

Invariant: calibration runs over one frozen snapshot a part, the freshest that members hold; any member can call it,
and the lowest id among those that train does. What comes out, the head, is a holding like any other, which names the
very snapshots that it belongs to; who missed the calibration fetches it from those that have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.planning.plan import Plan
from p2ptrain.protocol import messages as m
from p2ptrain.protocol.calibration import Calibration
from p2ptrain.protocol.calibration_run import (
    CalibrationFinished,
    CombineContributions,
    ComputeContribution,
    PrepareFeatures,
)
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.core import Effects, ToTrainer
from p2ptrain.runtime.keeping import KeepCustody
from p2ptrain.runtime.tensorfile import read_untrusted

if TYPE_CHECKING:
    from p2ptrain.runtime.peer import Peer

ENDED = ("trained", "calibrating", "done")
HEAD_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class KeepHead:
    """Save the calibrated head with the snapshots that it belongs to; then ``head_kept`` with this holding's blob."""

    holdings: tuple[m.Holding, ...]
    state: bytes
    step: int
    samples: int


@dataclass(frozen=True, slots=True)
class JobDone:
    """Nothing is left to train: from now on this peer only serves what it has, unless a new plan has work for it."""


class Completion:
    """One peer's view of the end of one job."""

    def __init__(self, peer: Peer, job: Job, head: m.Holding | None) -> None:
        self._peer = peer
        self._job = job
        self._head = head
        self._calibration = Calibration(peer.own_id, job.tasks.calibration_steps + 1)
        self._to_fetch: list[m.Holding] = []
        self._fetching: m.Holding | None = None
        self._session = ""
        self._others_head: m.Holding | None = None
        """A head that others made, on its way here."""
        self._next_head_at = 0.0
        peer.on_effects(
            {
                PrepareFeatures: self._prepare,
                ComputeContribution: lambda e, now: [ToTrainer(c.Contribute(e.session, e.step, e.state))],
                CombineContributions: lambda e, now: [
                    ToTrainer(c.Combine(e.session, e.step, e.state, e.contributions))
                ],
                CalibrationFinished: lambda e, now: [KeepHead(e.holdings, e.state, e.step, e.samples)],
            }
        )

    def holdings(self) -> tuple[m.Holding, ...]:
        return (self._head,) if self._head else ()

    # --- when is it over ---

    def look(self, now: float) -> Effects:
        """Something changed: is everyone trained?"""
        peer, plan = self._peer, self._plan()
        if plan is None or self._calibration.running:
            return []
        if plan.slices is not None and plan.part_of(peer.own_id) is None:
            return self._look_from_outside(plan, now)
        if peer.records.own.phase not in ENDED:
            return []
        records = [record for member in peer.members() if (record := peer.records.get(member)) is not None]
        busy = [r for r in records if plan.part_of(r.peer) is not None and r.phase not in (*ENDED, "failed")]
        if busy or not peer.duty or not peer.duty.is_complete():
            return []
        if not plan.calibrate or self._head is not None or self._calibration.hopeless:
            return self._done(now)
        if heads := [h for r in records if r.phase == "done" for h in r.holdings if h.part == m.HEAD_PART]:
            return self._fetch_head(max(heads, key=lambda h: (h.epoch, h.step, h.samples, h.blob)), now)
        holdings = self._freshest(plan, records)
        ended = [record.peer for record in records if record.phase in ENDED]
        if peer.own_id != min(ended, default=peer.own_id) or not holdings:
            return []
        effects = list(self._calibration.call(plan.epoch, holdings, ended, now))
        missing = sorted({part.index for part in plan.parts} - {h.part for h in holdings})
        if effects and missing:
            effects.insert(0, Note("calibration-without", (("parts", str(missing)),)))
        return [*effects, *peer.records.update(now, phase="calibrating")] if effects else []

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
        """One copy a part: the most rounds, then the most samples; the blob's name settles ties alike everywhere."""
        best: dict[int, m.Holding] = {}
        for holding in (h for record in records for h in record.holdings):
            if holding.part >= len(plan.parts) or holding.round > self._job.training.rounds:
                continue
            known = best.get(holding.part)
            if known is None or _freshness(holding) > _freshness(known):
                best[holding.part] = holding
        return tuple(best[part] for part in sorted(best))

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
            if self._peer.records.own.phase not in ENDED:
                return []  # still training: it will be called again
            self._check_call(message)
        elif isinstance(message, (m.CalibrationGradient, m.CalibrationHead)) and message.data:
            read_untrusted(message.data)
        effects: Effects = list(self._calibration.received(sender, message, now))
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
        ended = [p for p in self._peer.members() if (r := self._peer.records.get(p)) is not None and r.phase in ENDED]
        return [*self._calibration.members_changed(ended, now), *self.look(now)]

    def head_kept(self, holding: m.Holding, now: float) -> Effects:
        self._head = holding
        note = Note("calibrated", (("steps", holding.step), ("samples", holding.samples)))
        return [note, *self._peer.publish_holdings(now), *self._done(now)]

    def _fetch_head(self, holding: m.Holding, now: float) -> Effects:
        duty = self._peer.duty
        if duty is None or self._others_head is not None or now < self._next_head_at:
            return []
        self._others_head, self._next_head_at = holding, now + HEAD_RETRY_S
        if duty.is_local(holding.blob):
            return [KeepCustody(holding)]
        return duty.fetch(holding.blob, holding.num_bytes, self._peer.holders(holding.blob), now)

    def others_head_kept(self, holding: m.Holding, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepCustody`` of a head."""
        self._others_head = None
        return self.head_kept(holding, now) if saved else []

    def _prepare(self, effect: PrepareFeatures, now: float) -> Effects:
        self._session = effect.session
        self._to_fetch = sorted(effect.holdings, key=lambda h: h.part)
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
            last = not self._to_fetch
            command = c.ExtractFeatures(self._session, holding.part, b"", last)
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


def _freshness(holding: m.Holding) -> tuple[int, int, int, str]:
    return holding.round, holding.step, holding.samples, holding.blob
