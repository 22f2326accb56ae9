"""The figures that pipelines of mode ``slices`` are planned with: what peers say of themselves, checked, rounded, and
as the planner's task.

Invariant: pure. Figures that no plan can be computed from never reach the planner; a peer that sent some is left out,
and the others are planned for.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from p2ptrain.config import Job
from p2ptrain.errors import LocalError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.planning.blocks import BlockTimes, ModelProfile, check_times
from p2ptrain.planning.footprint import TRAINER_BASE_BYTES, pipeline_bytes
from p2ptrain.planning.pipeline_cost import CostModel, PairRate, PipelinePeer, PipelineTask, fits, steps_of
from p2ptrain.planning.pipeline_plan import PipelinePlan, Stage
from p2ptrain.planning.pipeline_schedule import Steps, round_s
from p2ptrain.planning.plan import PeerSnapshot, SliceProfile
from p2ptrain.planning.profile_codec import rounded, rounded_times
from p2ptrain.protocol.messages import LinkFigure

LATENCY_S = 1e-3
"""Of a link in one room, until some are measured."""
UNKNOWN_LINK_BYTES_PER_S = 12.5e6
"""100 Mbit/s: what a peer's link is taken for until it is measured."""
MAX_LATENCY_S = 60.0
SLOW_PAIR = 2 / 3
"""A link counts as slower than what both its ends say they can do if less than this of it was measured: a burst of a
megabyte on a busy device tells no more than that."""
UNKNOWN_MEMORY_BYTES = 1 << 50
"""A peer that does not know its memory is taken to have enough, as in ``footprint.largest_share``."""
BASE_BYTES = TRAINER_BASE_BYTES + (64 << 20)
"""What a peer takes without a model: its trainer, and its node with parcels under way."""
SNAPSHOT_COPIES = 1
"""Of every parameter, while a snapshot is written: what is not contiguous is copied for it."""
PARCEL_BYTES = 1 << 20
"""A parcel is cut into smaller ones where it would be larger; a single row never is."""
PARCEL_FLOPS, BYTE_FLOPS = 6e7, 140.0
"""What a device could compute while its node hands on one parcel, or takes one in, and for each byte of it: sockets,
encryption, and an event loop in Python. Measured on a core of 20 GFLOP/s: 3 ms, and 7 ms a megabyte. What the trainer
does for it each device measures itself (``BlockTimes.activation_s_per_byte``)."""
WIRE = {"none": 1.0, "fp16": 0.5, "int8": 0.27}
"""Bytes sent for each byte of a float32 tensor."""


@dataclass(frozen=True, slots=True)
class SlicePeer:
    """All that planning is told of a peer. Without a profile (it sent one that makes no sense) it is left out."""

    snapshot: PeerSnapshot
    profile: SliceProfile | None


def usable(
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    peers: Sequence[SlicePeer],
    before: Sequence[SliceProfile] = (),
) -> tuple[SliceProfile, ...]:
    """The figures that a plan can be computed from, rounded, by peer; those that make no sense are left out.

    Whose blocks are not measured now (it was started again, say) keeps the figures of the plan before, if there are.
    """
    given = {peer.snapshot.peer: peer.profile for peer in peers}
    names = {snapshot.peer for snapshot in snapshots}
    known = {profile.peer: profile for profile in before if profile.batch_sizes}
    found = []
    for snapshot in snapshots:
        profile = given[snapshot.peer]
        if profile is None or not profile.batch_sizes or not _is_usable(model, snapshot, profile):
            profile = known.get(snapshot.peer, profile)
        if profile is not None and _is_usable(model, snapshot, profile):
            found.append(
                SliceProfile(
                    snapshot.peer,
                    rounded(profile.link_bytes_per_s),
                    rounded(profile.slowdown),
                    links=_usable_links(profile, names),
                    **rounded_times(BlockTimes.of(profile)).by_name(),
                )
            )
    return tuple(found)


def _usable_links(profile: SliceProfile, names: Collection[PeerId]) -> tuple[LinkFigure, ...]:
    """Those to other peers of the plan whose figures make sense."""
    links = {link.peer: link for link in profile.links if link.peer in names and link.peer != profile.peer}
    return tuple(
        LinkFigure(peer, rounded(links[peer].bytes_per_s), rounded(links[peer].latency_s))
        for peer in sorted(links)
        if 1 <= links[peer].bytes_per_s <= 1e15 and 0 <= links[peer].latency_s <= MAX_LATENCY_S
    )


