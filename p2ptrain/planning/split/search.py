"""Who helps whom, and the cuts, shares and micro-batches with which a round ends soonest by the closed figures.

A round is training and then the exchange. For a limit on the exchange, every option that takes longer is left out, and
the least time of training is looked for; then the limit is lowered, as long as that may yet pay.

For a time of training it is decided whether all can end in it. Whoever can alone, does; it costs nobody else anything.
The others are given to helpers, heaviest first, each to the helper that is then least full; a helper's units must end
in time on what it has (``group``). With ``EXACT_OWNERS`` owners or fewer all ways are looked through, and the time is
the least to within ``CLOSE``. With more, few are; then units of the fullest helper are moved to others, or swapped.

That every unit trains with one helper (and nothing of the tails has to be exchanged) is looked at besides. On one
medium for all the exchange is a sum, which the limit, on its longest part, does not quite get hold of.

Invariant: a pure function of the room. Ties are broken by names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from p2ptrain.errors import LocalError
from p2ptrain.planning.split.frontier import NOTHING, Frontier
from p2ptrain.planning.split.group import MAX_ROUND_S, Choice, Helper, soonest_of_all
from p2ptrain.planning.split.options import Options, Pairs
from p2ptrain.planning.split.pairing import Pairing
from p2ptrain.planning.split.room import Room
from p2ptrain.planning.split.rounds.end import exchange_s

CLOSE = 1e-5
ROUGHLY = 2e-3
"""So close the least time is found where not all ways are looked through."""
MOST_NODES, FEW_NODES = 50_000, 3
"""Owners that are given a helper while one time is decided about; the latter for each owner, where there are many."""
LOWERED = 1e-3
"""By so much of the best round the limit on the exchange is lowered at least."""
FAR_LOWERED, MUCH_LOWERED, MOST_LIMITS = 0.02, 0.4, 10
"""Where not all ways are looked through: likewise; by so much of the exchange at least; so many times at most."""
MOST_MOVES = 40


@dataclass(frozen=True)
class Found:
    """A way for every owner to train; None = alone. Seconds by the closed figures."""

    assigned: Mapping[str, Choice | None]
    train_s: float
    exchange_s: float

    @property
    def round_s(self) -> float:
        return self.train_s + self.exchange_s


@dataclass
class Counts:
    """Work done: what a bound can be put on, as it does not depend on the machine."""

    decisions: int = 0
    nodes: int = 0
    frontiers: int = 0


@dataclass(frozen=True)
class _Limited:
    """What is left under a limit on the exchange, and under ``only``: the one helper for all, if there is to be one."""

    options: Mapping[tuple[str, str], Options]
    alone_s: Mapping[str, float]
    """Of training, of those that may train alone."""
    helpers: Mapping[str, Helper]
    low_s: float
    """What training takes at least."""


class Search:
    """``counts`` grows with every question."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.counts = Counts()
        pairs = Pairs(room)
        self.pairing = Pairing(pairs)
        self.is_exact = self.pairing.is_exact
        self.helpers: dict[str, Helper] = {}
        self.options: dict[tuple[str, str], Options] = {}
        for name, owners in self.pairing.owners_of.items():
            helper = Helper(pairs, name, owners, is_coarse=not self.is_exact)
            for owner in owners if helper.is_able else ():
                options = helper.able(pairs.of(owner, name))
                if len(options):
                    self.options[owner, name] = options
                    self.helpers[name] = helper
        num_others = len(room.owners) - 1
        self._only = [name for name in self.helpers if len(self.pairing.owners_of[name]) >= num_others]
        """Who may be the one helper of all."""

    def best(self, below_s: float = math.inf) -> Found | None:
        """The way with the shortest round; None where no round is shorter than ``below_s``."""
        best: Found | None = None
        for only in (None, *self._only):
            limit_s, reached_s, limits = math.inf, math.inf, 0
            while limit_s > 0 and (self.is_exact or limits < MOST_LIMITS):
                limits += 1
                limited = self._limited(limit_s, only)
                found = self._soonest(limited, below_s - self._least_exchange_s(limited, only), only)
                if found is None:
                    if self.is_exact or reached_s - limit_s <= FAR_LOWERED * below_s or reached_s == math.inf:
                        break
                    limit_s = (limit_s + reached_s) / 2  # it was lowered too far
                    continue
                if found.round_s < below_s:
                    best, below_s = found, found.round_s
                largest = max(self._exchange_s(owner, choice, only) for owner, choice in found.assigned.items())
                reached_s = min(limit_s, largest)
                lowered = LOWERED * below_s if self.is_exact else max(FAR_LOWERED * below_s, MUCH_LOWERED * largest)
                limit_s = reached_s - lowered
        return best

    def _exchange_s(self, owner: str, choice: Choice | None, only: str | None) -> float:
        """That a limit is put on: of the front, and of the tail where it is known that others hold its blocks."""
        if choice is None:
            alone = self.room.alone(owner)
            return alone.exchange_s if alone is not None and owner != only else 0.0
        front = float(choice.options.owner_exchange_s[choice.index])
        return front if only else max(front, float(choice.options.helper_exchange_s[choice.index]))

    def _limited(self, limit_s: float, only: str | None) -> _Limited:
        options = {}
        for (owner, name), each in self.options.items():
            if only in (None, name):
                able = each.owner_exchange_s <= limit_s
                if only is None:
                    able &= each.helper_exchange_s <= limit_s
                options[owner, name] = each.only(able)
        alone_s = {}
        for owner in self.room.owners:
            alone = self.room.alone(owner)
            if alone is not None and (owner == only if only else alone.exchange_s <= limit_s):
                alone_s[owner] = alone.round_s
        helpers = {
            name: helper
            for name, helper in self.helpers.items()
            if only in (None, name) and (only is not None or helper.own_exchange_s <= limit_s)
        }
        options = {key: each for key, each in options.items() if key[1] in helpers and len(each)}
        ways = {owner: [alone_s[owner]] if owner in alone_s else [] for owner in self.room.owners}
        for (owner, name), each in options.items():
            took = (each.round_s(1.0), each.helper_s + helpers[name].own_s)
            ways[owner].append(float(max(took[0].min(), took[1].min())))
        low_s = max((min(its, default=math.inf) for its in ways.values()), default=0.0)
        return _Limited(options, alone_s, helpers, low_s)

    def _least_exchange_s(self, limited: _Limited, only: str | None) -> float:
        ways: dict[str, list[float]] = {owner: [] for owner in self.room.owners if owner != only}
        for owner, its in ways.items():
            alone = self.room.alone(owner)
            if alone is not None and owner in limited.alone_s:
                its.append(alone.exchange_s)
        for (owner, _), each in limited.options.items():
            if owner in ways:
                ways[owner].append(float(each.owner_exchange_s.min()))
        return max((min(its, default=0.0) for its in ways.values()), default=0.0)

    def _soonest(self, limited: _Limited, below_s: float, only: str | None) -> Found | None:
        """The least time of training under a limit, if it is below ``below_s``."""
        low_s = limited.low_s
        if not low_s < below_s:
            return None
        high_s = below_s if below_s < MAX_ROUND_S else max(2 * low_s, 1e-9)
        given = self._decide(limited, high_s)
        while given is None and below_s >= MAX_ROUND_S and high_s < MAX_ROUND_S:
            low_s, high_s = high_s, 4 * high_s
            given = self._decide(limited, high_s)
        if given is None:
            return None
        close = CLOSE if self.is_exact else ROUGHLY
        while high_s - low_s > close * high_s:
            middle = (low_s + high_s) / 2
            other = self._decide(limited, middle)
            if other is None:
                low_s = middle
            else:
                given, high_s = other, middle
        found = self._found(limited, given, high_s)
        return found if self.is_exact else self._improved(limited, given, found)

    def _found(self, limited: _Limited, given: Mapping[str, str], high_s: float) -> Found:
        """The time that it takes if helpers are ``given`` like that; all others train alone."""
        assigned: dict[str, Choice | None] = dict.fromkeys(self.room.owners)
        slowest = max((limited.alone_s[owner] for owner in self.room.owners if owner not in given), default=0.0)
        groups = {
            limited.helpers[name]: [limited.options[owner, name] for owner in sorted(given) if given[owner] == name]
            for name in sorted(set(given.values()))
        }
        took = soonest_of_all(groups, high_s, is_shared=self.room.task.medium == "shared")
        if took is None:
            raise LocalError("units that end in time, and then do not")
        assigned.update({choice.options.owner: choice for choice in took[1]})
        slowest = max(slowest, took[0])
        placed = [
            (owner, None, self.room.tables.num_units)
            if choice is None
            else (owner, choice.options.helper, int(choice.options.cuts[choice.index]))
            for owner, choice in sorted(assigned.items())
        ]
        return Found(assigned, slowest, exchange_s(self.room, placed))

    def _decide(self, limited: _Limited, round_s: float) -> dict[str, str] | None:
        """Helpers for those that can't end alone in that time, so that all do; None: not found."""
        self.counts.decisions += 1
        weak = [owner for owner in self.room.owners if not limited.alone_s.get(owner, math.inf) <= round_s]
        if not weak:
            return {}
        asked: dict[str, dict[str, Frontier]] = {owner: {} for owner in weak}
        for (owner, name), options in limited.options.items():
            helper = limited.helpers[name]
            if owner in asked and name not in asked and helper.own_s < round_s:
                self.counts.frontiers += 1
                frontier = helper.frontier(options, round_s)
                if len(frontier):
                    asked[owner][name] = frontier
        if not all(asked.values()):
            return None
        fullness = {
            owner: min(_fullness(each, limited.helpers[name], round_s) for name, each in its.items())
            for owner, its in asked.items()
        }
        weak.sort(key=lambda owner: (-fullness[owner], owner))
        return _Dealing(self, limited, round_s, weak, asked).dealt()

    def _improved(self, limited: _Limited, given: Mapping[str, str], found: Found) -> Found:
        """With units moved from the fullest helper to others, or swapped, as long as that makes training shorter."""
        for _ in range(MOST_MOVES):
            target = found.train_s * (1 - ROUGHLY)
            other = self._moved(limited, dict(given), target)
            if other is None:
                break
            given, found = other, self._found(limited, other, target)
        return found

    def _moved(self, limited: _Limited, given: dict[str, str], round_s: float) -> dict[str, str] | None:
        """One unit moved, or two swapped, so that all end in that time."""
        frontiers: dict[tuple[str, str], Frontier] = {}

        def ends(name: str, owners: Sequence[str]) -> bool:
            helper, total = limited.helpers[name], NOTHING
            for owner in owners:
                if (owner, name) not in limited.options:
                    return False
                if (owner, name) not in frontiers:
                    self.counts.frontiers += 1
                    frontiers[owner, name] = helper.frontier(limited.options[owner, name], round_s)
                self.counts.nodes += 1
                total = helper.joined(total, frontiers[owner, name], round_s)
            return len(total) > 0

        if self.room.task.medium == "shared" or any(s > round_s for o, s in limited.alone_s.items() if o not in given):
            return None
        units = {name: sorted(owner for owner, its in given.items() if its == name) for name in limited.helpers}
        units = {name: its for name, its in units.items() if name not in given}
        late = [name for name, owners in units.items() if not ends(name, owners)]
        if len(late) != 1:
            return None
        (full,) = late
        for owner in units[full]:
            rest = [each for each in units[full] if each != owner]
            if not ends(full, rest):
                continue
            for name in units:
                if name != full and ends(name, [*units[name], owner]):
                    return {**given, owner: name}
        for owner in units[full]:
            rest = [each for each in units[full] if each != owner]
            for name in units:
                for swapped in units[name] if name != full else ():
                    others = [each for each in units[name] if each != swapped]
                    if ends(name, [*others, owner]) and ends(full, [*rest, swapped]):
                        return {**given, owner: name, swapped: full}
        return None


