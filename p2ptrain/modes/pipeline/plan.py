"""What a plan of a pipeline says: its stages, from which batch on it holds, and the figures it was made by.

Invariant: the parts are the stages; who is left out, and by whose figures it was planned, is in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from p2ptrain.core.plan import MAX_EPOCH, Part, Plan, Share, plan_from_json, require
from p2ptrain.core.stages.figures import DeviceFigures, check_figures
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import NAME
from p2ptrain.planning.pipeline.coverage import State
from p2ptrain.planning.pipeline.stages import PipelinePlan, check_pipeline_plan
from p2ptrain.wire.schema import Bound

MAX_STRETCH = 100.0
MAX_STEPS = 2**48


@dataclass(frozen=True)
class PipelineBody:
    """A batch is one optimizer step."""

    chain: Annotated[str, Bound(64, 64)]
    """Names the blocks that it was made for: the hash of their ``ModelProfile``."""
    pipeline: PipelinePlan
    shares: Annotated[tuple[Share, ...], Bound(1, 4096)]
    """The share of the training FLOPs that each stage has."""
    figures: Annotated[tuple[DeviceFigures, ...], Bound(1, 1024)]
    """By peer. A peer of the plan without them could not be planned with: its figures make no sense."""
    from_step: Annotated[int, Bound(0, MAX_STEPS)]
    """Batches done when it takes over."""
    steps_per_round: Annotated[int, Bound(1, MAX_STEPS)]
    from_epoch: Annotated[int, Bound(0, MAX_EPOCH)] = 0
    """In which these were done; 0 = none are, and it begins with the initial weights."""
    goes_back: bool = False
    """To what is saved of them: what was done since is done again. Else all train on until then."""
    stretch: Annotated[float, Bound(1.0, MAX_STRETCH)] = 1.0
    """How many times as long as predicted batches took, the last time that more than one peer trained them."""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """A part for each stage."""
        stages = zip(self.shares, self.pipeline.stages, strict=False)
        return tuple(
            Part(i, share, tuple(PeerId(peer) for peer in sorted(stage.peers)))
            for i, (share, stage) in enumerate(stages)
        )

    @property
    def begins_with(self) -> State:
        """The state of the model."""
        return self.from_step, self.from_epoch

    def cut(self) -> Any:
        """By whom, too: who trains on through a change of plan must know the stages beside its own."""
        return [[stage.start, stage.stop, list(stage.peers)] for stage in self.pipeline.stages]

    def check(self, plan: Plan) -> None:
        pipeline = self.pipeline
        check_pipeline_plan(pipeline)
        require(len(self.shares) == len(pipeline.stages), "not a share for each stage")
        names = [peer.peer for peer in plan.peers]
        trained = plan.trainers().keys()
        require(pipeline.left_out == tuple(n for n in names if n not in trained), "who is left out is not who is left")
        by_name = {peer.peer: peer for peer in plan.peers}
        require(all(by_name[peer].num_samples for peer in plan.parts[0].trainers), "a first stage without samples")
        check_figures(plan, self.chain, self.figures, pipeline.num_blocks)
        require(plan.epoch > 1 or self.from_step == 0, "a first plan that does not begin at the first batch")
        require((self.from_step == 0) == (self.from_epoch == 0), "a state of no epoch, or initial weights of one")
        require(self.from_epoch < plan.epoch, "a state of a later epoch")


BODIES = {NAME: PipelineBody}


def read_plan(data: bytes | str) -> Plan:
    """A plan of a pipeline. Raises ``RemoteError``."""
    return plan_from_json(data, BODIES)


def body_of(plan: Plan) -> PipelineBody:
    """The body of a plan of this mode."""
    if not isinstance(plan.body, PipelineBody):
        raise LocalError("a plan of another mode")
    return plan.body
