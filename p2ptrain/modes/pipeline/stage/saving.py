"""What the own trainer hands over to be saved: snapshots of its stage, and blocks that others get at a change of plan.

Invariant: a snapshot is named by the epoch of the plan that it was trained by, so that it is put together only with
others of the same history.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2ptrain.core import commands as c
from p2ptrain.core.effects import Effects, ReleaseBlob, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.replicas import Replicas
from p2ptrain.core.stages.reports import StageReports
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.pipeline.commands import PieceTaken, SaveEvery
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.handed_over import HandedOver
from p2ptrain.modes.pipeline.stage.interval import Interval
from p2ptrain.modes.pipeline.stage.progress import Progress
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.protocol.replication.rules import rank_holders
from p2ptrain.wire.messages import NO_PART, SnapshotRef


class Saving:
    """Of one peer, in one job. ``interval``: how often."""

    def __init__(
        self,
        group: GroupView,
        replicas: Replicas,
        handed_over: HandedOver,
        reports: StageReports,
        progress: Progress,
        interval: Interval,
    ) -> None:
        self._group = group
        self._replicas = replicas
        self._handed_over = handed_over
        self._reports = reports
        self._progress = progress
        self._interval = interval
        self._plan: Plan | None = None
        self._told = -1
        """What the trainer knows of the interval; -1 = nothing."""
        replicas.pace = self._bytes_per_s

    def begin(self, plan: Plan) -> None:
        """It is in force, another than before."""
        self._plan, self._told = plan, -1
        if body_of(plan).goes_back:
            self._interval.lost()

    def tick(self, now: float) -> Effects:
        """Tell others what this peer asks for, and the trainer what all take."""
        effects: Effects = []
        self._interval.look(self._progress.batch_s(), now)
        if self._group.own.saves_every != self._interval.wanted:
            effects += self._group.say(now, saves_every=self._interval.wanted)
        steps = self._interval.steps(self._plan)
        if self._group.own.phase == "training" and steps != self._told:
            self._told = steps
            effects += [ToTrainer(SaveEvery(steps)), Note("saves-every", (("steps", steps),))]
        return effects

    def next_deadline(self) -> float:
        return NEVER  # what it looks at changes with what happens

    def _bytes_per_s(self, holding: SnapshotRef) -> float:
        """At which a copy is fetched; 0 = as fast as it goes: what is left at the end has nobody's batches to wait for.
        What a recovery brought together has to be safe soon, and leaves the first batch a part of the link."""
        plan, batch_s = self._plan, self._progress.seconds()
        if plan is None or not batch_s or holding.step == self._progress.last_step(plan):
            return 0.0
        if holding.step == body_of(plan).from_step:
            return self._interval.soon_bytes_per_s()
        return self._interval.bytes_per_s(holding.num_bytes, batch_s, plan)

    def snapshot(self, event: c.SnapshotTaken, plan: Plan, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """Without a ``blob`` it could not be saved: training goes on, and ends, all the same."""
        effects: Effects = []
        if event.seconds > 0:
            self._interval.taken(event.seconds, num_bytes)
        if blob is not None:
            effects += self._replicas.keep_snapshot(self._ref(event, plan.epoch, blob, num_bytes))
        effects += self._group.say(now, round=event.round, step=event.step, samples=event.samples)
        if event.training_finished:
            effects += self._group.say(now, phase="trained", samples_per_s=0.0)
        if event.round_finished:
            loss = self._reports.loss(event.loss, body_of(plan).pipeline.stages[-1].peers)
            words = (("loss", round(loss, 4)),) if loss else ()
            effects.append(Note("round", (("part", self._group.own.part), ("round", event.round), *words)))
        return effects

    def piece(self, event: PieceTaken, plan: Plan, blob: BlobId | None, num_bytes: int, now: float) -> Effects:
        """Without a ``blob`` who needs it will not get it, and the group goes back to what is saved."""
        if blob is None:
            return []
        return self._handed_over.add(self._ref(event, plan.epoch, blob, num_bytes), now)

    def fetched(self, given: list[SnapshotRef], *, keep: bool) -> Effects:
        """The trainer has these, which were fetched for it. What was saved stays, as one copy more (``keep``); what
        only passes from peer to peer does not."""
        effects: Effects = []
        for holding in given:
            if keep:
                effects += self._replicas.adopt(holding)
            elif not self._replicas.is_fetching(holding.blob):
                effects.append(ReleaseBlob(holding.blob))
        return effects

    def _ref(self, event: c.SnapshotTaken | PieceTaken, epoch: int, blob: BlobId, num_bytes: int) -> SnapshotRef:
        return SnapshotRef(
            part=event.part,
            trainer=self._group.own_id,
            epoch=epoch,
            round=event.round,
            step=event.step,
            samples=event.samples,
            blob=blob,
            num_bytes=num_bytes,
            span=event.span,
        )


def holders(own: SnapshotRef, members: Mapping[PeerId, int], plan: Plan | None) -> list[PeerId]:
    """Who may keep a copy of the own blocks, of ``members``, the best first: the neighbour that would take them over,
    then one that is no neighbour, then the others. Peers of the own stage come last: they have the same blocks anyway.
    """
    ranked = rank_holders(own.part, own.trainer, members)
    pipeline = body_of(plan).pipeline if plan is not None else None
    index = pipeline.stage_of(own.trainer) if pipeline is not None else None
    if pipeline is None or index is None:
        return ranked
    stages = {peer: _stage(pipeline, peer) for peer in ranked}
    heir = index + 1 if index + 1 < len(pipeline.stages) else index - 1
    first = [peer for peer in ranked if stages[peer] == heir][:1]
    far = [peer for peer in ranked if stages[peer] == NO_PART or abs(stages[peer] - index) > 1]
    rest = [peer for peer in ranked if peer not in (*first, *far)]
    return [*first, *far, *sorted(rest, key=lambda peer: stages[peer] == index)]


def _stage(pipeline: PipelinePlan, peer: PeerId) -> int:
    index = pipeline.stage_of(peer)
    return NO_PART if index is None else index
