"""How plans of a pipeline are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.rules import NOT_MEASURED, StageRules, search
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.plan import body_of, read_plan
from p2ptrain.modes.pipeline.planner import first_plan, follows, next_plan
from p2ptrain.modes.pipeline.predicted import predicted
from p2ptrain.modes.pipeline.stage.way_back import Standing
from p2ptrain.planning.pipeline.coverage import lacking_of
from p2ptrain.protocol.consensus.epochs import epoch_apart
from p2ptrain.protocol.consensus.rules import PlanResult, PlanWork
from p2ptrain.wire.messages import Record, SnapshotRef


@dataclass(slots=True)
class PipelineRules(StageRules):
    """The functions are asked anew for every plan."""

    standing: Callable[[], Standing] = lambda: Standing(0)
    """How far the group is."""
    lead: Callable[[Collection[PeerId]], int] = lambda others: 0
    """So many batches the plan in force has brought its peers further than others who follow another one."""
    margin: Callable[[], int] = lambda: 1
    """Batches by which records may be late."""
    batch_s: Callable[[], float] = lambda: 0.0
    """Seconds of a batch by the plan in force, as seen here; 0 = not known yet."""
    is_under_way: Callable[[], bool] = lambda: True
    """Whether all train by the plan in force."""
    held: Callable[[], Mapping[str, Sequence[SnapshotRef]]] = dict
    """What of the model is saved, by the members that have it."""
    is_finished: Callable[[], bool] = lambda: False
    """Whether the plan in force was trained to the end, and all of that is saved."""
    may_improve: Callable[[], bool] = lambda: True
    """Whether a plan that works may be changed for a faster one."""

    def parse(self, data: bytes) -> Plan:
        return read_plan(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return follows(self.job, self.model(), plan, parent)

    def is_beginning(self, current: Plan | None, members: Sequence[Record]) -> bool:
        """Who is on the way to a plan has the blocks of one step only: another plan that begins later would not find
        them. Who is gone, or has lost its stage, is not waited for: the next plan goes back to what is saved."""
        if current is None or self.is_under_way():
            return False
        return self.present(members).issuperset(current.trainers())

    def question(self, current: Plan | None, members: Sequence[Record]) -> PlanWork[Plan]:
        job, proposer, model = self.job, self.own_id, self.model()
        if model is None:
            return NOT_MEASURED
        peers = self.measured(model, members)
        standing, batch_s = self.standing(), self.batch_s()
        may_improve, lacking = self.may_improve(), lacking_of(standing.saved, self.held())
        lost = [record.peer for record in members if self.is_lost(record)]
        leaving = [record.peer for record in members if record.leaving]
        if current is not None and standing.waits:
            return PlanWork(lambda: PlanResult(None))
        others = [r for r in members if current and r.plan not in ("", current.hash) and r.epoch > current.epoch]

        def find() -> Plan | None:
            if current is None:
                return first_plan(job, model, peers, proposer)
            return next_plan(
                job,
                model,
                current,
                peers,
                proposer,
                next_step=standing.next_step,
                saved=standing.saved,
                goes_back=standing.is_ahead,
                takes_in=bool(others),
                lost=lost,
                leaving=leaving,
                batch_s=batch_s,
                may_improve=may_improve,
                lacking=lacking,
            )

        return search(find)

    def predicted(self, plan: Plan) -> Mapping[str, float]:
        model = self.model()
        return predicted(self.job, model, plan, self.own_id) if model is not None else {}

    def timed(self, plan: Plan, epoch: int) -> Plan | None:
        """A plan that was to take over at a batch which may be done by now gets a later one; one that goes back to what
        is saved begins with the newest that is saved by now."""
        body = body_of(plan)
        if not plan.parent:
            return plan
        standing = self.standing()
        state = body.begins_with
        if body.goes_back:
            state = standing.saved
        elif standing.next_step > body.from_step:
            state = standing.next_step, body.from_epoch
        if state[0] >= self.job.training.rounds * body.steps_per_round:
            return None
        body = replace(body, from_step=state[0], from_epoch=state[1])
        if state[1] >= epoch:  # others came to it, apart from the plan in force here
            epoch = epoch_apart(state[1], self.own_id)
        return replace(plan, epoch=epoch, body=body)

    def accepts(self, plan: Plan) -> bool:
        """Not what goes back further than what is known here to be saved."""
        body = body_of(plan)
        return not body.goes_back or body.begins_with >= self.standing().saved

    def is_torn(self, current: Plan, members: Sequence[Record]) -> bool:
        """Or is about to be, as somebody leaves."""
        staying = self.present([record for record in members if not record.leaving])
        return not self.forms(current, members) and not staying.issuperset(current.trainers())

    def may_go_alone(self, current: Plan, members: Sequence[Record]) -> bool:
        """Those who can't go on by the plan in force: where what they have saved whole is near enough, be it the
        initial weights, or who has more was waited for in vain."""
        return not self.present(members).issuperset(current.trainers()) and not self.standing().waits

    def holds_on(self, current: Plan, plan: Plan, records: Sequence[Record], others: Collection[PeerId]) -> bool:
        """While all of its trainers train on by it, and are further than the others; and when it is finished.

        Who goes back to what these have saved, to train on with them, has done no batch more: it is taken in.
        """
        if self.is_finished():
            return True
        name, body = current.hash, body_of(plan)
        following = {r.peer for r in records if r.plan == name and not self.is_lost(r)} | {self.own_id}
        joins = body.goes_back and body.from_epoch in (current.epoch, body_of(current).from_epoch)
        return following.issuperset(current.trainers()) and (joins or self.lead(others) > self.margin())
