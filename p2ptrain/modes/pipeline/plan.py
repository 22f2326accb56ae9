"""What a plan of a pipeline says: its stages, from which batch on it holds, and the figures it was made by.

Invariant: the parts are the stages; who is left out, and by whose figures it was planned, is in the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from p2ptrain.core.plan import Part, Plan, Share, is_hex, plan_from_json, require
from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import NAME
from p2ptrain.planning.devices.blocks import BatchSizes, BlockRows
from p2ptrain.planning.pipeline.stages import PipelinePlan, check_pipeline_plan
from p2ptrain.wire.messages import MAX_LINKS, LinkFigure, PeerName
from p2ptrain.wire.schema import Bound

MAX_STRETCH = 100.0
MAX_STEPS = 2**48


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What a pipeline is planned by, of one peer, beside its snapshot: its link, and seconds of each block."""

    peer: PeerName
    link_bytes_per_s: Annotated[float, Bound(0, 1e15)]
    """0 = not known."""
    slowdown: Annotated[float, Bound(0, 1e6)]
    """Seconds seen while training / seconds measured."""
    batch_sizes: BatchSizes
    """Rising; none = not measured: the snapshot's FLOP/s count."""
    forward_s: BlockRows
    backward_s: BlockRows
    update_s_per_byte: Annotated[float, Bound(0, 1.0)] = 0.0
    """Of the optimizer's step, for each byte of parameters."""
    activation_s_per_byte: Annotated[float, Bound(0, 1.0)] = 0.0
    """Of its trainer, for handing activations on or taking them in, for each byte before it is coded ..."""
    gradient_s_per_byte: Annotated[float, Bound(0, 1.0)] = 0.0
    """... and of their gradients."""
    links: Annotated[tuple[LinkFigure, ...], Bound(0, MAX_LINKS)] = ()
    """To peers of the plan, by peer, those that this one has measured."""


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
        for peer in plan.peers:
            known = all(wish < plan.num_classes for wish in peer.wishes)
            require(known, f"{peer.peer}: wishes for unknown classes")
        given = [figures.peer for figures in self.figures]
        require(given == sorted(set(given)), "figures out of order")
        require(trained <= set(given) <= set(names), "figures of others than the plan's peers")
        for figures in self.figures:
            check_figures(figures, names, pipeline.num_blocks)
        require(is_hex(self.chain, 64), "the chain is not a hash")
        require(plan.epoch > 1 or self.from_step == 0, "a first plan that does not begin at the first batch")


def check_figures(figures: DeviceFigures, names: Sequence[str], num_blocks: int) -> None:
    ends = [link.peer for link in figures.links]
    require(ends == sorted(set(ends)) and figures.peer not in ends, f"{figures.peer}: links out of order")
    require(set(ends).issubset(names), f"{figures.peer}: links to others than the plan's peers")
    sizes = figures.batch_sizes
    require(list(sizes) == sorted(set(sizes)), f"{figures.peer}: batch sizes out of order")
    for rows in (figures.forward_s, figures.backward_s):
        fits = len(rows) == len(sizes) and all(len(row) == num_blocks for row in rows)
        require(fits, f"{figures.peer}: not a time for each block and batch size")


BODIES = {NAME: PipelineBody}


def read_plan(data: bytes | str) -> Plan:
    """A plan of a pipeline. Raises ``RemoteError``."""
    return plan_from_json(data, BODIES)


def body_of(plan: Plan) -> PipelineBody:
    """The body of a plan of this mode."""
    if not isinstance(plan.body, PipelineBody):
        raise LocalError("a plan of another mode")
    return plan.body
