"""What peers say of their speed, bounded by what those saw that they help.

A helper that was seen to be slower than it says is planned with as it was seen for some rounds; then its word counts
again, and if it was wrong again it does not for longer. Who says itself that it is slow is believed at once, and again
when it says that it is no more.

Invariant: pure; a plan carries what it was made by, and figures in it are never faster than what was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.core.stages.considered import pace_s
from p2ptrain.core.stages.figures import DeviceFigures
from p2ptrain.ids import PeerId
from p2ptrain.modes.split.plan import SeenPace, SplitBody, until_round
from p2ptrain.modes.split.rounds.paces import AGREES
from p2ptrain.planning.devices.blocks import ModelProfile
from p2ptrain.planning.devices.profile_codec import rounded

MAX_SLOWDOWN = 1e6
Seen = tuple[SeenPace, ...]


def seen_from_now_on(
    model: ModelProfile,
    snapshots: Sequence[PeerSnapshot],
    figures: Sequence[DeviceFigures],
    before: SplitBody,
    from_round: int,
    paces: Mapping[PeerId, float],
) -> Seen:
    """``figures``: as peers say now; ``paces``: seconds of a sample, as others saw them."""
    listed = {each.peer: each for each in before.seen}
    said = _paces(model, snapshots, figures)
    for peer, seen_s in paces.items():
        old = listed.get(peer)
        is_known = old is not None and old.until_round > from_round
        known_s = max(said.get(peer, 0.0), old.sample_s if old is not None and is_known else 0.0)
        if peer not in said or seen_s <= AGREES * known_s:
            continue
        times = (old.times if old is not None else 0) + (not is_known)
        until = old.until_round if old is not None and is_known else until_round(from_round, times)
        listed[peer] = SeenPace(peer, rounded(seen_s), min(times, 1000), until)
    return tuple(listed[peer] for peer in sorted(listed))


def bounded(
    model: ModelProfile, snapshots: Sequence[PeerSnapshot], figures: Sequence[DeviceFigures], seen: Seen, round: int
) -> tuple[DeviceFigures, ...]:
    """The same figures, where in the rounds after this one nobody is faster than it was seen."""
    said = _paces(model, snapshots, figures)
    least = {each.peer: each.sample_s for each in seen if each.until_round > round}
    return tuple(
        replace(each, slowdown=min(rounded(each.slowdown * least[each.peer] / said[each.peer]), MAX_SLOWDOWN))
        if least.get(each.peer, 0.0) > said[each.peer] > 0
        else each
        for each in figures
    )


def are_bounded(model: ModelProfile, plan: Plan, body: SplitBody) -> bool:
    """Whether nobody in the plan is faster than it was seen, but for what rounding does."""
    as_seen = bounded(model, plan.peers, body.figures, body.seen, body.from_round)
    pairs = zip(as_seen, body.figures, strict=True)
    return all(seen.slowdown <= (1 + 1e-3) * said.slowdown for seen, said in pairs)


def _paces(
    model: ModelProfile, snapshots: Sequence[PeerSnapshot], figures: Sequence[DeviceFigures]
) -> dict[PeerId, float]:
    known = {snapshot.peer: snapshot for snapshot in snapshots}
    return {each.peer: pace_s(model, known[each.peer], each) for each in figures}
