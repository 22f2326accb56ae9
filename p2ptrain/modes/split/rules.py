"""How plans of split training are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan, snapshot
from p2ptrain.core.stages.figures import MeasuredPeer, figures_of
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.plan import StartPiece, body_of, read_plan
from p2ptrain.modes.split.planner import Known, first_plan, follows, next_plan
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import chain_hash
from p2ptrain.protocol.consensus.rules import PlanResult, PlanWork
from p2ptrain.wire.messages import Record


@dataclass(slots=True)
class SplitRules:
    """The functions are asked anew for every plan."""

    own_id: PeerId
    job: Job
    wanted: ClassVar[str] = "peers whose speed is known"
    model: Callable[[], ModelProfile | None] = lambda: None
    """The blocks of the job's model, as soon as the own trainer has counted them."""
    profile_of: Callable[[str], bytes | None] = lambda name: None
    """What a record's ``profile`` names, if it is here."""
    newest: Callable[[], tuple[int, tuple[StartPiece, ...]]] = lambda: (0, ())
    """The newest state that is saved whole: after how many rounds, and its pieces."""
    round_s: Callable[[], float] = lambda: 0.0
    """Seconds of a round by the plan in force, as seen here; 0 = not known yet."""
    is_between_rounds: Callable[[], bool] = lambda: True
    """Whether little is lost with a change of plan now: a round has only just begun."""
    is_lost: Callable[[Record], bool] = lambda record: False
    """Whether a trainer of the plan in force is there without its work."""

    def parse(self, data: bytes) -> Plan:
        return read_plan(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        return follows(self.job, self.model(), plan, parent)

    def is_ready(self, record: Record) -> bool:
        return bool(record.profile)

    def is_beginning(self, current: Plan | None, members: Sequence[Record]) -> bool:
        """Who comes waits for the end of the round under way; who is gone, or has lost its work, is not waited for."""
        if current is None or self.is_between_rounds():
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
        from_round, start = self.newest()
        lost = tuple(record.peer for record in members if self.is_lost(record))
        known = Known(from_round, start, lost, self.round_s())

        def work() -> PlanResult[Plan]:
            try:
                if current is None:
                    return PlanResult(first_plan(job, model, peers, proposer))
                return PlanResult(next_plan(job, model, current, peers, proposer, known))
            except UserError as error:
                return PlanResult(None, str(error))

        return PlanWork(work)

    def timed(self, plan: Plan, epoch: int) -> Plan | None:
        """It goes on from the newest state that is saved whole by now."""
        if not plan.parent:
            return plan
        from_round, start = self.newest()
        if from_round >= self.job.training.rounds:
            return None
        return replace(plan, epoch=epoch, body=replace(body_of(plan), from_round=from_round, start=start))

    def accepts(self, plan: Plan) -> bool:
        return True

    def is_torn(self, current: Plan, members: Sequence[Record]) -> bool:
        """Where most have just been started, a group forms that takes its time."""
        lost = {record.peer for record in members if self.is_lost(record)}
        trainers = {record.peer for record in members}.intersection(current.trainers())
        forms = 2 * len(trainers & lost) > len(trainers)
        return not forms and not (trainers - lost).issuperset(current.trainers())

    def may_go_alone(self, current: Plan, members: Sequence[Record]) -> bool:
        """Of two, the one that is left: the majority that it lacks is one that may be gone for good."""
        return len(current.peers) == 2

    def holds_on(self, current: Plan, records: Sequence[Record], others: Collection[PeerId]) -> bool:
        return False

    def participants(self, plan: Plan) -> Collection[PeerId]:
        """Also those without work: who stands by has a vote on what comes next."""
        return [peer.peer for peer in plan.peers]
