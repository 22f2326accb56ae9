"""The plan: which peer trains which part of the global model, in one epoch, with the inputs it was made from.

Invariant: a ``Plan`` that ``plan_from_json`` returns holds together (its parts partition the classes or are the stages
of its pipeline, their shares fit into the model, every trainer is a peer of the plan and trains one part), and its
canonical JSON is the very text it came from. So ``plan.hash`` names it, and a peer that has the inputs can compute the
same plan again, or see that it fits them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from p2ptrain.config import MAX_CLASSES, Mode
from p2ptrain.errors import RemoteError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.planning.devices.blocks import BatchSizes, BlockRows
from p2ptrain.planning.pipeline.stages import PipelinePlan, check_pipeline_plan
from p2ptrain.wire.messages import MAX_LINKS, LinkFigure, PeerName, Record
from p2ptrain.wire.schema import Bound, from_plain, to_plain

MAX_PLAN_BYTES = 1 << 20
MAX_EPOCH = 2**40
MAX_FORMER = 256
MAX_STRETCH = 100.0
MAX_STEPS = 2**48
SHARE_TOLERANCE = 1e-6

TargetRule = Literal["all", "rest", "own"]
CombineRule = Literal["own", "sum"]
ClassIndex = Annotated[int, Bound(0, MAX_CLASSES - 1)]
ClassIndices = Annotated[tuple[ClassIndex, ...], Bound(0, MAX_CLASSES)]
PartIndex = Annotated[int, Bound(0, MAX_CLASSES - 1)]


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """What a plan knows of a peer: the peer's own record at the time of planning."""

    peer: PeerName
    flops_per_s: Annotated[float, Bound(0, 1e18)]
    """Sustained training speed; 0 = not known."""
    memory_bytes: int
    """What training may use; 0 = not known."""
    counts: Annotated[tuple[int, ...], Bound(0, MAX_CLASSES)]
    """Training samples of each class; empty = none."""
    wishes: ClassIndices
    """Classes that the peer wants to train."""
    max_groups: Annotated[int, Bound(0, MAX_CLASSES)] = 0
    """Into so many class sub-models its trainer can divide the job's model; 0 = not known."""

    @property
    def num_samples(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Part:
    """A share of every decoupled block's channels, for some classes, and who trains it (nobody: it waits).

    In mode slices: a stage of the pipeline. No classes; the share is that of the training FLOPs.
    """

    index: PartIndex
    classes: ClassIndices
    share: Annotated[float, Bound(0, 1)]
    trainers: Annotated[tuple[PeerName, ...], Bound(0, 1024)]
    shards: Annotated[tuple[str, ...], Bound(1, 2)]
    """What gossip averages apart: parts that hold the same shard average it together."""


@dataclass(frozen=True, slots=True)
class Former:
    """A peer that is gone, and the part it trained last: it gets it back when it returns."""

    peer: PeerName
    part: PartIndex


@dataclass(frozen=True, slots=True)
class SliceProfile:
    """What a pipeline plan knows of a peer beside its snapshot: its link, and seconds of each block."""

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


@dataclass(frozen=True, slots=True)
class SlicesPlan:
    """The pipeline of a plan, and from which batch on it holds. A batch is one optimizer step."""

    chain: Annotated[str, Bound(64, 64)]
    """Names the blocks that it was made for: the hash of their ``ModelProfile``."""
    pipeline: PipelinePlan
    profiles: Annotated[tuple[SliceProfile, ...], Bound(1, 1024)]
    """By peer. A peer of the plan without one could not be planned with: its figures make no sense."""
    from_step: Annotated[int, Bound(0, MAX_STEPS)]
    """Batches done when it takes over."""
    steps_per_round: Annotated[int, Bound(1, MAX_STEPS)]
    stretch: Annotated[float, Bound(1.0, MAX_STRETCH)] = 1.0
    """How many times as long as predicted batches took, the last time that more than one peer trained them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Parts and their trainers. ``peers`` are the inputs it was computed from, ``parent`` the plan before it."""

    epoch: Annotated[int, Bound(1, MAX_EPOCH)]
    job: Annotated[JobId, Bound(16, 16)]
    mode: Mode
    proposer: PeerName
    parts: Annotated[tuple[Part, ...], Bound(1, MAX_CLASSES)]
    trunk: Annotated[int, Bound(0, 1000)]
    disjoint: bool
    """The data decided the parts: no two parts' trainers have samples of the same class."""
    targets: TargetRule
    combine: CombineRule
    calibrate: bool
    peers: Annotated[tuple[PeerSnapshot, ...], Bound(1, 1024)]
    former: Annotated[tuple[Former, ...], Bound(0, MAX_FORMER)]
    parent: Annotated[str, Bound(0, 64)]
    """Hash of the plan before; "" for a first plan."""
    slices: SlicesPlan | None = None
    """In mode slices, and only there."""

    @property
    def num_classes(self) -> int:
        """Of the job. Stages have no classes of their own, but some of their peers have samples."""
        if self.slices is not None:
            return max(len(peer.counts) for peer in self.peers)
        return sum(len(part.classes) for part in self.parts)

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def partition(self) -> str:
        """Names how the model is divided, whoever trains what: snapshots of equal partitions fit each other.

        In mode slices by whom, too: who trains on through a change of plan must know the stages beside its own.
        """
        if self.slices is not None:
            stages = [[stage.start, stage.stop, list(stage.peers)] for stage in self.slices.pipeline.stages]
            return hashlib.sha256(json.dumps([self.mode, stages]).encode()).hexdigest()[:16]
        cut = [self.mode, self.trunk, self.targets, [[list(part.classes), part.share] for part in self.parts]]
        return hashlib.sha256(json.dumps(cut).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces. Equal plans have equal text."""
        return json.dumps(to_plain(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def part_of(self, peer: PeerId) -> Part | None:
        """The part that ``peer`` trains, if any."""
        return next((part for part in self.parts if peer in part.trainers), None)

    def trainers(self) -> dict[PeerId, int]:
        """Every trainer's part, by index."""
        return {peer: part.index for part in self.parts for peer in part.trainers}


def plan_from_json(data: bytes | str) -> Plan:
    """Parse and check what came from the network. Raises ``RemoteError``."""
    if len(data) > MAX_PLAN_BYTES:
        raise RemoteError("plan", f"larger than {MAX_PLAN_BYTES} bytes")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteError("plan", f"not JSON ({type(error).__name__})") from None
    plan = from_plain(Plan, plain)
    check_plan(plan)
    if plan.to_json() != text:
        raise RemoteError("plan", "not in canonical form")
    return plan


def check_plan(plan: Plan) -> None:
    """Check what types alone don't say. Raises ``RemoteError``."""
    _check_peers(plan)
    known = {peer.peer for peer in plan.peers}
    trainers = [peer for part in plan.parts for peer in part.trainers]
    _require(len(set(trainers)) == len(trainers), "a peer trains twice")
    _require(known.issuperset(trainers), "a trainer is not among the plan's peers")
    _require(plan.proposer in known, "the proposer is not among the plan's peers")
    _check_parts(plan)
    former = [entry.peer for entry in plan.former]
    _require(len(set(former)) == len(former) and not set(former) & set(trainers), "a former peer is named twice")
    _require(all(entry.part < len(plan.parts) for entry in plan.former), "a former peer's part does not exist")
    _require(_is_hex(plan.job, 16), "the job is not a hash")
    _require(plan.parent == "" if plan.epoch == 1 else _is_hex(plan.parent, 64), "the parent is not a plan's hash")
    _require(plan.combine == "own" or plan.targets == "all", 'combine "sum" needs targets "all"')


def _check_peers(plan: Plan) -> None:
    num_classes = plan.num_classes
    names = [peer.peer for peer in plan.peers]
    _require(names == sorted(set(names)), "peers out of order")
    for peer in plan.peers:
        _require(len(peer.counts) in (0, num_classes), f"{peer.peer}: counts of {len(peer.counts)} classes")
        _require(list(peer.wishes) == sorted(set(peer.wishes)), f"{peer.peer}: wishes out of order")
        _require(all(wish < num_classes for wish in peer.wishes), f"{peer.peer}: wishes for unknown classes")


def _check_parts(plan: Plan) -> None:
    _require([part.index for part in plan.parts] == list(range(len(plan.parts))), "parts out of order")
    _require(math.fsum(part.share for part in plan.parts) <= 1 + SHARE_TOLERANCE, "the shares exceed the model")
    for part in plan.parts:
        _require(list(part.trainers) == sorted(part.trainers), f"part {part.index}: trainers out of order")
        _require(part.shards == shards(plan.mode, plan.trunk, part.index), f"part {part.index}: wrong shards")
    _require((plan.mode == "slices") == (plan.slices is not None), "a pipeline in another mode, or none in mode slices")
    if plan.slices is not None:
        _check_slices(plan, plan.slices)
        return
    classes = sorted(index for part in plan.parts for index in part.classes)
    _require(classes == list(range(len(classes))), "the parts don't partition the classes")
    for part in plan.parts:
        _require(bool(part.classes), f"part {part.index}: no classes")
        _require(list(part.classes) == sorted(part.classes), f"part {part.index}: classes out of order")
        _require(part.share > 0, f"part {part.index}: no share")
    if plan.mode == "replicas":
        _require(len(plan.parts) == 1 and plan.parts[0].share == 1, "a replica is one part with all of the model")


def _check_slices(plan: Plan, slices: SlicesPlan) -> None:
    pipeline = slices.pipeline
    check_pipeline_plan(pipeline)
    _require(not any(part.classes for part in plan.parts), "a stage with classes")
    stages = [tuple(sorted(stage.peers)) for stage in pipeline.stages]
    _require(stages == [part.trainers for part in plan.parts], "the parts are not the stages of the pipeline")
    names = [peer.peer for peer in plan.peers]
    trained = {peer for part in plan.parts for peer in part.trainers}
    _require(pipeline.left_out == tuple(n for n in names if n not in trained), "who is left out is not who is left")
    by_name = {peer.peer: peer for peer in plan.peers}
    _require(all(by_name[peer].num_samples for peer in plan.parts[0].trainers), "a first stage without samples")
    known = [profile.peer for profile in slices.profiles]
    _require(known == sorted(set(known)), "profiles out of order")
    _require(trained.issubset(known) and set(known).issubset(names), "profiles of others than the plan's peers")
    for profile in slices.profiles:
        ends = [link.peer for link in profile.links]
        _require(ends == sorted(set(ends)) and profile.peer not in ends, f"{profile.peer}: links out of order")
        _require(set(ends).issubset(names), f"{profile.peer}: links to others than the plan's peers")
        sizes = profile.batch_sizes
        _require(list(sizes) == sorted(set(sizes)), f"{profile.peer}: batch sizes out of order")
        for rows in (profile.forward_s, profile.backward_s):
            fits = len(rows) == len(sizes) and all(len(row) == pipeline.num_blocks for row in rows)
            _require(fits, f"{profile.peer}: not a time for each block and batch size")
    _require(_is_hex(slices.chain, 64), "the chain is not a hash")
    _require(plan.epoch > 1 or slices.from_step == 0, "a first plan that does not begin at the first batch")
    plain = (plan.trunk, plan.disjoint, plan.targets, plan.combine, plan.calibrate, plan.former)
    _require(plain == (0, False, "all", "own", False, ()), "a pipeline with what only class sub-models have")


def shards(mode: Mode, trunk: int, index: int) -> tuple[str, ...]:
    """The shards of a part: all of a replica; a stage; a task sub-model's share of the trunk and its own group."""
    if mode == "replicas":
        return ("all",)
    if mode == "slices":
        return (f"stage-{index}",)
    return ("trunk", f"group-{index}") if trunk > 0 else (f"group-{index}",)


def snapshot(record: Record) -> PeerSnapshot:
    """A peer's record, as planning sees it."""
    return PeerSnapshot(
        record.peer, record.flops_per_s, record.memory_bytes, record.counts, record.wishes, record.max_groups
    )


def cleaned(peer: PeerSnapshot, num_classes: int) -> PeerSnapshot:
    """The snapshot without what can't be used: no number for speed, counts of other classes, unknown wishes."""
    speed = peer.flops_per_s if math.isfinite(peer.flops_per_s) and peer.flops_per_s > 0 else 0.0
    fits = len(peer.counts) == num_classes and all(count >= 0 for count in peer.counts) and any(peer.counts)
    return dataclasses.replace(
        peer,
        flops_per_s=min(float(speed), 1e18),
        memory_bytes=max(0, peer.memory_bytes),
        counts=peer.counts if fits else (),
        wishes=tuple(sorted({wish for wish in peer.wishes if 0 <= wish < num_classes})),
    )


def speeds(peers: Sequence[PeerSnapshot]) -> dict[PeerId, float]:
    """FLOP/s by peer; one that is not known is taken for the slowest."""
    slowest = min((peer.flops_per_s for peer in peers if peer.flops_per_s > 0), default=1.0)
    return {peer.peer: peer.flops_per_s if peer.flops_per_s > 0 else slowest for peer in peers}


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(c in "0123456789abcdef" for c in text)


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise RemoteError("plan", detail)
