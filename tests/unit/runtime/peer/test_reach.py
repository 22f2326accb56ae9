"""Links that a peer of a large group makes sure of: whichever others chance gave, the group hangs together."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

import pytest
from seeds import seeds

from p2ptrain.ids import PeerId
from p2ptrain.protocol.session.address_book import MAX_ADDRESSES, MAX_WANTED, AddressBook
from p2ptrain.runtime.peer.reach import BESIDE, ring_neighbours
from p2ptrain.simulation.names import peer_ids


def part_of(start: PeerId, links: Mapping[PeerId, Collection[PeerId]]) -> set[PeerId]:
    """Whom news from ``start`` reaches over these links, which go both ways."""
    found, new = {start}, [start]
    while new:
        more = [peer for peer in links[new.pop()] if peer not in found and peer in links]
        found.update(more)
        new += more
    return found


def ring(peers: Collection[PeerId]) -> dict[PeerId, set[PeerId]]:
    return {peer: set(ring_neighbours(peer, [each for each in peers if each != peer], BESIDE)) for peer in peers}


@pytest.mark.parametrize("num_peers", [3, 5, 100, 300])
def test_the_ring_is_one_whoever_goes(num_peers: int) -> None:
    everyone = peer_ids(num_peers)
    left = random.Random(num_peers).sample(everyone, max(2, num_peers * 7 // 10))
    links = ring(left)
    assert part_of(left[0], links) == set(left)
    assert all(peer in links[other] for peer in left for other in links[peer])  # both see it alike
    assert all(len(its) == min(2 * BESIDE, len(left) - 1) for its in links.values())


@pytest.mark.parametrize("seed", seeds(3))
def test_two_deaths_at_once_do_not_tear_it_before_they_are_known(seed: int) -> None:
    everyone = peer_ids(50)
    links = ring(everyone)
    at = random.Random(seed).randrange(50)
    order = sorted(everyone)
    gone = {order[at], order[(at + 1) % 50]}
    left = {peer: its for peer, its in links.items() if peer not in gone}
    assert part_of(next(iter(left)), left) == set(left)


def test_nobody_else_is_on_the_ring() -> None:
    assert ring_neighbours(peer_ids(1)[0], [], BESIDE) == []


def test_who_is_wanted_is_dialled_beside_all_others_and_no_more_than_so_many() -> None:
    book = AddressBook(random.Random(1))
    for number in range(MAX_ADDRESSES):
        target = book.propose(f"tcp://192.0.2.1:{number + 1}", 0.0, source="peer", in_use=())
        assert target is not None
        target.open(b"k%d" % number)
    in_use = {f"tcp://192.0.2.1:{number + 1}" for number in range(MAX_ADDRESSES)}
    assert book.propose("tcp://192.0.2.2:1", 0.0, source="peer", in_use=in_use) is None  # all are in use
    for number in range(2 * MAX_WANTED):
        assert book.propose(f"tcp://192.0.2.3:{number + 1}", 0.0, source="wanted", in_use=in_use) is not None
    assert len(book.unanswered()) == MAX_WANTED