def _is_usable(model: ModelProfile, snapshot: PeerSnapshot, profile: SliceProfile) -> bool:
    if not (0 <= profile.link_bytes_per_s <= 1e15 and 0 < profile.slowdown <= 1e6):
        return False
    if not profile.batch_sizes:
        return snapshot.flops_per_s > 0 and not profile.forward_s and not profile.backward_s
    try:
        check_times(BlockTimes.of(profile), model, snapshot.peer)
    except UserError:
        return False
    if max(profile.update_s_per_byte, profile.activation_s_per_byte, profile.gradient_s_per_byte) > 1.0:
        return False
    return all(second <= 1e6 for rows in (profile.forward_s, profile.backward_s) for row in rows for second in row)


def micro_batch_choices(job: Job) -> tuple[int, ...]:
    """The numbers of micro-batches that a plan may have: the job's, which is the most, its halves, and one.

    Fewer and larger ones compute faster, more of them keep a pipeline full: a peer alone is best off with one. The
    gradient of a batch is the same, but for BatchNorm, which takes its statistics from a micro-batch.
    """
    choices = [job.slices.micro_batches]
    while choices[-1] % 2 == 0:
        choices.append(choices[-1] // 2)
    return tuple(choices) if choices[-1] == 1 else (*choices, 1)


def task_of(
    job: Job,
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    profiles: Sequence[SliceProfile],
    num_micro_batches: int,
) -> PipelineTask:
    """Peers in the order of their ids, but a data owner first: the order of an equal split."""
    if not profiles:
        raise UserError(
            f"none of the {len(snapshots)} peers can be planned with: their speeds are not known, or the times of "
            "their blocks make no sense; `p2ptrain probe` measures a device"
        )
    by_peer = {snapshot.peer: snapshot for snapshot in snapshots}
    ends, pair_rates, latency_s = link_figures(profiles)
    peers = [_pipeline_peer(by_peer[profile.peer], profile, ends[profile.peer]) for profile in profiles]
    first = next((peer for peer in peers if peer.has_data), None)
    peers.sort(key=lambda peer: (peer is not first, peer.name))
    copies = 1 if job.training.optimizer == "sgd" else 2
    stashed = job.slices.schedule == "async"  # the weights that the batch before is still on its way with
    return PipelineTask(
        model,
        tuple(peers),
        job.training.batch_size // num_micro_batches,
        num_micro_batches,
        latency_s,
        pair_rates=pair_rates,
        optimizer_copies=copies + SNAPSHOT_COPIES + stashed,
        forward_wire=WIRE[job.slices.activations],
        backward_wire=WIRE[job.slices.gradients],
    )


def link_figures(profiles: Sequence[SliceProfile]) -> tuple[dict[PeerId, float], tuple[PairRate, ...], float]:
    """What each peer's end can do, bytes/s; the links that do less; and the latency of a link, in seconds.

    An end is what its peer says, or the fastest link measured of it. Latency is the median of what was measured: a
    slow device's answers are late, and the planner knows but one.
    """
    known = {profile.peer for profile in profiles}
    measured: dict[tuple[PeerId, PeerId], float] = {}
    for profile in profiles:
        for link in profile.links:
            if link.peer in known:
                one, other = sorted((profile.peer, link.peer))
                measured[one, other] = min(link.bytes_per_s, measured.get((one, other), math.inf))
    said = {profile.peer: profile.link_bytes_per_s for profile in profiles}
    ends = {
        peer: rate or max((r for pair, r in measured.items() if peer in pair), default=UNKNOWN_LINK_BYTES_PER_S)
        for peer, rate in said.items()
    }
    slow = []
    for (one, other), rate in sorted(measured.items()):
        margin = SLOW_PAIR if said[one] and said[other] else 1.0
        if rate < margin * min(ends[one], ends[other]):
            slow.append(PairRate(one, other, rate))
    latencies = [link.latency_s for profile in profiles for link in profile.links]
    return ends, tuple(slow), statistics.median(latencies) if latencies else LATENCY_S


def _pipeline_peer(snapshot: PeerSnapshot, profile: SliceProfile, link_bytes_per_s: float) -> PipelinePeer:
    memory = snapshot.memory_bytes or UNKNOWN_MEMORY_BYTES
    measured = bool(profile.batch_sizes)
    return PipelinePeer(
        snapshot.peer,
        1.0 if measured else snapshot.flops_per_s,  # nobody looks at it where there are times
        pipeline_bytes(memory, BASE_BYTES),
        link_bytes_per_s,
        BlockTimes.of(profile) if measured else None,
        profile.slowdown,
        bool(snapshot.counts),
    )


class Room:
    """The peers of a plan with their figures: what their pipelines cost, for each number of micro-batches."""

    def __init__(
        self, job: Job, model: ModelProfile, snapshots: Sequence[PeerSnapshot], profiles: Sequence[SliceProfile]
    ) -> None:
        self.job = job
        self.model = model
        self.num_peers = len(profiles)
        self._figures = (job, model, snapshots, profiles)
        self._costs: dict[int, CostModel] = {}
        self._flops_per_s: dict[str, float] = {snapshot.peer: snapshot.flops_per_s for snapshot in snapshots}

    def without(self, peer: str) -> Room:
        """The others."""
        job, model, snapshots, profiles = self._figures
        return Room(
            job,
            model,
            [each for each in snapshots if each.peer != peer],
            [each for each in profiles if each.peer != peer],
        )

    def knows(self, peers: Collection[str]) -> bool:
        """Whether all of them can be planned with."""
        return {profile.peer for profile in self._figures[3]}.issuperset(peers)

    def costs(self, num_micro_batches: int) -> CostModel:
        """Raises ``UserError`` where no plan can be computed from the figures."""
        if num_micro_batches not in self._costs:
            self._costs[num_micro_batches] = CostModel(task_of(*self._figures, num_micro_batches))
        return self._costs[num_micro_batches]

    def steps(self, pipeline: PipelinePlan) -> Steps:
        """With the work that passing parcels on is for the devices themselves, which the search knows nothing of."""
        costs = self.costs(pipeline.num_micro_batches)
        steps = steps_of(costs, pipeline)
        passing = [[self.passing_s(pipeline, peer) for peer in stage.peers] for stage in pipeline.stages]
        there, back = ([max(each[way] for each in stage) for stage in passing] for way in (0, 1))
        ends = [self._averaging_s(costs, stage) for stage in pipeline.stages]
        return replace(
            steps,
            forward_s=tuple(map(operator.add, steps.forward_s, there)),
            backward_s=tuple(map(operator.add, steps.backward_s, back)),
            update_s=tuple(map(operator.add, steps.update_s, ends)),
        )

    def passing_s(self, pipeline: PipelinePlan, peer: str) -> tuple[float, float]:
        """What a peer of the pipeline takes in and hands on of each micro-batch: with activations, with gradients."""
        costs, at = self.costs(pipeline.num_micro_batches), pipeline.stage_of(peer)
        if at is None:
            raise LocalError(f"{peer} passes nothing on in this pipeline")
        stage = pipeline.stages[at]
        samples = stage.samples[stage.peers.index(peer)]
        sides = [(stage.start, at - 1), (stage.stop, at + 1)]
        neighbours = [(cut, pipeline.stages[i]) for cut, i in sides if 0 <= i < len(pipeline.stages)]
        seconds = [0.0, 0.0]
        wires = (costs.task.forward_wire, costs.task.backward_wire)
        for way, (wire, coding_s) in enumerate(zip(wires, self._coding_s(costs, peer), strict=True)):
            for cut, other in neighbours:
                num_bytes = float(costs.cut_bytes[costs.cuts.index(cut)]) * samples
                receivers = math.ceil(samples * len(other.peers) / pipeline.micro_batch)
                num_parcels = max(receivers, math.ceil(num_bytes * wire / PARCEL_BYTES))
                flops = PARCEL_FLOPS * num_parcels + BYTE_FLOPS * num_bytes * wire
                seconds[way] += self._seconds(peer, flops) + coding_s * num_bytes
        return seconds[0], seconds[1]

    @staticmethod
    def _coding_s(costs: CostModel, peer: str) -> tuple[float, float]:
        """Of its trainer, for each byte before it is coded; nothing where it was not measured."""
        known = next(each for each in costs.task.peers if each.name == peer)
        if known.times is None:
            return 0.0, 0.0
        return (
            known.slowdown * known.times.activation_s_per_byte,
            known.slowdown * known.times.gradient_s_per_byte,
        )

    def _averaging_s(self, costs: CostModel, stage: Stage) -> float:
        """Of a batch: the gradients that the stage's peers exchange, sent and received, by the slowest of them."""
        num = len(stage.peers)
        start, stop = costs.cuts.index(stage.start), costs.cuts.index(stage.stop)
        num_bytes = 4 * (num - 1) / num * float(costs.parameter_bytes[stop] - costs.parameter_bytes[start])
        flops = PARCEL_FLOPS * math.ceil(num_bytes / PARCEL_BYTES) + BYTE_FLOPS * num_bytes
        return max(self._seconds(peer, flops) for peer in stage.peers)

    def _seconds(self, peer: str, flops: float) -> float:
        """Nothing for a peer whose speed nobody knows."""
        return flops / self._flops_per_s[peer] if self._flops_per_s[peer] > 0 else 0.0

    def batch_s(self, pipeline: PipelinePlan) -> float:
        """Predicted seconds of a batch."""
        return round_s(self.steps(pipeline), tuple(stage.warm_up for stage in pipeline.stages))

    def fits(self, pipeline: PipelinePlan) -> bool:
        costs = self.costs(pipeline.num_micro_batches)
        return all(fits(costs, stage) for stage in pipeline.stages)
