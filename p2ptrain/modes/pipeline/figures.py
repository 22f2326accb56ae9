"""The figures that pipelines are planned with: what peers say of themselves, checked, rounded, and
as the planner's task.

Invariant: pure. Figures that no plan can be computed from never reach the planner; a peer that sent some is left out,
and the others are planned for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from p2ptrain.config import Job
from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.errors import UserError
from p2ptrain.ids import PeerId
from p2ptrain.modes.pipeline.config import pipeline_of
from p2ptrain.modes.pipeline.plan import MAX_STEPS, DeviceFigures
from p2ptrain.planning.devices.blocks import BlockTimes, ModelProfile, check_times, extrapolated
from p2ptrain.planning.devices.footprint import pipeline_bytes
from p2ptrain.planning.devices.profile_codec import rounded, rounded_times
from p2ptrain.planning.pipeline.fleet import Fleet
from p2ptrain.planning.pipeline.task import WIRE, PairRate, PipelinePeer, PipelineTask, held_copies
from p2ptrain.wire.messages import LinkFigure

LATENCY_S = 1e-3
"""Of a link in one fleet, until some are measured."""
UNKNOWN_LINK_BYTES_PER_S = 12.5e6
"""100 Mbit/s: what a peer's link is taken for until it is measured."""
MAX_LATENCY_S = 60.0
SLOW_PAIR = 2 / 3
"""A link counts as slower than what both its ends say they can do if less than this of it was measured: a burst of a
megabyte on a busy device tells no more than that."""
UNKNOWN_MEMORY_BYTES = 1 << 50
"""A peer that does not know its memory is taken to have enough, as in ``footprint.largest_share``."""


@dataclass(frozen=True, slots=True)
class MeasuredPeer:
    """All that planning is told of a peer. Without a profile (it sent one that makes no sense) it is left out."""

    snapshot: PeerSnapshot
    profile: DeviceFigures | None


def usable(
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    peers: Sequence[MeasuredPeer],
    before: Sequence[DeviceFigures] = (),
) -> tuple[DeviceFigures, ...]:
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
                DeviceFigures(
                    snapshot.peer,
                    rounded(profile.link_bytes_per_s),
                    rounded(profile.slowdown),
                    links=_usable_links(profile, names),
                    **rounded_times(BlockTimes.of(profile)).by_name(),
                )
            )
    return tuple(found)


def _usable_links(profile: DeviceFigures, names: Collection[PeerId]) -> tuple[LinkFigure, ...]:
    """Those to other peers of the plan whose figures make sense."""
    links = {link.peer: link for link in profile.links if link.peer in names and link.peer != profile.peer}
    return tuple(
        LinkFigure(peer, rounded(links[peer].bytes_per_s), rounded(links[peer].latency_s))
        for peer in sorted(links)
        if 1 <= links[peer].bytes_per_s <= 1e15 and 0 <= links[peer].latency_s <= MAX_LATENCY_S
    )


def _is_usable(model: ModelProfile, snapshot: PeerSnapshot, profile: DeviceFigures) -> bool:
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


def planned_times(profiles: Sequence[DeviceFigures]) -> dict[PeerId, BlockTimes]:
    """The times of blocks that peers are planned with: measured, or as they grow for others (``completed``)."""
    measured = {profile.peer: BlockTimes.of(profile) for profile in profiles if profile.batch_sizes}
    return {peer: extrapolated(times, list(measured.values())) for peer, times in measured.items()}


def fleet_of(
    job: Job, model: ModelProfile, snapshots: Sequence[PeerSnapshot], profiles: Sequence[DeviceFigures]
) -> Fleet:
    """Raises ``UserError`` where nobody can be planned with."""
    is_async = pipeline_of(job).schedule == "async"
    return Fleet(task_of(job, model, snapshots, profiles), batches_a_round(job, snapshots) if is_async else 1)


def task_of(
    job: Job,
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    profiles: Sequence[DeviceFigures],
) -> PipelineTask:
    """In the most micro-batches that the job allows, with a flush after every batch (``Fleet`` knows the others).

    Peers in the order of their ids, but a data owner first: the order of an equal split.
    """
    if not profiles:
        raise UserError(
            f"none of the {len(snapshots)} peers can be planned with: their speeds are not known, or the times of "
            "their blocks make no sense; `p2ptrain probe` measures a device"
        )
    by_peer = {snapshot.peer: snapshot for snapshot in snapshots}
    ends, pair_rates, latency_s = link_figures(profiles)
    times = planned_times(profiles)
    peers = [
        _pipeline_peer(by_peer[profile.peer], profile, ends[profile.peer], times.get(profile.peer))
        for profile in profiles
    ]
    first = next((peer for peer in peers if peer.has_data), None)
    peers.sort(key=lambda peer: (peer is not first, peer.name))
    return PipelineTask(
        model,
        tuple(peers),
        job.training.batch_size // pipeline_of(job).micro_batches,
        pipeline_of(job).micro_batches,
        latency_s,
        pair_rates=pair_rates,
        optimizer_copies=held_copies(job.training.optimizer, pipeline_of(job).schedule),
        forward_wire=WIRE[pipeline_of(job).activations],
        backward_wire=WIRE[pipeline_of(job).gradients],
    )


def batches_a_round(job: Job, snapshots: Sequence[PeerSnapshot], owners: Collection[str] = ()) -> int:
    """Batches of a round of training on the samples of these peers; by default of a peer that has as many as usual."""
    counts = [peer.num_samples for peer in snapshots if (peer.peer in owners if owners else peer.counts)]
    samples = sum(counts) if owners else statistics.median(counts or [0])
    batches = samples / job.training.batch_size * job.training.epochs_per_round
    return min(MAX_STEPS, max(1, math.ceil(batches - 1e-9)))  # not one more for a float's last digit


def link_figures(profiles: Sequence[DeviceFigures]) -> tuple[dict[PeerId, float], tuple[PairRate, ...], float]:
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


def _pipeline_peer(
    snapshot: PeerSnapshot, profile: DeviceFigures, link_bytes_per_s: float, times: BlockTimes | None
) -> PipelinePeer:
    memory = snapshot.memory_bytes or UNKNOWN_MEMORY_BYTES
    return PipelinePeer(
        snapshot.peer,
        snapshot.flops_per_s,
        pipeline_bytes(memory),
        link_bytes_per_s,
        times,
        profile.slowdown,
        bool(snapshot.counts),
    )
