"""How plans of class sub-models are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan, snapshot
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.plan import read_plan
from p2ptrain.modes.tasks.planning.assignment import first_plan, next_plan, recomputes
from p2ptrain.protocol.consensus.rules import PlanResult, PlanWork
from p2ptrain.wire.messages import Record


@dataclass(frozen=True, slots=True)
class TasksRules:
    """Everything that a plan hangs on is in the records: any peer can compute it again."""

    own_id: PeerId
    job: Job
    wanted: ClassVar[str] = "peers with samples for this job"

    def parse(self, data: bytes) -> Plan:
        return read_plan(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return recomputes(self.job, plan, parent)

    def is_ready(self, record: Record) -> bool:
        return any(record.counts)

    def is_beginning(self, current: Plan | None, members: Sequence[Record]) -> bool:
        return False

    def question(self, current: Plan | None, members: Sequence[Record]) -> PlanWork[Plan]:
        job, proposer, peers = self.job, self.own_id, [snapshot(record) for record in members]

        def work() -> PlanResult[Plan]:
            plan = first_plan(job, peers, proposer) if current is None else next_plan(job, current, peers, proposer)
            return PlanResult(plan)

        return PlanWork(work)

    def timed(self, plan: Plan, epoch: int) -> Plan | None:
        return plan

    def accepts(self, plan: Plan) -> bool:
        return True

    def is_torn(self, current: Plan, members: Sequence[Record]) -> bool:
        return False

    def may_go_alone(self, current: Plan, members: Sequence[Record]) -> bool:
        return True

    def holds_on(self, current: Plan, plan: Plan, records: Sequence[Record], others: Collection[PeerId]) -> bool:
        return False

    def predicted(self, plan: Plan) -> Mapping[str, float]:
        """It is planned by speeds and shares; how long a batch takes nobody says."""
        return {}

    def participants(self, plan: Plan) -> Collection[PeerId]:
        return plan.trainers()
