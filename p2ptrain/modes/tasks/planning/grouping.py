"""Classes and peers to groups: as the data fall where they are disjoint, else like-fast peers and wishes.

Invariant: the groups' classes partition the job's classes, no peer is in two groups, and the result depends on the
snapshots alone. A group without trainers waits for one.

Disjoint data: the classes that peers hold (``holdings``) are pairwise equal or disjoint, and at least two differ. Then
each set of classes is a group. Classes that nobody has are a group that waits for a peer with samples of them.

Where some peer lacks a class and others have it too, groups are those of ``holdings``.

Where all peers hold all classes, they are sorted by the time a round of the whole model would take them and cut into
runs of even length: the slowest peer of a group sets its pace, so like goes with like. Classes follow the groups'
weights (the shares that make all finish together), wished-for ones first, the rest to the group that has most samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import PeerId
from p2ptrain.modes.tasks.planning.holdings import WISH_SPREAD, Group, held_classes
from p2ptrain.modes.tasks.planning.shares import apportion

SWAP_SPREAD = 2.0
"""Peers change places for a wish when neither is more than this many times slower than the other."""
SWAPS_LIMIT = 256
"""Improvement by swaps is tried up to this many classes or peers (it is quadratic)."""


def groups_by_data(peers: Sequence[PeerSnapshot], num_classes: int) -> list[Group] | None:
    """The groups that disjoint data give; None where the data are not disjoint."""
    held_by = held_classes(peers, num_classes)
    sets: dict[tuple[int, ...], list[PeerSnapshot]] = {}
    for peer in peers:
        if held := tuple(sorted(held_by[peer.peer])):
            sets.setdefault(held, []).append(peer)  # a peer with a few of each holds none; it is placed later
    covered = [c for held in sets for c in held]
    if len(sets) < 2 or len(set(covered)) != len(covered):
        return None
    groups = [Group(held, tuple(members)) for held, members in sorted(sets.items())]
    missing = tuple(sorted(set(range(num_classes)) - set(covered)))
    return [*groups, Group(missing, ())] if missing else groups


def group_peers(costs: Mapping[PeerId, float], num_groups: int) -> list[list[PeerId]]:
    """Peers in runs of like cost and even length, cheapest first; a longer run where they are slow."""
    order = sorted(costs, key=lambda peer: (costs[peer], peer))
    filled = min(num_groups, len(order))
    short, num_long = divmod(len(order), filled)
    runs: list[list[PeerId]] = []
    for index in range(filled):
        length = short + (index >= filled - num_long)
        runs.append(order[:length])
        order = order[length:]
    return runs + [[] for _ in range(num_groups - filled)]


def group_classes(
    groups: Sequence[Sequence[PeerSnapshot]], weights: Sequence[float], num_classes: int
) -> list[list[int]]:
    """Classes of each group, by wishes, weights and samples."""
    votes = [[0] * num_classes for _ in groups]
    for g, group in enumerate(groups):
        for peer in group:
            for wish in peer.wishes:
                votes[g][wish] += 1
    aims = apportion(weights, num_classes, [0] * len(groups))
    classes: list[list[int]] = [[] for _ in groups]
    wished = [c for c in range(num_classes) if any(vote[c] for vote in votes)]
    wished.sort(key=lambda c: (sum(vote[c] > 0 for vote in votes), c))  # the ones with one wisher first
    num_left = num_classes
    for c in wished:
        num_empty = sum(not held for held in classes)
        open_groups = [
            g
            for g in range(len(groups))
            if votes[g][c] and len(classes[g]) < WISH_SPREAD * aims[g] and num_left > num_empty - (not classes[g])
        ]
        if open_groups:
            best = min(open_groups, key=lambda g: (-votes[g][c], len(classes[g]) / weights[g], g))
            classes[best].append(c)
            num_left -= 1
    taken = {c for held in classes for c in held}
    rest = [c for c in range(num_classes) if c not in taken]
    slots = apportion(weights, len(rest), [len(held) for held in classes])
    for held, more in zip(classes, _by_samples(groups, rest, slots), strict=True):
        held.extend(more)
    return [sorted(held) for held in classes]


def _by_samples(groups: Sequence[Sequence[PeerSnapshot]], rest: Sequence[int], slots: list[int]) -> list[list[int]]:
    """Fill the slots so that classes go where their samples are: greedily, then by swaps that help."""
    if len(rest) * len(groups) > 1_000_000:
        return [[rest[i] for i in range(sum(slots[:g]), sum(slots[: g + 1]))] for g in range(len(slots))]
    holds: dict[int, list[int]] = {}  # per class, thousandths of its samples by group
    for c in rest:
        here = [sum(peer.counts[c] for peer in group if peer.counts) for group in groups]
        holds[c] = [1000 * count // max(1, sum(here)) for count in here]
    free, place = list(slots), dict[int, int]()
    for _, c, g in sorted((-holds[c][g], c, g) for c in rest for g in range(len(groups))):
        if c not in place and free[g]:
            place[c] = g
            free[g] -= 1
    improved = len(rest) <= SWAPS_LIMIT
    while improved:
        improved = False
        for i, c in enumerate(rest):
            for d in rest[i + 1 :]:
                g, h = place[c], place[d]
                if holds[c][h] + holds[d][g] > holds[c][g] + holds[d][h]:
                    place[c], place[d] = h, g
                    improved = True
    return [[c for c in rest if place[c] == g] for g in range(len(groups))]


def swap_for_wishes(
    groups: Sequence[Sequence[PeerSnapshot]], classes: Sequence[Sequence[int]], costs: Mapping[PeerId, float]
) -> list[list[PeerSnapshot]]:
    """Let like-fast peers of different groups change places where that keeps more wishes."""
    result = [list(group) for group in groups]
    held = [set(owned) for owned in classes]
    seats = [(g, i) for g, group in enumerate(result) for i in range(len(group))]
    if len(seats) > SWAPS_LIMIT or not any(peer.wishes for group in groups for peer in group):
        return result

    def kept(peer: PeerSnapshot, group: int) -> int:
        return sum(wish in held[group] for wish in peer.wishes)

    improved = True
    while improved:
        improved = False
        for g, i in seats:
            for h, j in seats:
                one, other = result[g][i], result[h][j]
                slow, fast = sorted((costs[one.peer], costs[other.peer]), reverse=True)
                better = kept(one, h) + kept(other, g) > kept(one, g) + kept(other, h)
                if better and slow <= SWAP_SPREAD * fast:
                    result[g][i], result[h][j] = other, one
                    improved = True
    return result
