"""Who of a large group keeps a link to whom: all find the same answer by themselves, from who is alive.

Invariant: it goes both ways: whoever has the same members in mind, and finds that one is the other's neighbour, finds
the other to be the one's. Each has ``LINKS`` of them at most.

Theory. All peers stand on several rings, each in another order (Suresh, Malkhi, Gopalan, Carreiro, Lokhandwala, Rapid,
ATC 2018). Of the first ring a peer has some neighbours on each side: those have most of theirs in common, so they can
see for each other whether one that does not answer lives (SWIM's indirect probes). Of each further ring it has the one
on each side: these are random peers, by whom news crosses the group in a few steps, and the group hangs together
whoever goes. A peer that comes or goes changes a neighbour or two of each of its own, and nothing elsewhere.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache

from p2ptrain.ids import PeerId

BESIDE = 8
"""Neighbours on each side of the first ring."""
RINGS = 8
"""Further ones, at most 8."""
LINKS = 2 * (BESIDE + RINGS)

_PLACES = struct.Struct(">8Q")
_Place = tuple[int, PeerId]


@lru_cache(maxsize=16384)
def _places(peer: PeerId) -> tuple[int, ...]:
    """On the further rings."""
    return _PLACES.unpack(hashlib.blake2b(peer.encode(), digest_size=_PLACES.size).digest())


class Rings:
    """Of these peers."""

    def __init__(self, peers: Iterable[PeerId]) -> None:
        members = sorted(set(peers))
        self._rings: list[list[_Place]] = [[(0, peer) for peer in members]]
        self._rings += [sorted((_places(peer)[ring], peer) for peer in members) for ring in range(RINGS)]

    def neighbours(self, peer: PeerId) -> frozenset[PeerId]:
        """Of one that is on the rings, or would be."""
        found: set[PeerId] = set()
        for number, ring in enumerate(self._rings):
            place = (_places(peer)[number - 1] if number else 0, peer)
            at = bisect_left(ring, place)
            after = at + 1 if ring[at : at + 1] == [place] else at
            for step in range(BESIDE if number == 0 else 1):
                found |= {ring[(after + step) % len(ring)][1], ring[(at - 1 - step) % len(ring)][1]} if ring else set()
        return frozenset(found - {peer})
