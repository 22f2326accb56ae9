"""What every mode's rules say of plans by measured figures: who can be planned with, and who is there for a plan.

Invariant: nothing is kept; the functions that rules are given are asked anew for every plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan, clean, snapshot
from p2ptrain.core.stages.figures import MeasuredPeer, figures_of, usable
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import chain_hash
from p2ptrain.protocol.consensus.rules import PlanResult, PlanWork
from p2ptrain.wire import messages as m

NOT_MEASURED: PlanWork[Plan] = PlanWork(lambda: PlanResult(None, "this peer has not measured the model's blocks yet"))


@dataclass(slots=True)
class StageRules:
    """A mode's own rules say the rest."""

    own_id: PeerId
    job: Job
    wanted: ClassVar[str] = "peers whose speed is known"
    model: Callable[[], ModelProfile | None] = lambda: None
    """The blocks of the job's model, as soon as the own trainer has counted them."""
    profile_of: Callable[[str], bytes | None] = lambda name: None
    """What a record's ``profile`` names, if it is here."""
    is_lost: Callable[[m.Record], bool] = lambda record: False
    """Whether a trainer of the plan in force is there without what it was to train."""

    def is_ready(self, record: m.Record) -> bool:
        return bool(record.profile)

    def participants(self, plan: Plan) -> Collection[PeerId]:
        """Also those without work: who stands by has a vote on what comes next."""
        return [peer.peer for peer in plan.peers]

    def present(self, members: Sequence[m.Record]) -> set[PeerId]:
        """Who is there, and has not lost its work."""
        return {record.peer for record in members if not self.is_lost(record)}

    def forms(self, current: Plan, members: Sequence[m.Record]) -> bool:
        """Whether most have just been started: a group that forms takes its time."""
        trainers = current.trainers().keys() & {record.peer for record in members}
        return 2 * len(trainers - self.present(members)) > len(trainers)

    def is_senseless(self, record: m.Record, plan: Plan) -> bool:
        """Whether a peer that the plan does not know has measured what nobody can plan with."""
        model = self.model()
        if model is None or not record.profile or record.peer in {peer.peer for peer in plan.peers}:
            return False
        peers = self.measured(model, [record])
        return not usable(model, clean(self.job, [peer.snapshot for peer in peers]), peers)

    def measured(self, model: ModelProfile, members: Sequence[m.Record]) -> list[MeasuredPeer]:
        """All that this peer knows of the members, gathered at once: the search may be in another thread."""
        chain = chain_hash(model)
        return [MeasuredPeer(snapshot(record), figures_of(record, chain, self.profile_of)) for record in members]


def search(find: Callable[[], Plan | None]) -> PlanWork[Plan]:
    """The search for a plan; a ``UserError`` says why there is none."""

    def work() -> PlanResult[Plan]:
        try:
            return PlanResult(find())
        except UserError as error:
            return PlanResult(None, str(error))

    return PlanWork(work)


def has_lost_part(plan: Plan, name: str, record: m.Record) -> bool:
    """Whether a peer that the plan (``name``: its hash) gives a part to says that it has none."""
    return record.plan == name and record.part == m.NO_PART and plan.part_of(record.peer) is not None
