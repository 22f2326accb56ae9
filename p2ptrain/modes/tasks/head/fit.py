"""How a group of class sub-models ends: it fits the last layer if the plan says so, and looks at its model.

Invariant: the fit, and the look at everybody's validation samples, run over frozen snapshots, the freshest of each part
that members hold (of several trainers' copies their mean); any member can call for it, and the lowest id among those
that have samples does. What comes out, the head, is a holding like any other, which names the very snapshots that it
belongs to; who missed the fit fetches it from those that have it. It is done once, and again only for snapshots of a
later round, or of parts that had none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2ptrain.core.effects import (
    Effects,
    EndingOver,
    Handler,
    KeepReplica,
    KeepResult,
    MessageHandler,
    ReadResult,
    ToTrainer,
)
from p2ptrain.core.mode import ENDED, Given
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.modes.tasks.commands import Combine, Combined, Contribute, Contributed, ExtractFeatures, FeaturesExtracted
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.modes.tasks.head.blob import MAX_HOLDINGS, head_holding, pack_head, rounds_of
from p2ptrain.modes.tasks.head.verdict import Verdict, read_verdict
from p2ptrain.modes.tasks.head.verdict_words import verdict_lines
from p2ptrain.modes.tasks.plan import body_of
from p2ptrain.protocol.head_fit.head_fit import HeadFitMachine
from p2ptrain.protocol.head_fit.run import (
    CombineContributions,
    ComputeContribution,
    HeadFitFinished,
    PrepareFeatures,
)
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.wire import messages as m
from p2ptrain.wire.tensorfile import read_untrusted

MAX_ROUND = 2**63
MAX_ANEW = 8
"""Copies of so many trainers that nobody hands out are left out; with one more of them a peer only listens."""
HEAD_RETRY_S = 10.0
MAX_COPIES = 16
"""Of one part, averaged before the head is fitted: those of the trainers with most samples."""
MAX_COPIES_BYTES = 1 << 30
"""They lie in memory together, so of large ones there are fewer, but three."""


class HeadFit:
    """One peer's side of it, in one job. ``plan``: the one in force."""

    def __init__(self, given: Given, plan: Callable[[], Plan | None]) -> None:
        self.verdict: Verdict | None = None
        """What the group found when it looked at its model."""
        self._group = given.group
        self._job = given.job
        self._downloads = given.downloads
        self._plan = plan
        self._head = given.resume.result
        self._machine = HeadFitMachine(given.group.own_id)
        self._to_fetch: list[m.SnapshotRef] = []
        self._fetching: m.SnapshotRef | None = None
        self._session = ""
        self._num_sent = 0
        """Copies that the trainer has been given."""
        self._others_head: m.SnapshotRef | None = None
        """A head that others made, on its way here."""
        self._next_head_at = 0.0
        self._is_saving = False
        """What came out of a fit is on its way to the disk."""
        self._not_had: dict[tuple[int, PeerId], int] = {}
        """Of a part and its trainer, the round from which on copies are told of that nobody hands out: a fit is begun
        anew without these."""
        self._caught: set[str] = set()
        """Whose sums this peer, as lead, no longer counts."""
        self._callers: set[PeerId] = set()
        """Have called for a fit, and so have ended, though their records that say so are still on their way."""
        self.handlers: Mapping[type, Handler] = {
            PrepareFeatures: self._prepare,
            ComputeContribution: lambda e, now: [ToTrainer(Contribute(e.session, e.step, e.state))],
            CombineContributions: lambda e, now: [
                ToTrainer(Combine(e.session, e.step, e.state, e.contributions, e.peers))
            ],
            HeadFitFinished: self._keep,
        }
        self.messages: Mapping[type[m.Message], MessageHandler] = dict.fromkeys(
            (m.HeadFitCall, m.HeadFitReady, m.HeadFitGradient, m.HeadFitState), self.received
        )

    def holdings(self) -> tuple[m.SnapshotRef, ...]:
        return (self._head,) if self._head else ()

    # --- when is it wanted ---

    def is_awaited(self, record: m.Record, plan: Plan) -> bool:
        return any(record.counts) and record.plan == self._group.own.plan

    def takes_part(self, plan: Plan) -> bool:
        return any(self._group.own.counts)

    def is_busy(self, plan: Plan, now: float) -> bool:
        if self._is_saving or not self._machine.running:
            return self._is_saving
        if not self._heads_of_others(plan) or self._machine.step:
            return True
        self._machine.stop()  # the others are through with it, and don't begin anew
        return False

    def look(self, plan: Plan, now: float) -> Effects | None:
        group = self._group
        if not (body_of(plan).fit_head or self._job.data.val > 0) or self._machine.hopeless:
            return None
        holdings = self._freshest(plan)
        if self._head is not None and _covers(self._head, holdings):
            return None
        if heads := self._heads_of_others(plan):
            return self._fetch_head(max(heads, key=lambda h: (h.epoch, h.step, h.samples, h.blob)), now)
        ended = [record.peer for record in group.records() if record.phase in ENDED]
        if group.own_id != min(ended, default=group.own_id) or not holdings:
            return []
        effects: Effects = list(self._machine.call(plan.epoch, holdings, self._num_steps(plan), ended, now))
        missing = sorted({part.index for part in plan.parts} - {h.part for h in holdings})
        if effects and missing:
            effects.insert(0, Note("head-fit-without", (("parts", ", ".join(map(str, missing))),)))
        return [*effects, *group.say(now, phase="fitting")] if effects else []

    def _heads_of_others(self, plan: Plan) -> list[m.SnapshotRef]:
        """Heads that others are done with, and that nothing newer has come to since."""
        records = self._group.records()
        heads = [h for r in records if r.phase == "done" for h in r.holdings if h.kind == "head"]
        if not heads:
            return []
        freshest = self._freshest(plan)
        return [head for head in heads if _covers(head, freshest)]

    def _num_steps(self, plan: Plan) -> int:
        """The moments and the gradient steps of a fit; the look at the validation samples is the last."""
        return (1 + tasks_of(self._job).head_fit_steps if body_of(plan).fit_head else 0) + 1

    def _freshest(self, plan: Plan) -> tuple[m.SnapshotRef, ...]:
        """Of each part the copies of its last round, one of each trainer; the blob's name settles ties everywhere."""
        best: dict[tuple[int, PeerId], m.SnapshotRef] = {}
        for holding in (h for record in self._group.records() for h in record.holdings):
            if not _is_copy(holding, plan) or holding.round > self._job.training.rounds:
                continue
            if self._is_not_had(holding):
                continue
            known = best.get((holding.part, holding.trainer))
            if known is None or _freshness(holding) > _freshness(known):
                best[holding.part, holding.trainer] = holding
        found: list[m.SnapshotRef] = []
        for part in sorted({part for part, _ in best}):
            copies = [h for (index, _), h in best.items() if index == part]
            last = max(h.round for h in copies)
            copies = sorted((h for h in copies if h.round == last), key=_freshness)
            num_that_fit = MAX_COPIES_BYTES // max(1, *(h.num_bytes for h in copies))
            copies = copies[-max(3, min(MAX_COPIES, num_that_fit)) :]
            found += sorted(copies, key=lambda h: h.trainer)
        return tuple(found[:MAX_HOLDINGS])

    # --- the fit ---

    def received(
        self,
        sender: PeerId,
        message: m.HeadFitCall | m.HeadFitReady | m.HeadFitGradient | m.HeadFitState,
        now: float,
    ) -> Effects:
        if isinstance(message, m.HeadFitCall):
            plan = self._plan()
            if self._group.own.phase not in ENDED or plan is None or plan.epoch != message.epoch:
                return []  # still training, or by another plan: it will be called again
            if any(not _is_copy(h, plan) or h.num_bytes < 1 for h in message.holdings):
                raise RemoteError("head-fit", f"a snapshot that can't be of one of {len(plan.parts)} parts")
            if any(not self._group.is_trainers(h) for h in message.holdings):
                raise RemoteError("snapshot-unsigned", "a head fit over what its trainer did not sign")
            if self._head is not None and _covers(self._head, message.holdings):
                return []  # that is done, as our record tells: its sender fetches the head
            self._callers.add(sender)
            return self._received(sender, message, self._num_steps(plan), now)
        if isinstance(message, (m.HeadFitGradient, m.HeadFitState)) and message.data:
            read_untrusted(message.data)
        return self._received(sender, message, 0, now)

    def _received(
        self,
        sender: PeerId,
        message: m.HeadFitCall | m.HeadFitReady | m.HeadFitGradient | m.HeadFitState,
        num_steps: int,
        now: float,
    ) -> Effects:
        effects: Effects = list(self._machine.received(sender, message, num_steps, now))
        if self._machine.running and self._group.own.phase == "trained":
            effects += self._group.say(now, phase="fitting")
        return effects

    def trainer_said(self, event: object, now: float) -> Effects:
        if isinstance(event, FeaturesExtracted):
            return list(self._machine.features_ready(event.session, event.samples, now))
        if isinstance(event, Contributed):
            said = self._group.say(now, work_flops=event.work_flops) if event.work_flops else []
            ready = self._machine.contribution_ready(event.session, event.step, event.samples, event.data, now)
            return [*said, *ready]
        if isinstance(event, Combined):
            names = [self._group.name_of(PeerId(peer)) for peer in event.caught if peer not in self._caught]
            self._caught.update(event.caught)
            notes = [Note("head-fit-no-gradient", (("peer", name),)) for name in names]
            return [*notes, *self._machine.state_ready(event.session, event.step, event.state, now)]
        return []

    def trainer_unable(self, now: float) -> Effects:
        """The trainer died, or could not use what it was given: this peer only listens."""
        self._to_fetch, self._fetching = [], None
        return list(self._machine.features_ready(self._machine.session, 0, now))

    def trainer_refused(self, now: float) -> Effects:
        """A snapshot or a state did not fit. A state: perhaps the next one does."""
        return self.trainer_unable(now) if self._machine.preparing else []

    def members_changed(self, now: float) -> Effects:
        return list(self._machine.members_changed(self._ended(), now))

    def _ended(self) -> list[PeerId]:
        ended, members = [], self._group.members()
        self._callers.intersection_update(members)
        for member in members:
            record = self._group.record(member)
            if record is not None and record.phase in ENDED:
                self._callers.discard(member)
                ended.append(member)
            elif member in self._callers:  # without its lead a peer would begin alone, and leave out all others
                ended.append(member)
        return ended

    def found(self) -> list[str]:
        plan, name_of = self._plan(), self._group.name_of
        if self.verdict is None or plan is None:
            return []
        return verdict_lines(self.verdict, plan, self._job.data.classes, name_of)

    # --- the head ---

    def _keep(self, effect: HeadFitFinished, now: float) -> Effects:
        verdict, data = _verdict_of(effect.state), pack_head(effect.state, effect.holdings)
        samples = verdict.train_samples if verdict else 0
        own = self._group.own_id
        head = head_holding(own, blob_id(data), len(data), effect.holdings, effect.step, samples)
        self._is_saving = True
        return [KeepResult(self._group.made(head), data)]

    def kept(self, holding: m.SnapshotRef, data: bytes | None, now: float) -> Effects:
        """The head is in the store: this is what all that came before was for."""
        self._is_saving = False
        if data is None:
            return []  # the disk refused it: others may have it, or it is made once more
        self._head, self.verdict = holding, _verdict_of(data)
        plan, notes = self._plan(), []
        if plan is not None and body_of(plan).fit_head:
            fitted = tasks_of(self._job).head_fit_steps
            notes.append(Note("head-fitted", (("steps", fitted), ("samples", holding.samples))))
        if self.verdict is not None and self.verdict.samples:
            figures = (("accuracy", round(self.verdict.accuracy(), 4)), ("samples", self.verdict.samples))
            notes.append(Note("validated", figures))
        return [*notes, *self._group.say_holdings(now), EndingOver()]

    def _fetch_head(self, holding: m.SnapshotRef, now: float) -> Effects:
        if self._others_head is not None or now < self._next_head_at:
            return []
        self._others_head, self._next_head_at = holding, now + HEAD_RETRY_S
        if self._downloads.is_local(holding.blob):
            return [KeepReplica(holding)]
        return self._downloads.fetch(holding.blob, holding.num_bytes, self._group.holders(holding.blob), now)

    def others_kept(self, holding: m.SnapshotRef, saved: bool, now: float) -> Effects:
        """The node's answer to ``KeepReplica`` of a head: what that says comes with ``kept``."""
        self._others_head = None
        return [ReadResult(holding)] if saved else []

    # --- the parts that it is fitted over ---

    def _prepare(self, effect: PrepareFeatures, now: float) -> Effects:
        self._session = effect.session
        self._to_fetch = sorted(effect.holdings, key=lambda h: (h.part, h.trainer))
        self._num_sent = 0
        self._fetching = None
        return self._next_part(now)

    def wants(self, blob: BlobId) -> bool:
        return any(holding is not None and holding.blob == blob for holding in (self._fetching, self._others_head))

    def _next_part(self, now: float) -> Effects:
        """One part at a time, so that memory stays bounded."""
        effects: Effects = []
        while self._to_fetch:
            holding = self._to_fetch[0]
            if not self._downloads.is_local(holding.blob):
                self._fetching = holding
                sources = self._group.holders(holding.blob) or [holding.trainer]
                fetch = self._downloads.fetch(holding.blob, holding.num_bytes, sources, now, ephemeral=True)
                return [*effects, *fetch]
            self._to_fetch.pop(0)
            plan = self._plan() if self._num_sent == 0 else None
            command = ExtractFeatures(
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
            return [KeepReplica(self._others_head)]
        return self._next_part(now) if self._fetching is not None and self._fetching.blob == blob else []

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        """The fit is begun anew without it. Where its lead has it all the same there are no features here, and this
        peer only listens."""
        if self._others_head is not None and self._others_head.blob == blob:
            self._others_head = None
        copy = self._fetching
        if copy is None or copy.blob != blob:
            return []
        if self._is_not_had(copy) or len(self._not_had) >= MAX_ANEW:
            return self.trainer_unable(now)
        self._not_had[copy.part, copy.trainer] = copy.round
        self._to_fetch, self._fetching = [], None
        self._machine.stop()
        whose = self._group.name_of(copy.trainer)
        return [Note("head-fit-copy-not-had", (("part", copy.part), ("round", copy.round), ("peer", whose)))]

    def _is_not_had(self, copy: m.SnapshotRef) -> bool:
        return copy.round >= self._not_had.get((copy.part, copy.trainer), MAX_ROUND)

    # --- time ---

    def tick(self, now: float) -> Effects:
        return list(self._machine.tick(now))

    def next_deadline(self) -> float:
        return min(self._machine.next_deadline(), NEVER)

    def waiting_for(self, now: float) -> str:
        return self._machine.waiting_for(now)


def _verdict_of(state: bytes) -> Verdict | None:
    """What the last state of a head fit says; None where that makes no sense: another peer wrote it."""
    try:
        return read_verdict(state)
    except RemoteError:
        return None


def _is_copy(holding: m.SnapshotRef, plan: Plan) -> bool:
    """Whether it can be one of a part."""
    return holding.kind == "part" and holding.part < len(plan.parts)


def _covers(head: m.SnapshotRef, freshest: tuple[m.SnapshotRef, ...]) -> bool:
    """Whether a head is of the last rounds of all parts that there are copies of."""
    return head.span >= len({h.part for h in freshest}) and head.round >= rounds_of(freshest)


def _freshness(holding: m.SnapshotRef) -> tuple[int, int, int, str]:
    return holding.round, holding.step, holding.samples, holding.blob
