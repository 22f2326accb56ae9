"""Who counts what: everyone keeps its part, and a free one goes to the first peer that has none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from p2ptrain.config import Job
from p2ptrain.core.plan import Part, PeerSnapshot, Plan, clean, plan_from_json, snapshot
from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.rules import PlanResult, PlanWork
from p2ptrain.wire.messages import Record
from toy_mode.plan import BODIES, NUM_PARTS, ToyBody


@dataclass(frozen=True, slots=True)
class ToyRules:
    own_id: PeerId
    job: Job
    wanted = "peers that can count"

    def parse(self, data: bytes) -> Plan:
        return plan_from_json(data, BODIES)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return (parent is None and plan.epoch > 1) or plan == _next(self.job, parent, plan.peers, plan.proposer)

    def is_ready(self, record: Record) -> bool:
        return bool(record.counts)

    def is_beginning(self, current: Plan | None, members: Sequence[Record]) -> bool:
        return False

    def question(self, current: Plan | None, members: Sequence[Record]) -> PlanWork[Plan]:
        plan = _next(self.job, current, [snapshot(record) for record in members], self.own_id)
        is_new = current is None or plan.trainers() != current.trainers()
        return PlanWork(lambda: PlanResult(plan if is_new else None))

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
        return {}

    def participants(self, plan: Plan) -> Collection[PeerId]:
        return plan.trainers()


def _next(job: Job, parent: Plan | None, peers: Sequence[PeerSnapshot], proposer: PeerId) -> Plan:
    here = clean(job, peers)
    names = [peer.peer for peer in here]
    before = [part.trainers for part in parent.parts] if parent else [()] * NUM_PARTS
    kept = [[name for name in trainers if name in names] for trainers in before]
    free = [name for name in names if not any(name in trainers for trainers in kept)]
    given = [trainers or [free.pop(0) for _ in free[:1]] for trainers in kept]
    parts = tuple(Part(index, 1 / NUM_PARTS, tuple(trainers)) for index, trainers in enumerate(given))
    epoch, name = (parent.epoch + 1, parent.hash) if parent else (1, "")
    return Plan(epoch, job.id, "toy", proposer, here, name, ToyBody(parts, job.training.rounds))
