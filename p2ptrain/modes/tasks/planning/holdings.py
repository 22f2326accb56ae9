"""Who has enough samples of which class, and groups that follow from it where peers' classes overlap.

Invariant: a class only goes to a group all of whose peers have enough of it, as far as there is such a group; no class
is left without a group while anybody has samples of it; and the result depends on the snapshots alone.

A peer *holds* a class of which it has at least ``HOLDS_FRACTION`` of what its largest holder has. Peers that hold the
same classes make a cluster. Where there are more clusters than groups, the two that are most alike become one; where
there are fewer, the largest clusters are cut into runs of like-fast peers. Then every group gets one class that it
holds (a matching), the rest goes where it is held, by wishes and weights; a group for which no class is left joins the
one that is most like it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from p2ptrain.core.plan import PeerSnapshot
from p2ptrain.ids import PeerId

HOLDS_FRACTION = 0.05
WISH_SPREAD = 2
"""Wishes may give a group this many times the classes that its weight would."""


@dataclass(frozen=True, slots=True)
class Group:
    """``classes``: those that its outputs are taken for."""

    classes: tuple[int, ...]
    trainers: tuple[PeerSnapshot, ...]


Held = Mapping[PeerId, frozenset[int]]
_Cluster = tuple[frozenset[int], list[PeerSnapshot]]
"""Classes, and peers that hold them."""
Runs = Callable[[Sequence[PeerSnapshot], int], list[list[PeerSnapshot]]]
"""Cuts peers into so many groups of like-fast ones."""


def held_classes(peers: Sequence[PeerSnapshot], num_classes: int) -> dict[PeerId, frozenset[int]]:
    """The classes that each peer holds."""
    holders = [peer for peer in peers if peer.counts]
    most = [max((peer.counts[c] for peer in holders), default=0) for c in range(num_classes)]

    def holds(peer: PeerSnapshot, c: int) -> bool:
        return bool(peer.counts) and peer.counts[c] > 0 and peer.counts[c] >= HOLDS_FRACTION * most[c]

    return {peer.peer: frozenset(c for c in range(num_classes) if holds(peer, c)) for peer in peers}


def lacking(peers: Sequence[PeerSnapshot], num_classes: int) -> bool:
    """Whether a peer with samples doesn't hold some class."""
    held = held_classes(peers, num_classes)
    return any(len(held[peer.peer]) < num_classes for peer in peers if peer.counts)


def clusters(peers: Sequence[PeerSnapshot], held: Held, num_groups: int, runs: Runs) -> list[list[PeerSnapshot]]:
    """``num_groups`` groups, or fewer, of peers that hold the same classes, as far as that goes."""
    by_classes: dict[tuple[int, ...], list[PeerSnapshot]] = {}
    for peer in peers:
        by_classes.setdefault(tuple(sorted(held[peer.peer])), []).append(peer)
    made = _merged([(frozenset(classes), members) for classes, members in sorted(by_classes.items())], num_groups)
    sizes = [1] * len(made)
    while sum(sizes) < num_groups:
        # No more groups of a cluster than it has peers, or classes to give them.
        room = [g for g, (classes, members) in enumerate(made) if sizes[g] < min(len(members), len(classes))]
        if not room:
            break
        sizes[max(room, key=lambda g: (len(made[g][1]) / sizes[g], -g))] += 1
    return [run for (_, members), size in zip(made, sizes, strict=True) for run in runs(members, size)]


def _merged(made: Sequence[_Cluster], num_groups: int) -> list[_Cluster]:
    """The two that are most alike made one, of equals the first, until there are so many.

    Of each cluster the one behind it that is most like it is kept, so that of hundreds not all pairs are looked at
    every time.
    """
    left = dict(enumerate(made))
    most_like: dict[int, tuple[float, int]] = {}

    def look(i: int) -> None:
        behind = [(_likeness(left[i][0], left[j][0]), -j) for j in left if j > i]
        most_like.pop(i, None)
        if behind:
            most_like[i] = max(behind)

    for i in left:
        look(i)
    while len(left) > num_groups:
        i = max(most_like, key=lambda i: (most_like[i][0], -i))
        j = -most_like[i][1]
        (one, here), (other, there) = left[i], left.pop(j)
        most_like.pop(j, None)
        left[i] = (one & other or one | other, [*here, *there])
        for k in left:
            if k == i or (k in most_like and -most_like[k][1] in (i, j)):
                look(k)
            elif k < i:
                most_like[k] = max(most_like[k], (_likeness(left[k][0], left[i][0]), -i))
    return list(left.values())