def _fullness(frontier: Frontier, helper: Helper, round_s: float) -> float:
    """The largest part of its time, its link or its memory that is asked of a helper, where that is least."""
    limit_s, free_bytes = max(round_s - helper.own_s, 1e-30), max(helper.free_bytes, 1e-30)
    parts = (frontier.helper_s / limit_s, frontier.share, frontier.num_bytes / free_bytes)
    return float(np.maximum.reduce(parts).min())


class _Dealing:
    """Owners given to helpers for one time, the heaviest first."""

    def __init__(
        self,
        search: Search,
        limited: _Limited,
        round_s: float,
        weak: Sequence[str],
        asked: Mapping[str, Mapping[str, Frontier]],
    ) -> None:
        self._search, self._limited, self._round_s = search, limited, round_s
        self._weak, self._asked = weak, asked
        self._left = MOST_NODES if search.is_exact else FEW_NODES * len(weak)
        self._is_shared = search.room.task.medium == "shared"

    def dealt(self) -> dict[str, str] | None:
        return self._deal(0, {}, {})

    def _deal(self, at: int, given: dict[str, str], full: dict[str, Frontier]) -> dict[str, str] | None:
        if at == len(self._weak):
            return given
        owner = self._weak[at]
        ways = []
        self._left -= 1
        for name, frontier in self._asked[owner].items():
            self._search.counts.nodes += 1
            helper = self._limited.helpers[name]
            total = helper.joined(full.get(name, NOTHING), frontier, self._round_s)
            if not len(total) or (self._is_shared and self._share({**full, name: total}) > 1):
                continue
            ways.append((_fullness(total, helper, self._round_s), name, total))
        ways.sort(key=lambda way: way[:2])
        for _, name, total in ways:
            found = self._deal(at + 1, {**given, owner: name}, {**full, name: total})
            if found is not None or self._left <= 0:
                return found
        return None

    @staticmethod
    def _share(full: Mapping[str, Frontier]) -> float:
        """Of one medium for all, at least."""
        return sum(float(each.share.min()) for each in full.values())
