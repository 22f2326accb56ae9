"""One helper and the units that it helps: whether they end in time, how soon they can, and which options that takes.

Exact for the figures of ``room``: within a time, each unit asks for the least share of the link that its option needs,
and one option is chosen for each so that together they ask for no more than the helper has. How soon is found by
bisection.

Invariant: pure; ties go to the option that comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2ptrain.planning.pipeline.cost import Floats
from p2ptrain.planning.split.frontier import NOTHING, Frontier, Limits, frontier_of, joined
from p2ptrain.planning.split.options import Options, Pairs

PRECISION, COARSE_PRECISION = 1e-8, 1e-3
MAX_ROUND_S = 1e9
"""What does not end within that never ends."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one unit does: an option, and its share of the helper's link."""

    options: Options
    index: int
    share: float

    @property
    def round_s(self) -> float:
        """Of training, as if the helper had no other unit."""
        return float(self.options.only(np.array([self.index])).round_s(self.share)[0])

    @property
    def helper_s(self) -> float:
        return float(self.options.helper_s[self.index])


class Helper:
    """What a peer has for others. If it owns a unit too, that trains alone beside theirs."""

    def __init__(self, pairs: Pairs, name: str, others: Sequence[str], *, is_coarse: bool = False) -> None:
        """``others``: the owners that it may help."""
        room = pairs.room
        self._pairs, self.room, self.name, self.is_coarse = pairs, room, name, is_coarse
        peer = room.peers[name]
        self.own_s = self.own_exchange_s = own_bytes = 0.0
        self.is_able = peer.may_help
        if peer.samples:
            alone = room.alone_as_helper(name)
            self.is_able = self.is_able and alone is not None
            if alone is not None:
                self.own_s, self.own_exchange_s = alone.round_s, alone.exchange_s
                own_bytes = room.own_bytes(name, alone.micro_batches)
        self.free_bytes = peer.device.memory_bytes - own_bytes
        if room.task.tails == "shared" and others:
            self.free_bytes -= self._shared_tail_bytes(others)
        self._is_tight = self._may_run_out(others)

    def _shared_tail_bytes(self, others: Sequence[str]) -> float:
        """Of one tail for all: the longest that leaves each of these some memory for its activations."""
        tables = self.room.tables
        options = [self._pairs.of(owner, self.name) for owner in others]
        beside = sum(float(each.work_bytes.min()) for each in options if len(each))
        for cut in range(1, tables.num_units):
            held = tables.fixed_bytes(cut, tables.num_units)
            if held + beside <= self.free_bytes or cut == tables.num_units - 1:
                self.first_cut = cut
                return held
        return 0.0

    first_cut = 1
    """The longest tail that it has the memory for begins there (a place in ``Room.cuts``)."""

    def _may_run_out(self, others: Sequence[str]) -> bool:
        most = [self.num_bytes(self._pairs.of(owner, self.name)).max(initial=0.0) for owner in others]
        return bool(sum(most) > self.free_bytes)

    def num_bytes(self, options: Options) -> Floats:
        """Memory that each option takes; of several units it adds up."""
        tail = 0.0 if self.room.task.tails == "shared" else options.tail_bytes
        needed: Floats = tail + options.work_bytes
        return needed

    def able(self, options: Options) -> Options:
        """Those that it has the memory for, if there is no other unit."""
        return options.only((self.num_bytes(options) <= self.free_bytes) & (options.cuts >= self.first_cut))

    def limits(self, round_s: float) -> Limits:
        return Limits(round_s - self.own_s, self.free_bytes, is_tight=self._is_tight, is_coarse=self.is_coarse)

    def frontier(self, options: Options, round_s: float) -> Frontier:
        """What one unit asks for to end within that time. ``ours`` are places in ``options``."""
        rows = np.flatnonzero(options.helper_s <= round_s - self.own_s)
        num_bytes = self.num_bytes(options)[rows]
        found = frontier_of(options.helper_s[rows], options.shares(round_s, rows), num_bytes, self.limits(round_s))
        return replace(found, ours=rows[found.ours])

    def joined(self, frontier: Frontier, other: Frontier, round_s: float) -> Frontier:
        return joined(frontier, other, self.limits(round_s))

    def chosen(self, options: Sequence[Options], round_s: float) -> list[Choice] | None:
        """One option for each unit, so that all end in time, with the least share together; None: none will do."""
        steps: list[tuple[Frontier, Frontier]] = []
        total = NOTHING
        for each in options:
            other = self.frontier(each, round_s)
            total = self.joined(total, other, round_s)
            steps.append((total, other))
        if not len(total):
            return None
        at = int(total.share.argmin())
        choices = []
        for each, (both, other) in zip(reversed(options), reversed(steps), strict=True):
            there = int(both.theirs[at])
            choices.append(Choice(each, int(other.ours[there]), float(other.share[there])))
            at = int(both.ours[at])
        return choices[::-1]


def soonest(
    groups: Mapping[Helper, Sequence[Options]], low_s: float, high_s: float
) -> tuple[float, dict[Helper, list[Choice]]] | None:
    """The least time within which all of these end, whose shares of one medium add up to no more than all of it, and
    what each does then. ``low_s``: it takes longer than that; ``high_s``: tried first, and doubled if that is too
    soon. None: no time will do."""

    def chosen(round_s: float) -> dict[Helper, list[Choice]] | None:
        found = {}
        for helper, options in groups.items():
            choices = helper.chosen(options, round_s)
            if choices is None:
                return None
            found[helper] = choices
        total = sum(choice.share for choices in found.values() for choice in choices)
        return found if total <= 1.0 else None

    if not groups:
        return 0.0, {}
    if any(not len(each) for options in groups.values() for each in options):
        return None
    best = chosen(high_s)
    if best is None and chosen(MAX_ROUND_S) is None:
        return None
    while best is None:
        low_s, high_s = high_s, 2 * high_s
        best = chosen(high_s)
    precision = COARSE_PRECISION if any(helper.is_coarse for helper in groups) else PRECISION
    while high_s - low_s > precision * high_s:
        middle = (low_s + high_s) / 2
        found = chosen(middle)
        if found is None:
            low_s = middle
        else:
            best, high_s = found, middle
    return high_s, best


def widened(choices: Mapping[Helper, Sequence[Choice]]) -> dict[Helper, list[Choice]]:
    """With what is left of the medium or of the link given to all of them, in proportion."""
    total = sum(choice.share for each in choices.values() for choice in each)
    factor = 1 / total if total > 0 else 1.0
    return {
        helper: [replace(each, share=min(1.0, each.share * factor)) for each in its] for helper, its in choices.items()
    }


def soonest_of_all(
    groups: Mapping[Helper, Sequence[Options]], high_s: float, *, is_shared: bool
) -> tuple[float, list[Choice]] | None:
    """The least time within which all groups end, and what each unit does: each group as soon as it can, but on one
    medium (``is_shared``) all by the same time. None: no time will do."""
    parts = [groups] if is_shared else [{helper: options} for helper, options in groups.items()]
    slowest, choices = 0.0, []
    for part in parts:
        took = soonest(part, 0.0, high_s)
        if took is None:
            return None
        slowest = max(slowest, took[0])
        choices += [choice for its in widened(took[1]).values() for choice in its]
    return slowest, choices
