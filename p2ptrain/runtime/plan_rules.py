"""How plans are read, checked and made for one job: what ``Agreement`` asks of planning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from p2ptrain.config import Job
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.planning.assignment import first_plan, next_plan, recomputes
from p2ptrain.planning.blocks import ModelProfile
from p2ptrain.planning.plan import Plan, SliceProfile, plan_from_json, snapshot
from p2ptrain.planning.profile_codec import chain_hash, profile_from_json
from p2ptrain.planning.slice_figures import SlicePeer
from p2ptrain.planning.slices import first_slices_plan, follows, next_slices_plan
from p2ptrain.protocol.messages import Record


@dataclass(slots=True)
class PlanRules:
    """The functions are asked anew for every plan, in mode slices only."""

    own_id: PeerId
    job: Job
    model: Callable[[], ModelProfile | None] = lambda: None
    """The blocks of the job's model, as soon as the own trainer has counted them."""
    profile_of: Callable[[str], bytes | None] = lambda name: None
    """What a record's ``profile`` names, if it is here."""
    steps: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """The step after which a plan made now can take over; and the newest one of which all blocks are saved."""
    batch_s: Callable[[], float] = lambda: 0.0
    """Seconds of a batch by the plan in force, as seen here; 0 = not known yet."""
    is_lost: Callable[[Record], bool] = lambda record: False
    """Whether a trainer of the plan in force is there without its stage."""
    problem: str = field(default="", init=False)
    """Why no plan could be made when one was last asked for; "" = nothing stood in the way."""

    def parse(self, data: bytes) -> Plan:
        return plan_from_json(data)

    def verify(self, plan: Plan, parent: Plan | None) -> bool:
        if self.job.mode == "slices":
            return follows(self.job, self.model(), plan, parent)
        return recomputes(self.job, plan, parent)

    def propose(self, current: Plan | None, members: Sequence[Record]) -> Plan | None:
        if self.job.mode == "slices":
            return self._propose_slices(current, members)
        peers = [snapshot(record) for record in members]
        if current is None:
            return first_plan(self.job, peers, self.own_id)
        return next_plan(self.job, current, peers, self.own_id)

    def participants(self, plan: Plan) -> Collection[PeerId]:
        """In mode slices also those without a stage: who stands by has a vote on what comes next."""
        return [peer.peer for peer in plan.peers] if plan.slices is not None else plan.trainers()

    def _propose_slices(self, current: Plan | None, members: Sequence[Record]) -> Plan | None:
        model = self.model()
        if model is None:
            self.problem = "this peer has not measured the model's blocks yet"
            return None
        chain = chain_hash(model)
        peers = [SlicePeer(snapshot(record), self._profile(record, chain)) for record in members]
        self.problem = ""
        try:
            if current is None:
                return first_slices_plan(self.job, model, peers, self.own_id)
            next_step, covered_step = self.steps()
            lost = [record.peer for record in members if self.is_lost(record)]
            return next_slices_plan(
                self.job,
                model,
                current,
                peers,
                self.own_id,
                next_step=next_step,
                covered_step=covered_step,
                lost=lost,
                batch_s=self.batch_s(),
            )
        except UserError as error:
            self.problem = str(error)
            return None

    def _profile(self, record: Record, chain: str) -> SliceProfile | None:
        """A peer's figures; None for a profile of other blocks, or one that makes no sense.

        Until a profile is here, the peer's FLOP/s count.
        """
        data = self.profile_of(record.profile) if record.profile else None
        if data is None:
            return SliceProfile(record.peer, record.link_bytes_per_s, record.slowdown, (), (), (), links=record.links)
        try:
            profile = profile_from_json(data)
        except RemoteError:
            return None
        if profile.chain != chain:
            return None
        return SliceProfile(
            record.peer,
            record.link_bytes_per_s,
            record.slowdown,
            profile.batch_sizes,
            profile.forward_s,
            profile.backward_s,
            profile.update_s_per_byte,
            record.links,
        )
