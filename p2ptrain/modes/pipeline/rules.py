"""How plans of a pipeline are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan, snapshot
from p2ptrain.core.stages.figures import MeasuredPeer, figures_of
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.plan import body_of, read_plan
from p2ptrain.modes.pipeline.planner import first_plan, follows, next_plan
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import chain_hash
from p2ptrain.protocol.consensus.rules import PlanResult, PlanWork
from p2ptrain.wire.messages import Record


@dataclass(slots=True)
class PipelineRules:
    """The functions are asked anew for every plan."""

    own_id: PeerId
    job: Job
    wanted: ClassVar[str] = "peers whose speed is known"
    model: Callable[[], ModelProfile | None] = lambda: None
    """The blocks of the job's model, as soon as the own trainer has counted them."""
    profile_of: Callable[[str], bytes | None] = lambda name: None
    """What a record's ``profile`` names, if it is here."""
    steps: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """The step after which a plan made now can take over; and the newest one of which all blocks are saved."""
    batch_s: Callable[[], float] = lambda: 0.0
    """Seconds of a batch by the plan in force, as seen here; 0 = not known yet."""
    is_under_way: Callable[[], bool] = lambda: True
    """Whether all train by the plan in force."""
    is_lost: Callable[[Record], bool] = lambda record: False
    """Whether a trainer of the plan in force is there without its stage."""

    may_improve: Callable[[], bool] = lambda: True
    """Whether a plan that works may be changed for a faster one."""

    def parse(self, data: bytes) -> Plan:
        return read_plan(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return follows(self.job, self.model(), plan, parent)

    def is_ready(self, record: Record) -> bool:
        return bool(record.profile)

    def is_beginning(self, current: Plan | None, members: Sequence[Record]) -> bool:
        """Who is on the way to a plan has the blocks of one step only: another plan that begins later would not find
        them. Who is gone, or has lost its stage, is not waited for: the next plan goes back to what is saved."""
        if current is None or self.is_under_way():
            return False
        present = {record.peer for record in members if not self.is_lost(record)}
        return present.issuperset(current.trainers())

    def question(self, current: Plan | None, members: Sequence[Record]) -> PlanWork[Plan]:
        """All that this peer knows is gathered at once; the search itself may be in another thread."""
        job, proposer, model = self.job, self.own_id, self.model()
        if model is None:
            return PlanWork(lambda: PlanResult(None, "this peer has not measured the model's blocks yet"))
        chain = chain_hash(model)
        peers = [MeasuredPeer(snapshot(record), figures_of(record, chain, self.profile_of)) for record in members]
        (next_step, covered_step), batch_s = self.steps(), self.batch_s()
        may_improve = self.may_improve()
        lost = [record.peer for record in members if self.is_lost(record)]

        def work() -> PlanResult[Plan]:
            try:
                if current is None:
                    return PlanResult(first_plan(job, model, peers, proposer))
                plan = next_plan(
                    job,
                    model,
                    current,
                    peers,
                    proposer,
                    next_step=next_step,
                    covered_step=covered_step,
                    lost=lost,
                    batch_s=batch_s,
                    may_improve=may_improve,
                )
                return PlanResult(plan)
            except UserError as error:
                return PlanResult(None, str(error))

        return PlanWork(work)

    def timed(self, plan: Plan) -> Plan | None:
        """A plan that was to take over at a batch which may be done by now gets a later one; one that goes back to what
        is saved begins with the newest that is saved by now."""
        body = body_of(plan)
        if not plan.parent:
            return plan
        next_step, covered_step = self.steps()
        goes_back = body.from_step <= covered_step
        from_step = covered_step if goes_back else max(body.from_step, next_step)
        if from_step >= self.job.training.rounds * body.steps_per_round:
            return None
        return replace(plan, body=replace(body, from_step=from_step))

    def participants(self, plan: Plan) -> Collection[PeerId]:
        """Also those without a stage: who stands by has a vote on what comes next."""
        return [peer.peer for peer in plan.peers]
