"""The figures that plans are made by: what peers say of themselves, checked, rounded, and as a planner takes them.

Invariant: pure. Figures that no plan can be computed from never reach a planner; a peer that sent some is left out, and
the others are planned for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from p2ptrain.core.plan import PeerSnapshot, Plan, is_hex, require
from p2ptrain.errors import RemoteError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.planning.devices.blocks import BatchSizes, BlockRows, BlockTimes, ModelProfile, check_times, extrapolated
from p2ptrain.planning.devices.footprint import pipeline_bytes
from p2ptrain.planning.devices.profile_codec import profile_from_json, rounded, rounded_times
from p2ptrain.planning.devices.profiles import LEAST_FLOPS_PER_S
from p2ptrain.planning.pipeline.task import PairRate, PipelinePeer
from p2ptrain.wire.messages import MAX_LINKS, LinkFigure, PeerName, Record
from p2ptrain.wire.schema import Bound

LATENCY_S = 1e-3
"""Of a link in one fleet, until some are measured."""
UNKNOWN_LINK_BYTES_PER_S = 12.5e6
"""100 Mbit/s: what a peer's link is taken for until it is measured."""
MAX_LATENCY_S = 60.0
SLOW_PAIR = 2 / 3
"""A link counts as slower than what both its ends say they can do if less than this of it was measured: a burst of a
megabyte on a busy device tells no more than that."""
LEAST_BYTES_PER_S, LEAST_SLOWDOWN = 1.0, 1e-6
"""Of figures that can be meant, as ``LEAST_FLOPS_PER_S``; a plan by smaller ones has no numbers."""
UNKNOWN_MEMORY_BYTES = 1 << 50
"""A peer that does not know its memory is taken to have enough, as in ``footprint.largest_share``."""


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


@dataclass(frozen=True, slots=True)
class MeasuredPeer:
    """All that planning is told of a peer. Without a profile (it sent one that makes no sense) it is left out."""

    snapshot: PeerSnapshot
    profile: DeviceFigures | None


def figures_of(record: Record, chain: str, profile_of: Callable[[str], bytes | None]) -> DeviceFigures | None:
    """A peer's figures by its record and what that names; None for a profile of other blocks, or of no sense.

    Until a profile is here, the peer's FLOP/s count.
    """
    data = profile_of(record.profile) if record.profile else None
    if data is None:
        return DeviceFigures(record.peer, record.link_bytes_per_s, record.slowdown, (), (), (), links=record.links)
    try:
        profile = profile_from_json(data)
    except RemoteError:
        return None
    if profile.chain != chain:
        return None
    return DeviceFigures(
        record.peer,
        record.link_bytes_per_s,
        record.slowdown,
        links=record.links,
        **profile.times.by_name(),
    )


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


def are_usable(model: ModelProfile, plan: Plan, figures: tuple[DeviceFigures, ...]) -> bool:
    """Whether a plan can be computed from all of these, just as they are."""
    given = {each.peer: each for each in figures}
    return usable(model, plan.peers, [MeasuredPeer(peer, given.get(peer.peer)) for peer in plan.peers]) == figures


def words_of_unknown(plan: Plan, figures: Sequence[DeviceFigures]) -> dict[PeerId, str]:
    """For people: what is not known of peers, a line for each."""
    known = {each.peer: each for each in figures}
    measured = {peer for each in figures for link in each.links for peer in (each.peer, link.peer)}
    words: dict[PeerId, str] = {}
    for snapshot in plan.peers:
        peer = snapshot.peer
        if peer not in known:
            words[peer] = (
                f"{peer}: left out: its speed is not known, or the times of its blocks make no sense; "
                "`p2ptrain probe` measures it"
            )
        elif known[peer].link_bytes_per_s == 0 and peer not in measured:
            mbit_s = UNKNOWN_LINK_BYTES_PER_S * 8 / 1e6
            words[peer] = f"{peer}: no link speed known, taken for {mbit_s:.0f} Mbit/s"
    return words


def _usable_links(profile: DeviceFigures, names: Collection[PeerId]) -> tuple[LinkFigure, ...]:
    """Those to other peers of the plan whose figures make sense."""
    links = {link.peer: link for link in profile.links if link.peer in names and link.peer != profile.peer}
    return tuple(
        LinkFigure(peer, rounded(links[peer].bytes_per_s), rounded(links[peer].latency_s))
        for peer in sorted(links)
        if LEAST_BYTES_PER_S <= links[peer].bytes_per_s <= 1e15 and 0 <= links[peer].latency_s <= MAX_LATENCY_S
    )


def _is_usable(model: ModelProfile, snapshot: PeerSnapshot, profile: DeviceFigures) -> bool:
    if not LEAST_SLOWDOWN <= profile.slowdown <= 1e6:
        return False
    if not (profile.link_bytes_per_s == 0 or LEAST_BYTES_PER_S <= profile.link_bytes_per_s <= 1e15):
        return False
    if 0 < snapshot.flops_per_s < LEAST_FLOPS_PER_S:
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


def planned_peers(
    snapshots: Sequence[PeerSnapshot], figures: Sequence[DeviceFigures]
) -> tuple[list[PipelinePeer], tuple[PairRate, ...], float]:
    """As a planner takes them, those with figures, in the order of these; and as ``link_figures``: the links that do
    less than both their ends, and the latency of a link, in seconds.

    Raises ``UserError`` where nobody can be planned with.
    """
    if not figures:
        raise UserError(
            f"none of the {len(snapshots)} peers can be planned with: their speeds are not known, or the times of "
            "their blocks make no sense; `p2ptrain probe` measures a device"
        )
    by_peer = {snapshot.peer: snapshot for snapshot in snapshots}
    ends, pair_rates, latency_s = link_figures(figures)
    times = planned_times(figures)
    peers = [_planned_peer(by_peer[each.peer], each, ends[each.peer], times.get(each.peer)) for each in figures]
    return peers, pair_rates, latency_s


def _planned_peer(
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


def check_figures(plan: Plan, chain: str, figures: Sequence[DeviceFigures], num_blocks: int) -> None:
    """What types alone don't say of what a plan was made by: its peers, the blocks by their hash, and figures of these.

    Raises ``RemoteError``.
    """
    for peer in plan.peers:
        require(all(wish < plan.num_classes for wish in peer.wishes), f"{peer.peer}: wishes for unknown classes")
    names, given = [peer.peer for peer in plan.peers], [each.peer for each in figures]
    require(given == sorted(set(given)), "figures out of order")
    require(plan.trainers().keys() <= set(given) <= set(names), "figures of others than the plan's peers")
    for each in figures:
        _check_device(each, names, num_blocks)
    require(is_hex(chain, 64), "the chain is not a hash")


def _check_device(figures: DeviceFigures, names: Sequence[str], num_blocks: int) -> None:
    ends = [link.peer for link in figures.links]
    require(ends == sorted(set(ends)) and figures.peer not in ends, f"{figures.peer}: links out of order")
    require(set(ends).issubset(names), f"{figures.peer}: links to others than the plan's peers")
    sizes = figures.batch_sizes
    require(list(sizes) == sorted(set(sizes)), f"{figures.peer}: batch sizes out of order")
    for rows in (figures.forward_s, figures.backward_s):
        fits = len(rows) == len(sizes) and all(len(row) == num_blocks for row in rows)
        require(fits, f"{figures.peer}: not a time for each block and batch size")
