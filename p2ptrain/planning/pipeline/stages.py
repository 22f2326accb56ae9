"""The pipeline plan: which peers train which blocks, how they share each micro-batch, and how far ahead they run.

Invariant: a ``PipelinePlan`` that ``pipeline_plan_from_json`` returns holds together (its stages cover the chain of
blocks once and in order, nobody is in two stages, every stage shares out the whole micro-batch, no stage runs further
ahead than the one before it can feed), and its canonical JSON is the very text it came from, so that ``hash`` names it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated

from p2ptrain.errors import RemoteError
from p2ptrain.planning.devices.blocks import MAX_BLOCKS
from p2ptrain.planning.pipeline.schedule import most_ahead
from p2ptrain.wire.schema import Bound, from_plain, to_plain

MAX_PLAN_BYTES = 1 << 20
MAX_STAGES = 256
MAX_SAMPLES = 1 << 20
MAX_MICRO_BATCHES = 4096

Name = Annotated[str, Bound(1, 256)]
BlockIndex = Annotated[int, Bound(0, MAX_BLOCKS)]
NumSamples = Annotated[int, Bound(1, MAX_SAMPLES)]
NumMicroBatches = Annotated[int, Bound(1, MAX_MICRO_BATCHES)]


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of blocks, [start, stop), and the peers that train it side by side."""

    start: BlockIndex
    stop: BlockIndex
    peers: Annotated[tuple[Name, ...], Bound(1, 1024)]
    samples: Annotated[tuple[NumSamples, ...], Bound(1, 1024)]
    """Of each micro-batch, the samples that each of ``peers`` has."""
    warm_up: NumMicroBatches
    """Forward passes before the first backward one: as many micro-batches' activations are kept at once."""


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """Stages from the samples to the loss; a batch is ``micro_batch`` x ``num_micro_batches`` samples."""

    model: Name
    num_blocks: Annotated[int, Bound(1, MAX_BLOCKS)]
    micro_batch: NumSamples
    num_micro_batches: NumMicroBatches
    stages: Annotated[tuple[Stage, ...], Bound(1, MAX_STAGES)]
    left_out: Annotated[tuple[Name, ...], Bound(0, 1024)]
    """Peers that would not make it faster, sorted."""

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces. Equal plans have equal text."""
        return json.dumps(to_plain(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def is_alone(self) -> bool:
        """Whether one peer trains the whole model."""
        return sum(len(stage.peers) for stage in self.stages) == 1

    def stage_of(self, peer: str) -> int | None:
        """The stage that ``peer`` is in, if any."""
        return next((index for index, stage in enumerate(self.stages) if peer in stage.peers), None)


def pipeline_plan_from_json(data: bytes | str) -> PipelinePlan:
    """Parse and check what came from the network. Raises ``RemoteError``."""
    if len(data) > MAX_PLAN_BYTES:
        raise RemoteError("pipeline plan", f"larger than {MAX_PLAN_BYTES} bytes")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteError("pipeline plan", f"not JSON ({type(error).__name__})") from None
    plan = from_plain(PipelinePlan, plain)
    check_pipeline_plan(plan)
    if plan.to_json() != text:
        raise RemoteError("pipeline plan", "not in canonical form")
    return plan


def check_pipeline_plan(plan: PipelinePlan) -> None:
    """Check what types alone don't say. Raises ``RemoteError``."""
    at, feeds = 0, most_ahead(plan.num_micro_batches, flush=False)  # which schedule it is for, the plan doesn't say
    for index, stage in enumerate(plan.stages):
        _require(stage.start == at and stage.stop > at, f"stage {index} covers blocks {stage.start} to {stage.stop}")
        _require(len(stage.samples) == len(stage.peers), f"stage {index}: not a share of samples for each peer")
        _require(sum(stage.samples) == plan.micro_batch, f"stage {index}: its samples are not the micro-batch")
        _require(stage.warm_up <= feeds, f"stage {index}: waits for more micro-batches than reach it")
        at, feeds = stage.stop, stage.warm_up
    _require(at == plan.num_blocks, f"the stages end at block {at} of {plan.num_blocks}")
    used = [peer for stage in plan.stages for peer in stage.peers]
    _require(len(set(used)) == len(used), "a peer is in the pipeline twice")
    _require(list(plan.left_out) == sorted(set(plan.left_out)), "peers left out are out of order")
    _require(not set(used) & set(plan.left_out), "a peer is in the pipeline and left out")


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise RemoteError("pipeline plan", detail)
