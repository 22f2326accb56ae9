"""Which owners and helpers of a room are thought of together.

In a small room all of them. In a large one each owner is thought of with a few helpers only, drawn by their names, the
faster ones and those with faster links more often: what a search takes then grows with the owners, and not with owners
times helpers. Two or three to choose from are enough to even out what helpers have to do (Mitzenmacher, "The power of
two choices in randomized load balancing", IEEE TPDS 2001); the draw is rendezvous hashing with weights, so that a
helper that comes or goes changes no choice but its own.

Invariant: a pure function of the room. Every owner that may be able to be helped by one of those that are thought of as
helpers is thought of with one. (Of helpers with samples of their own a large room takes the fastest.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from p2ptrain.ids import lot
from p2ptrain.planning.split.options import Pairs
from p2ptrain.planning.split.room import Room

EXACT_OWNERS = 8
"""With so many owners or fewer the search looks through all ways."""
MOST_PAIRS = 400
"""Of owners with helpers; where there are more, each owner has ``MOST_PAIRS`` / owners to choose from ..."""
LEAST_CHOICES = 4
"""... but so many at least."""
MOST_OWNING, OWNERS_FOR_ONE_MORE = 4, 10
"""In a large room, of those who own units themselves no more than the four fastest are thought of as helpers, and one
more for every ten owners."""


def choices(num_owners: int, *, num_free: int, num_owning: int) -> int | None:
    """With how many helpers each owner is thought of; None = with all that there are.

    ``num_free``: who may help and owns no unit; ``num_owning``: who may help and owns one.
    """
    if num_owners <= EXACT_OWNERS:
        return None
    found = max(LEAST_CHOICES, MOST_PAIRS // num_owners)
    return found if found < num_free + min(num_owning, _most_owning(num_owners)) else None


def _most_owning(num_owners: int) -> int:
    return max(MOST_OWNING, num_owners // OWNERS_FOR_ONE_MORE)


class Pairing:
    """``owners_of``: whom each helper may help, both by name."""

    def __init__(self, pairs: Pairs) -> None:
        room, num = pairs.room, len(pairs.room.owners)
        pace = {name: _pace_s(room, name) for name in room.helpers}
        own = sorted((name for name in room.helpers if room.peers[name].samples), key=lambda n: (pace[n], n))
        self.is_exact = num <= EXACT_OWNERS
        left_out = set() if self.is_exact else set(own[_most_owning(num) :])
        helpers = [name for name in room.helpers if name not in left_out]
        chosen = choices(num, num_free=len(room.helpers) - len(own), num_owning=len(own))
        self.is_sampled = chosen is not None
        self.num_choices = len(helpers) if chosen is None else chosen
        """Helpers that an owner is thought of with."""
        self.owners_of: dict[str, list[str]] = {name: [] for name in helpers}
        for owner in room.owners:
            for name in self._drawn(pairs, owner, helpers, pace) if chosen is not None else helpers:
                if name != owner:
                    self.owners_of[name].append(owner)

    def _drawn(self, pairs: Pairs, owner: str, helpers: Sequence[str], pace: Mapping[str, float]) -> list[str]:
        room = pairs.room

        def score(name: str) -> tuple[float, str]:
            weight = min(room.rate(owner, name), room.rate(name, owner)) / max(pace[name], 1e-30)
            return -math.log(_draw(owner, name)) / max(weight, 1e-300), name

        order = sorted((name for name in helpers if name != owner), key=score)
        able = (name for name in order if pairs.may_hold(owner, name))
        return list(itertools.islice(able, self.num_choices))


def _pace_s(room: Room, name: str) -> float:
    """Of the whole model, a sample."""
    last = room.tables.num_units
    return float(sum(each[last] for each in room.seconds(name, 1.0)))


def _draw(owner: str, helper: str) -> float:
    """Between 0 and 1, without both ends, as if by chance."""
    return (lot(f"{owner}\0{helper}", 7) + 1) / (2**56 + 1)
