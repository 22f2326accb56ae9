"""Who of a large group keeps a link to whom: few, both ways alike, and the group hangs together whoever goes."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

import pytest
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.runtime.peer.neighbours import BESIDE, LINKS, Rings
from p2ptrain.simulation.names import peer_ids


def part_of(start: PeerId, links: Mapping[PeerId, Collection[PeerId]]) -> set[PeerId]:
    """Whom news from ``start`` reaches over these links, which go both ways."""
    found, new = {start}, [start]
    while new:
        more = [peer for peer in links[new.pop()] if peer not in found and peer in links]
        found.update(more)
        new += more
    return found


def links_of(peers: Collection[PeerId]) -> dict[PeerId, frozenset[PeerId]]:
    rings = Rings(peers)
    return {peer: rings.neighbours(peer) for peer in peers}


@pytest.mark.parametrize("num_peers", [1, 2, 3, 20, 33, 150, 1000])
def test_they_are_few_and_both_see_it_alike(num_peers: int) -> None:
    links = links_of(peer_ids(num_peers))
    for peer, its in links.items():
        assert peer not in its and len(its) <= LINKS
        assert all(peer in links[other] for other in its)
        assert len(its) >= min(num_peers - 1, 2 * BESIDE if num_peers < 150 else LINKS - 8)


def test_who_is_not_on_the_rings_finds_those_it_would_have() -> None:
    everyone = peer_ids(200)
    one = everyone[77]
    without = Rings(peer for peer in everyone if peer != one)
    assert without.neighbours(one) == Rings(everyone).neighbours(one)


@pytest.mark.parametrize("num_peers", [3, 5, 100, 300])
def test_the_group_hangs_together_whoever_goes_once_that_is_known(num_peers: int) -> None:
    left = random.Random(num_peers).sample(peer_ids(num_peers), max(2, num_peers * 3 // 10))
    links = links_of(left)
    assert part_of(left[0], links) == set(left)


@pytest.mark.parametrize("seed", seeds(3))
def test_half_of_a_group_going_at_once_does_not_tear_it_before_that_is_known(seed: int) -> None:
    everyone = peer_ids(300)
    left = set(random.Random(seed).sample(everyone, 150))
    links = {peer: its for peer, its in links_of(everyone).items() if peer in left}
    assert part_of(next(iter(left)), links) == left


def test_one_that_comes_changes_few_links() -> None:
    everyone = peer_ids(300)
    before, after = links_of(everyone[1:]), links_of(everyone)
    changed = sum(len(before[peer] ^ after[peer]) for peer in before)
    assert changed <= 3 * LINKS


def test_neighbours_of_the_first_ring_have_others_in_common_who_can_see_for_each_other() -> None:
    everyone = sorted(peer_ids(1000))
    rings = Rings(everyone)
    one, other = everyone[500], everyone[500 + BESIDE // 2]
    assert len(rings.neighbours(one) & rings.neighbours(other)) >= BESIDE
