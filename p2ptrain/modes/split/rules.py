"""How plans of split training are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from p2ptrain.core.plan import Plan
from p2ptrain.core.stages.rules import NOT_MEASURED, StageRules, search
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.plan import StartPiece, body_of, read_plan
from p2ptrain.modes.split.planner import Known, first_plan, follows, next_plan
from p2ptrain.modes.split.rounds.paces import FAR
from p2ptrain.protocol.consensus.rules import PlanWork
from p2ptrain.wire.messages import Blame, Record


@dataclass(slots=True)
class SplitRules(StageRules):
    """The functions are asked anew for every plan."""

    newest: Callable[[], tuple[int, tuple[StartPiece, ...]]] = lambda: (0, ())
    """The newest state that is saved whole: after how many rounds, and its pieces."""
    round_s: Callable[[], float] = lambda: 0.0
    """Seconds of a round by the plan in force, as seen here; 0 = not known yet."""
    is_between_rounds: Callable[[], bool] = lambda: True
    """Whether little is lost with a change of plan now: a round has only just begun."""
    blames: Callable[[], Mapping[PeerId, tuple[PeerId, Blame]]] = dict
    """Whose work under the plan in force was of no use."""
    paces: Callable[[], Mapping[PeerId, float]] = dict
    """Helpers under the plan in force that are slower than planned: seconds of a sample."""
    elapsed_s: Callable[[], float] = lambda: 0.0
    """Of the round under way, unless it has only just begun."""
    current: Callable[[], Plan | None] = lambda: None
    """The plan in force."""

    def parse(self, data: bytes) -> Plan:
        return read_plan(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return follows(self.job, self.model(), plan, parent)

    def is_beginning(self, current: Plan | None, members: Sequence[Record]) -> bool:
        """Who comes waits for the end of the round under way; who is gone, or has lost its work, is not waited for, and
        who has become much slower may not be."""
        if current is None or self.is_between_rounds() or self.paces():
            return False
        planned = {each.peer: FAR * each.slowdown for each in body_of(current).figures}
        trainers = current.trainers()
        if any(each.peer in trainers and each.slowdown >= planned[each.peer] for each in members):
            return False
        return self.present(members).issuperset(trainers)

    def question(self, current: Plan | None, members: Sequence[Record]) -> PlanWork[Plan]:
        job, proposer, model = self.job, self.own_id, self.model()
        if model is None:
            return NOT_MEASURED
        peers = self.measured(model, members)
        from_round, start = self.newest()
        lost = tuple(record.peer for record in members if self.is_lost(record))
        known = Known(from_round, start, lost, self.round_s(), self.blames(), self.paces(), self.elapsed_s())

        def find() -> Plan | None:
            if current is None:
                return first_plan(job, model, peers, proposer)
            return next_plan(job, model, current, peers, proposer, known)

        return search(find)

    def predicted(self, plan: Plan) -> Mapping[str, float]:
        """Who helps has a share of its time planned; who trains alone computes all of it but the averaging."""
        split = body_of(plan).split
        own, helped = split.unit_of(self.own_id), split.units_of(self.own_id)
        if split.round_s <= 0 or not (helped or (own is not None and own.is_alone)):
            return {}
        busy_s = sum(unit.helper_s for unit in helped)
        busy_s += own.round_s if own is not None and own.is_alone else 0.0
        return {"planned_computes": min(1.0, busy_s / split.round_s)}

    def timed(self, plan: Plan, epoch: int) -> Plan | None:
        """It goes on from the newest state that is saved whole by now."""
        if not plan.parent:
            return plan
        from_round, start = self.newest()
        if from_round >= self.job.training.rounds:
            return None
        return replace(plan, epoch=epoch, body=replace(body_of(plan), from_round=from_round, start=start))

    def accepts(self, plan: Plan) -> bool:
        """Who is shut out anew is one that is blamed, and who is slower than it says is said to be so by others."""
        current = self.current()
        if current is None or plan.parent != current.hash:
            return True
        before, after = body_of(current), body_of(plan)
        times = {each.peer: each.times for each in before.shut_out}
        if not {e.peer for e in after.shut_out if e.times > times.get(e.peer, 0)} <= self.blames().keys():
            return False
        known = {(each.peer, each.times, each.sample_s) for each in before.seen}
        return {e.peer for e in after.seen if (e.peer, e.times, e.sample_s) not in known} <= self.paces().keys()

    def is_torn(self, current: Plan, members: Sequence[Record]) -> bool:
        return not self.forms(current, members) and not self.present(members).issuperset(current.trainers())

    def may_go_alone(self, current: Plan, members: Sequence[Record]) -> bool:
        """Of two, the one that is left: the majority that it lacks is one that may be gone for good."""
        return len(current.peers) == 2

    def holds_on(self, current: Plan, plan: Plan, records: Sequence[Record], others: Collection[PeerId]) -> bool:
        return False
