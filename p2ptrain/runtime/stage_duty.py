"""What this peer does about a plan of depth slices: gets its blocks, has its stage trained, passes parcels on.

    idle --plan with a stage for us--> gathering --all blocks of the plan's step here--> following
    following --next plan--> stopping (the trainer goes on to the plan's step) --halted--> gathering
    stopping --no batch done for long: the others have halted before us--> told to halt where it is
    following --the trainer dies, or the process did--> lost: a plan that begins at a saved step brings it back

Invariant: a stage begins with blocks of exactly the step that its plan says, each from the trainer's own memory, the
own store, or a member that has it; and parcels are only exchanged with peers of the same plan, in its epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2ptrain.config import Job
from p2ptrain.core.effects import Effects, KeepPlan, ReleaseBlob, ToTrainer
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.planning.pipeline.coverage import Run, cover, missing, pieces_for_others, whole_epoch
from p2ptrain.planning.plan import Plan
from p2ptrain.protocol.group.link_probe import LinkMeasured, LinkMeter
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.replication import Custody
from p2ptrain.protocol.streams.streams import Delivered
from p2ptrain.runtime import commands as c
from p2ptrain.runtime.group_steps import GroupSteps
from p2ptrain.runtime.keeping import Keeping
from p2ptrain.runtime.pace import PaceKnown
from p2ptrain.runtime.parcels import Parcels
from p2ptrain.runtime.saved_blocks import SavedBlocks
from p2ptrain.runtime.slowdown import ToldSlowdown
from p2ptrain.runtime.wanted_blocks import WantedBlocks
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.runtime.peer import Peer
    from p2ptrain.runtime.peer_io import Resume


class StageDuty(Keeping):
    """One peer's stage, in one job."""

    def __init__(self, peer: Peer, job: Job, custody: Custody, resume: Resume, meter: LinkMeter) -> None:
        super().__init__(peer, job, custody, resume)
        self._parcels = Parcels(peer)
        self._meter = meter
        self._trained: Plan | None = None
        """The plan whose stage the trainer holds."""
        self._halted_at: int | None = None
        """The step at which the trainer waits for its next stage (-1: with empty hands); None: it doesn't wait."""
        self._given: Plan | None = None
        """The plan whose stage the trainer was given, and has not begun to train yet."""
        self._wanted = WantedBlocks(peer, self.fetch)
        self._saved = SavedBlocks(peer, lambda: (*self.custody.kept(), *self._own))
        self.steps = GroupSteps(peer, self._saved, job.training.rounds)
        self._lost = False
        """The trainer's stage is gone: only a plan that begins at a saved step helps."""
        self._restored = resume.plan.hash if resume.plan else ""
        self._pieces: list[m.Holding] = []
        """Handed over, for others to fetch."""
        self._slowdown = ToldSlowdown()
        self._stop_by = NEVER
        """When a trainer that is to go on to its next plan's step is told to halt where it is."""
        self.custody.surplus = self._saved.surplus
        peer.on_effects(
            {
                Delivered: self._parcels.delivered,
                LinkMeasured: self._link_measured,
                PaceKnown: lambda _, now: list(peer.agreement.reconsider(now)) if peer.agreement else [],
            }
        )

    @property
    def data_epoch(self) -> int:
        """The epoch in which parcels travel: that of the plan whose stage is trained."""
        return self._parcels.epoch

    @property
    def hands_over(self) -> bool:
        """A stage alone, a batch ahead of what is saved of the others, is of no use: what was saved last will do."""
        return False

    @property
    def seeking(self) -> bool:
        return self._halted_at is not None and self.part != m.NO_PART

    def awaits(self, blob: BlobId) -> bool:
        return blob in self._wanted

    def surplus(self, older: Sequence[m.Holding]) -> list[m.Holding]:
        """Also the newest that could be gone back to stay."""
        if self.plan is not None:
            self._saved.look(self.plan)  # something may have been saved here since others last said what they have
        return self._saved.surplus(older)

    def holdings(self) -> tuple[m.Holding, ...]:
        """All own snapshots: stages are up to a batch apart, so the newest may not be saved everywhere yet."""
        first = (*self._pieces, *reversed(self._own))
        return (*first, *(h for h in self.custody.holdings() if h not in first))

    # --- the plan ---

    def plan_adopted(self, plan: Plan, now: float) -> Effects:
        """Do what the plan says, once the blocks are profiled."""
        peer = self._peer
        name, newest = plan.hash, self.steps.newest()
        if name != self.plan_hash:
            self._lost = name == self._restored  # the process ended under this plan, and its trainer with it
        self.plan, self.plan_hash = plan, name
        has_halted = self._halted_at is not None
        self._halted_at = self._given = None
        self.steps.begin(plan, name)
        part = plan.part_of(peer.own_id)
        self.part = part.index if part is not None and not self._lost else m.NO_PART
        effects: Effects = [KeepPlan(plan), *self.custody.epoch_changed(plan.epoch, now)]
        effects += peer.records.update(now, epoch=plan.epoch, plan=name, part=self.part)
        if part is None:
            self._slowdown.stand_by(now)
            effects += peer.records.update(now, phase="waiting", samples_per_s=0.0)
        elif peer.records.own.phase in ("training", "trained"):
            effects += peer.records.update(now, phase="waiting")
        effects += self.members_changed(now)
        if not peer.records.own.profile or plan.slices is None or self._lost:
            return effects
        old = self._trained
        survivors = {each.peer for each in plan.peers}
        pieces: list[Run] = []
        torn = True  # the batches up to the plan's step can't all be done any more
        if old is not None and old.slices is not None:
            torn = has_halted or not survivors.issuperset(old.trainers()) or plan.slices.from_step < newest
            pieces = pieces_for_others(old.slices.pipeline, plan.slices.pipeline, peer.own_id)
        self._wanted.stop(forget_failures=True)
        self._stop_by = now + self.steps.patience_s()
        stop = c.StopAt(plan.epoch, plan.slices.from_step, tuple(pieces), now=torn)
        return [*effects, *self._release_pieces(now), ToTrainer(stop)]

    def members_changed(self, now: float) -> Effects:
        peer, plan = self._peer, self.plan
        parts = {p: r.part for p in peer.members() if p != peer.own_id and (r := peer.records.get(p)) is not None}
        if plan is not None:
            self._saved.look(plan)
        effects: Effects = [*self.custody.members_changed(parts, now), *self._gather(now)]
        return effects + list(self._meter.members_changed(peer.members(), now))

    def is_complete(self) -> bool:
        return self.steps.is_complete()

    # --- getting the own stage ---

    def _gather(self, now: float) -> Effects:
        """Get the blocks that the trainer lacks, and give it the stage when all are here."""
        plan = self.plan
        if self._halted_at is None or plan is None or plan.slices is None or self.part == m.NO_PART:
            self._wanted.stop()
            return []
        stage, step = plan.slices.pipeline.stages[self.part], plan.slices.from_step
        if step == 0:
            return self._give(plan, [], keep=False)
        known, have = self._saved.known(), self._held(plan, step)
        if have is not None and self._trained is not None:
            known = [holding for holding in known if holding.epoch == self._trained.epoch]
        runs = missing((stage.start, stage.stop), have)
        chosen = cover(runs, step, known, lambda h: (self._has_blob(h.blob), -h.span))
        if chosen is None:
            self._wanted.pause()
            return self._lose(now) if self._wanted.is_given_up(now) else []
        self._wanted.begin(now)
        lacking = [holding for holding in chosen if not self._has_blob(holding.blob)]
        if not lacking:
            return self._give(plan, chosen, keep=have is not None)
        return self._wanted.ask(lacking, step, now)

    def _held(self, plan: Plan, step: int) -> Run | None:
        """The trainer's own blocks, if they are of this step, and of the history that the others go on from."""
        old = self._trained
        if self._halted_at != step or old is None or old.slices is None or plan.slices is None:
            return None
        if whole_epoch(plan.slices.pipeline.num_blocks, step, self._saved.known()) not in (None, old.epoch):
            return None
        pipeline = old.slices.pipeline
        index = pipeline.stage_of(self._peer.own_id)
        return (pipeline.stages[index].start, pipeline.stages[index].stop) if index is not None else None

    def _give(self, plan: Plan, pieces: list[m.Holding], *, keep: bool) -> Effects:
        self._halted_at, self._given = None, plan
        self._wanted.stop()
        follow = c.FollowStage(plan.to_json(), self._peer.own_id, len(pieces), keep)
        return [ToTrainer(follow), *(ToTrainer(c.GivePiece(b""), holding.blob, "piece") for holding in pieces)]

    # --- the trainer ---

    def trainer_said(self, event: object, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        peer = self._peer
        if isinstance(event, c.SendParcel):
            if event.epoch != self._parcels.epoch:
                return []
            is_ahead = event.work == "forward" and self._job.slices.schedule == "async"
            self._seen_step(event.step - is_ahead, now)  # its batch may be begun before the one before is done
            return self._parcels.send(event, now)
        if isinstance(event, c.Taken):
            return self._parcels.taken(event, now)
        if isinstance(event, c.Progress):
            self._seen_step(event.step, now)
            changes = {"round": event.round, "step": event.step, "samples": event.samples}
            loss = self._loss(event.loss)
            return list(peer.records.update(now, loss=loss, samples_per_s=event.samples_per_s, **changes))
        if isinstance(event, c.StageUsed):
            figures = (("step", event.step), ("busy", round(event.busy_share, 3)))
            return self._seen("stage", figures, event.slowdown, now)
        if isinstance(event, c.Looked):
            return self._seen("look", (), event.slowdown, now)
        if isinstance(event, c.Following):
            return self._following(event, now)
        if isinstance(event, c.Halted):
            return self._halted(event, now)
        if isinstance(event, c.SnapshotTaken):
            return self._snapshot_taken(event, blob, num_bytes, now)
        if isinstance(event, c.PieceTaken):
            return self._piece_taken(event, blob, num_bytes, now)
        if isinstance(event, c.SnapshotRefused):
            self._saved.refused.update(h.blob for h in self._saved.known() if self.plan and self._is_of_plan(h))
            return [Note("snapshot-refused", (("detail", event.detail[:200]),)), *self._lose(now)]
        if isinstance(event, c.TrainerFailed):
            return [*self._lose(now), *self._after_failure(event, now)]
        return []

    def _seen_step(self, step: int, now: float) -> None:
        """The trainer is that far."""
        if step > self.steps.own:
            self.steps.own = step
            if self._stop_by != NEVER:
                self._stop_by = now + self.steps.patience_s()

    def _loss(self, own: float) -> float:
        """The last stage knows it; elsewhere it is what that stage said last, or 0 as long as it has said none."""
        plan = self._trained
        if math.isfinite(own) or plan is None or plan.slices is None:
            return own if math.isfinite(own) else 0.0
        records = [self._peer.records.get(PeerId(peer)) for peer in plan.slices.pipeline.stages[-1].peers]
        return max((r.loss for r in records if r is not None and r.plan == self._parcels.plan), default=0.0)

    def _is_of_plan(self, holding: m.Holding) -> bool:
        """Whether the stage that was refused may have been made of it."""
        plan = self.plan
        if plan is None or plan.slices is None or plan.part_of(self._peer.own_id) is None:
            return False
        part = plan.part_of(self._peer.own_id)
        stage = plan.slices.pipeline.stages[part.index if part else 0]
        overlaps = holding.part < stage.stop and stage.start < holding.part + holding.span
        return overlaps and holding.step == plan.slices.from_step and holding.trainer != self._peer.own_id

    def _following(self, event: c.Following, now: float) -> Effects:
        plan, peer = self._given, self._peer
        if plan is None:
            return []
        self._trained, self._given = plan, None
        self._slowdown.train()
        kept = {holding.blob for holding in (*self.custody.kept(), *self._own)} | self._custody_fetches.keys()
        effects = self._wanted.given(kept)
        self.steps.own = plan.slices.from_step if plan.slices else 0
        if plan is not self.plan:
            return effects  # a newer one waits for the trainer to halt
        fields = (("part", event.part), ("round", event.round), ("rounds", event.rounds), ("epoch", plan.epoch))
        note = Note("training", fields)
        effects += [note, *self._parcels.begin(plan, self.plan_hash, now)]
        return effects + list(peer.records.update(now, phase="training", round=event.round, step=self.steps.own))

    def _halted(self, event: c.Halted, now: float) -> Effects:
        if self.plan is None or event.epoch != self.plan.epoch or self.plan in (self._given, self._trained):
            return []
        self._halted_at, self._given, self._stop_by = event.step, None, NEVER
        self._wanted.begin(now)
        if event.step < 0:
            self._trained = None
        return [Note("halted", (("step", event.step), ("epoch", event.epoch))), *self._gather(now)]

    def _lose(self, now: float) -> Effects:
        """The trainer holds no stage any more, and the others can't go on without it: say so."""
        self._stop_by = NEVER
        self._trained = self._given = self._halted_at = None
        self._lost, self.part = True, m.NO_PART
        self._wanted.stop()
        return list(self._peer.records.update(now, part=m.NO_PART))

    def _seen(self, kind: str, figures: tuple[tuple[str, float], ...], slowdown: float, now: float) -> Effects:
        note = Note(kind, (*figures, ("slowdown", round(slowdown, 3))))
        if not self._slowdown.seen(round(slowdown, 2), now):
            return [note]
        return [note, *self._peer.records.update(now, slowdown=self._slowdown.told)]

    def _snapshot_taken(self, event: c.SnapshotTaken, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """Without a ``blob`` it could not be saved: training goes on, and ends, all the same."""
        peer, plan = self._peer, self._trained
        if plan is None:
            return []
        effects: Effects = []
        if blob is not None:
            holding = self._holding(event, event.part, event.span, plan.epoch, blob, num_bytes)
            effects += self.keep_snapshot(holding)
        effects += peer.records.update(now, round=event.round, step=event.step, samples=event.samples)
        if event.training_finished:
            effects += peer.records.update(now, phase="trained", samples_per_s=0.0)
        if event.round_finished:
            self._num_restarts = 0
            loss = self._loss(event.loss)
            fields = (("part", self.part), ("round", event.round), *((("loss", round(loss, 4)),) if loss else ()))
            effects.append(Note("round", fields))
        return effects

    def _piece_taken(self, event: c.PieceTaken, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        if blob is None or self._trained is None:
            return []  # who needs it will not get it, and the group goes back to what is saved
        self._pieces.append(self._holding(event, event.part, event.span, self._trained.epoch, blob, num_bytes))
        return list(self._peer.publish_holdings(now))

    def _holding(
        self, event: c.SnapshotTaken | c.PieceTaken, part: int, span: int, epoch: int, blob: BlobId, num_bytes: int
    ) -> m.Holding:
        return m.Holding(
            part=part,
            trainer=self._peer.own_id,
            epoch=epoch,
            round=event.round,
            step=event.step,
            samples=event.samples,
            blob=blob,
            num_bytes=num_bytes,
            span=span,
        )

    def _release_pieces(self, now: float) -> Effects:
        if not self._pieces:
            return []
        released = [ReleaseBlob(holding.blob) for holding in self._pieces]
        self._pieces = []
        return [*released, *self._peer.publish_holdings(now)]

    # --- links ---

    def link_message(self, sender: PeerId, message: m.LinkProbe | m.LinkEcho, now: float) -> Effects:
        return list(self._meter.received(sender, message, now))

    def _link_measured(self, effect: LinkMeasured, now: float) -> Effects:
        """What is known of links that this peer does not measure, others tell."""
        peer, figure = self._peer, effect.figure
        rate = (("mbit_s", round(figure.bytes_per_s * 8e-6, 1)), ("latency_ms", round(figure.latency_s * 1e3, 2)))
        note = Note("link", (("peer", figure.peer), ("name", peer.name_of(figure.peer)), *rate))
        return [note, *peer.records.update(now, links=self._meter.figures())]

    # --- parcels ---

    def stage_data(self, sender: PeerId, message: m.StageData | m.StageAck, now: float) -> Effects:
        return self._parcels.received(sender, message, now)

    def peer_admitted(self, other: PeerId, now: float) -> Effects:
        return self._parcels.reconnected(other, now)

    # --- blobs ---

    def blob_arrived(self, blob: BlobId, now: float) -> Effects:
        effects = self._kept_if_whole(blob, now)
        if self._wanted.arrived(blob):
            effects += self._gather(now)
        return effects

    def blob_lost(self, blob: BlobId, now: float) -> Effects:
        effects = self._not_kept(blob, now)
        if self._wanted.lost(blob, now):
            self._saved.refused.add(blob)
        return effects

    # --- time ---

    def tick(self, now: float) -> Effects:
        newest, plan = self.steps.newest(), self.plan
        late = self._gather(now) if self._wanted.is_due(now) else []
        if self.steps.look(now):
            late.append(PaceKnown())
        if self._slowdown.is_due(now):
            late.append(ToTrainer(c.LookAgain()))
        if now >= self._stop_by and plan is not None:
            self._stop_by = NEVER
            late.append(ToTrainer(c.StopAt(plan.epoch, self.steps.own, (), now=True)))
        if self._pieces and plan is not None and plan.slices is not None and newest > plan.slices.from_step:
            late += self._release_pieces(now)  # a batch is done, so everyone has its stage
        return [*self.custody.tick(now), *self._parcels.tick(now), *self._meter.tick(now), *late]

    def next_deadline(self) -> float:
        gathering = self._wanted.deadline() if self._halted_at is not None else NEVER
        parcels, links = self._parcels.next_deadline(), self._meter.next_deadline()
        return min(self.custody.next_deadline(), parcels, links, gathering, self._stop_by, self._slowdown.look_at)

    def waiting_for(self, now: float) -> str:
        """In words: blocks, other stages, or a plan."""
        plan, peer = self.plan, self._peer
        if plan is None or plan.slices is None:
            return ""
        if self._lost:
            return "a plan that begins at a saved step: this peer's stage was lost"
        if self.part == m.NO_PART and peer.own_id not in {profile.peer for profile in plan.slices.profiles}:
            return "a stage: nobody can plan with the times of this peer's blocks, which make no sense; start it again"
        if self.part == m.NO_PART:
            return "a stage: the plan is faster without this peer, and takes it when another is lost"
        if self._halted_at is not None:
            stage, step = plan.slices.pipeline.stages[self.part], plan.slices.from_step
            return f"blocks {stage.start}-{stage.stop - 1} of step {step}, from whoever has them"
        return self._parcels.waiting_for(now)
