"""How plans are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from p2ptrain.config import Job
from p2ptrain.ids import PeerId
from p2ptrain.planning.assignment import first_plan, next_plan, recomputes
from p2ptrain.planning.plan import Plan, plan_from_json, snapshot
from p2ptrain.protocol.messages import Record


@dataclass(frozen=True, slots=True)
class PlanRules:
    own_id: PeerId
    job: Job

    def parse(self, data: bytes) -> Plan:
        return plan_from_json(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return recomputes(self.job, plan, parent)

    def propose(self, current: Plan | None, members: Sequence[Record]) -> Plan | None:
        peers = [snapshot(record) for record in members]
        if current is None:
            return first_plan(self.job, peers, self.own_id)
        return next_plan(self.job, current, peers, self.own_id)

    def participants(self, plan: Plan) -> Collection[PeerId]:
        return plan.trainers()