def together(group: Sequence[PeerSnapshot], held: Held) -> frozenset[int]:
    """The classes that all peers of a group hold."""
    return frozenset.intersection(*(held[peer.peer] for peer in group)) if group else frozenset()


def merged_until_each_has_a_class(
    groups: Sequence[Sequence[PeerSnapshot]], held: Held
) -> tuple[list[list[PeerSnapshot]], dict[int, int]]:
    """Groups, and for each a class that it holds and no other of them was given. Groups that hold none have none."""
    result = [list(group) for group in groups]
    while True:
        allowed = [together(group, held) for group in result]
        matched = _matching(allowed)
        left = next((g for g in range(len(result)) if allowed[g] and g not in matched), None)
        if left is None or len(result) == 1:
            return result, matched
        others = [g for g in range(len(result)) if g != left]
        into = max(others, key=lambda g: (_likeness(allowed[left], allowed[g]), -g))
        result[into] += result[left]
        del result[left]


def known_to(groups: Sequence[Group], held: Held, num_classes: int) -> list[float]:
    """How many classes each group knows, one that several know in equal shares: what its width is in proportion to.

    A group learns all classes that its peers have, not only those that its outputs are taken for. Classes that nobody
    has count for the group that waits for them.
    """
    knows = [frozenset(group.classes).union(*(held[peer.peer] for peer in group.trainers)) for group in groups]
    shares = [1.0 / max(1, sum(c in each for each in knows)) for c in range(num_classes)]
    return [sum(shares[c] for c in each) for each in knows]


def classes_by_holdings(
    groups: Sequence[Sequence[PeerSnapshot]],
    first: Mapping[int, int],
    weights: Sequence[float],
    held: Held,
    classes: Sequence[int],
) -> list[list[int]]:
    """Classes of each group: those in ``first``, then the rest by who holds them, wishes, weights and samples."""
    allowed = [together(group, held) for group in groups]
    have = [[sum(peer.counts[c] for peer in group if peer.counts) for c in classes] for group in groups]
    samples = [dict(zip(classes, counts, strict=True)) for counts in have]
    votes = [[sum(c in peer.wishes for peer in group) for group in groups] for c in classes]
    wishes = dict(zip(classes, votes, strict=True))
    result = [[first[g]] if g in first else [] for g in range(len(groups))]
    aims = [len(classes) * weight / sum(weights) for weight in weights]

    def owners(c: int) -> list[int]:
        """Who may have it: those that hold it, else whoever has most samples, else anybody."""
        holding = [g for g in range(len(groups)) if c in allowed[g]]
        if holding:
            return holding
        most = max(samples[g][c] for g in range(len(groups)))
        return [g for g in range(len(groups)) if samples[g][c] == most]

    def rank(c: int, g: int) -> tuple[int, float, int, int]:
        wished = wishes[c][g] if len(result[g]) < WISH_SPREAD * aims[g] else 0
        return (-wished, (len(result[g]) + 1) / weights[g], -samples[g][c], g)

    given = set(first.values())
    for c in sorted((c for c in classes if c not in given), key=lambda c: (len(owners(c)), c)):
        best = min(owners(c), key=lambda g: rank(c, g))
        result[best].append(c)
    while moves := [
        (len(result[g]) / weights[g] - (len(result[h]) + 1) / weights[h], (-c, -g, -h))
        for g in range(len(groups))
        for c in result[g]
        for h in owners(c)
        if len(result[g]) > 1 and wishes[c][h] >= wishes[c][g]
        if (len(result[h]) + 1) / weights[h] < len(result[g]) / weights[g]
    ]:  # each evens the groups out, so this ends
        c, g, h = (-number for number in max(moves)[1])
        result[g].remove(c)
        result[h].append(c)
    return [sorted(owned) for owned in result]


def _likeness(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard's: 1 = the same classes, 0 = none in common."""
    return len(one & other) / max(1, len(one | other))


def _matching(allowed: Sequence[frozenset[int]]) -> dict[int, int]:
    """A class for as many groups as can be, each another (Kuhn's algorithm)."""
    owner: dict[int, int] = {}

    def find(g: int, seen: set[int]) -> bool:
        for c in sorted(allowed[g]):
            if c not in seen:
                seen.add(c)
                if c not in owner or find(owner[c], seen):
                    owner[c] = g
                    return True
        return False

    for g in sorted(range(len(allowed)), key=lambda g: (len(allowed[g]), g)):
        find(g, set())
    return {g: c for c, g in owner.items()}
