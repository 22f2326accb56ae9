"""Whom a peer averages with in a round, so that all pairs come to their turn and nobody is asked twice meanwhile.

Invariant: who knows the same members comes to the same pairs, whoever asks.

The rounds are those of a tournament (the circle method): of m peers, m even, one stays in place and the others move on
around a circle, so in m - 1 rounds everybody meets everybody once. Of an odd number one has no partner in a round. A
hash says who sits where, and in which order the rounds come: in the order of the circle itself, what a peer knows would
travel from neighbour to neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from p2ptrain.ids import PeerId, lot


def partner_in(number: int, own: PeerId, others: Iterable[PeerId]) -> PeerId | None:
    """The partner of ``own`` in round ``number``; None where it has none."""
    members = {own, *others}
    num_rounds = len(members) - 1 + len(members) % 2
    if not num_rounds:
        return None
    seats = _by_lot(tuple(sorted(members)))  # one more than rounds, or one of them is nobody's
    turn = int(_by_lot(tuple(map(str, range(num_rounds))))[number % num_rounds])
    seat = seats.index(own)
    if seat == num_rounds:
        other = turn * ((num_rounds + 1) // 2) % num_rounds
    else:
        other = (turn - seat) % num_rounds
        other = num_rounds if other == seat else other
    return PeerId(seats[other]) if other < len(seats) else None


@lru_cache(maxsize=32)
def _by_lot(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lot))
