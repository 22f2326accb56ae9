"""The baseline of a recovery: all blocks are collected at one peer, the plan's proposer, and sent out by it.

Nobody keeps what it has, as pipelines without replicas do it ("heavy" of ``pipeline.recovery``). What is sent out is
named by the new plan's epoch, so that it is told from what was saved before.

Invariant: the proposer has all blocks of the plan's step before it sends any; a stage's blocks come from it alone.
"""

from __future__ import annotations

from p2ptrain.core.effects import Effects, ToTrainer
from p2ptrain.core.group_view import GroupView
from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.commands import GivePiece
from p2ptrain.modes.pipeline.commands import CollectBlocks
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import body_of
from p2ptrain.modes.pipeline.stage.handed_over import HandedOver
from p2ptrain.planning.pipeline.coverage import NO_STATE, Run
from p2ptrain.wire.messages import SnapshotRef


class Collection:
    """Of one peer, in one job."""

    def __init__(self, group: GroupView, settings: PipelineConfig, handed_over: HandedOver) -> None:
        self._group = group
        self._is_heavy = settings.recovery == "heavy"
        self._handed_over = handed_over
        self._collected = ""
        """The plan whose blocks the own trainer was given to send out."""

    def applies(self, plan: Plan) -> bool:
        """Whether a plan is followed so."""
        body = body_of(plan)
        return self._is_heavy and body.goes_back and body.begins_with != NO_STATE

    def sends(self, plan: Plan) -> bool:
        """Whether the own trainer cuts its blocks anew."""
        return self._collected == plan.hash

    def sent(self, plan: Plan, stage: Run) -> SnapshotRef | None:
        """A stage's blocks, as the proposer sends them out; None as long as it does not."""
        record = self._group.record(plan.proposer)
        told = record.holdings if record is not None else ()
        holdings = self._handed_over.holdings() if plan.proposer == self._group.own_id else told
        wanted = (body_of(plan).from_step, plan.epoch, plan.proposer, *stage)
        return next((h for h in holdings if (h.step, h.epoch, h.trainer, h.part, h.part + h.span) == wanted), None)

    def send_out(self, plan: Plan, pieces: list[SnapshotRef]) -> Effects:
        """All blocks are here: the trainer cuts them anew. Once for a plan."""
        if self.sends(plan):
            return []
        self._collected, body = plan.hash, body_of(plan)
        runs = tuple((stage.start, stage.stop) for stage in body.pipeline.stages)
        command = CollectBlocks(body.from_step, len(pieces), runs)
        return [ToTrainer(command), *(ToTrainer(GivePiece(b""), holding.blob, "piece") for holding in pieces)]
