"""The groups of peers that may become a stage, and what each takes for each run of blocks: the search's ground.

Peers that differ in nothing but their names are of one *kind*, unless a link of theirs has a rate of its own; a group
is so many of each kind. So sixteen equal boards are sixteen groups and not 65,535. Rooms whose groups are few are
searched with all of them; others with a selection: every single peer, peers of like speed together, and the fastest n
(a slow peer sets the pace of its group). The search begins with the selection anyway: its first plan sets a limit, and
what can't be done within it is not worked out for all groups.

How many peers of each kind are taken is one integer with a field for each kind, wide enough for one carry:
``taken & group.guard`` says at once for many partial plans whether a group is still to be had.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2ptrain.planning.pipeline.cost import CostModel, Floats
from p2ptrain.planning.pipeline.shares import Mask
from p2ptrain.planning.pipeline.stages import PipelinePlan
from p2ptrain.planning.search.group_times import GroupTimes, Timing

MAX_GROUPS = 255
"""So many groups are all tried; of more, a selection."""
MAX_RUN = 4
"""Peers of like speed in a group of the selection."""
FIELD_BITS = 62
WITH_DATA, WITH_MEMORY = 4, 6
"""Kinds that are taken first where not all fit into ``FIELD_BITS``."""

Counts = tuple[int, ...]
"""How many peers of each kind are taken."""


@dataclass(frozen=True, slots=True)
class Group:
    """So many peers of each kind; ``peers`` are the first ones of each kind, which stand for all."""

    counts: Counts
    peers: tuple[int, ...]
    code: int
    """What to add to the code of what is taken."""
    has_data: bool
    flops_per_s: float
    """Together; the most that they may reach."""


class CandidateGroups:
    """All that the search looks up: kinds, groups, their times, and the links between them."""

    def __init__(self, model: CostModel, max_stages: int) -> None:
        self.model = model
        self.kinds, has_all_kinds = _kinds(model)
        widths = [len(kind).bit_length() + 1 for kind in self.kinds]
        shifts = [sum(widths[:i]) for i in range(len(widths))]
        self._fields = [1 << shift for shift in shifts]
        self.guard = sum(1 << (shift + width - 1) for shift, width in zip(shifts, widths, strict=True))
        self.nothing_taken = sum(
            ((1 << (width - 1)) - 1 - len(kind)) << shift
            for kind, shift, width in zip(self.kinds, shifts, widths, strict=True)
        )
        self.most_peers = model.task.micro_batch // model.task.model.least_samples
        """Of a group: each of its peers gets samples of every micro-batch."""
        self._speeds = [_speed(model, kind[0]) for kind in self.kinds]
        self.total_speed = self._total_speed()
        counts = self._all_counts()
        deepest = min(model.task.most_ahead, 2 * max_stages - 1)
        usual = {*range(1, deepest, 2), deepest}  # 2(P-p)-1 is odd
        self.depths = tuple(k for k in range(1, deepest + 1) if counts is not None or k in usual)
        self._timing = Timing(model, self.depths)
        self.covers_all = has_all_kinds and counts is not None and self._timing.is_proportional
        """Every plan worth having is made of these groups and splits. With measured times a split that is best in sum
        may not be best forward and backward apart."""
        self._single_s = self._soonest_alone_s()
        self._known: dict[Counts, tuple[Group, GroupTimes]] = {}
        self.groups: list[Group] = []
        self.is_selection = counts is None
        self.counts = counts or self.some_counts()
        """How many peers of each kind the groups have that the search chooses from."""

    def use(self, counts: list[Counts], limit_s: float) -> None:
        """Make these the groups to choose from; this comes first. No stage of interest takes ``limit_s`` for a
        round."""
        limit_s = min(limit_s, self._single_s)
        new = [each for each in counts if not self._knows(each, limit_s)]
        if not new and [group.counts for group in self.groups] == counts:
            return
        self._learn(new, limit_s)
        self.groups = [self._known[each][0] for each in counts]
        times = [self._known[each][1] for each in counts]
        self.forward_s: Floats = np.stack([each.forward_s for each in times], axis=1)
        """Seconds of a forward pass, [depth, group, run]."""
        self.backward_s: Floats = np.stack([each.backward_s for each in times], axis=1)
        self.update_s: Floats = np.stack([each.update_s for each in times])
        """Seconds of the optimizer's step, [group, run]."""
        self.link_rates = self._link_rates()
        """Between two groups, [group, group]; what it says of groups that share peers means nothing."""
        self.links_as_well: list[list[bool]] = self._links_as_well().tolist()
        """[one, other]: whether the one's links to all others are no slower than the other's."""

    def _knows(self, counts: Counts, limit_s: float) -> bool:
        return counts in self._known and self._known[counts][1].limit_s >= limit_s

    def _learn(self, counts: Sequence[Counts], limit_s: float) -> None:
        groups = [self._group(each) for each in counts]
        peers, speeds = [group.peers for group in groups], [group.flops_per_s for group in groups]
        times = self._timing.times(peers, speeds, self.total_speed, limit_s)
        self._known.update(zip(counts, zip(groups, times, strict=True), strict=True))

    def leave_out(self, name: str) -> None:
        """No tail takes that peer any more. What it could do may stay among what is looked up."""
        for k, kind in enumerate(self.kinds):
            left = [peer for peer in kind if self.model.task.peers[peer].name != name]
            if len(left) < len(kind):
                self.kinds[k] = left
                self.nothing_taken += self._fields[k]
        self.total_speed, self._single_s = self._total_speed(), self._soonest_alone_s()
        most = [len(kind) for kind in self.kinds]
        self.counts = [each for each in self.counts if all(map(operator.le, each, most))]

    def _total_speed(self) -> float:
        return sum(speed * len(kind) for speed, kind in zip(self._speeds, self.kinds, strict=True) if kind)

    def _link_rates(self) -> Floats:
        rates = self.model.link_rates
        to_peers = np.stack([rates[list(group.peers)].min(axis=0) for group in self.groups])
        return np.stack([to_peers[:, list(group.peers)].min(axis=1) for group in self.groups], axis=1)

    def _links_as_well(self) -> Mask:
        if not self.model.task.pair_rates:
            ends = np.array([self.model.link_rates.diagonal()[list(group.peers)].min() for group in self.groups])
            as_well: Mask = ends[:, None] >= ends
            return as_well
        rates = self.link_rates
        return np.stack([(rates >= rates[:, [other]]).all(axis=0) for other in range(len(rates))], axis=1)

    def near(self, plan: PipelinePlan) -> list[Counts]:
        """The groups of a plan without those left out, those with one peer more or less, and every single peer."""
        kind_of = {self.model.task.peers[peer].name: k for k, kind in enumerate(self.kinds) for peer in kind}
        singles = [k for k, kind in enumerate(self.kinds) if kind]
        found = {tuple(int(k == single) for k in range(len(self.kinds))) for single in singles}
        for stage in plan.stages:
            counts = [0] * len(self.kinds)
            for peer in stage.peers:
                if peer in kind_of:
                    counts[kind_of[peer]] += 1
            for k, change in itertools.product(range(len(self.kinds)), (-1, 0, 1)):
                other = tuple(count + change * (k == i) for i, count in enumerate(counts))
                if 0 <= other[k] <= len(self.kinds[k]) and 0 < sum(other) <= self.most_peers:
                    found.add(other)
        return sorted(found)

    def depth_index(self, depth: int) -> int:
        """The place in ``depths`` of the deepest that is not above ``depth``."""
        return max(i for i, each in enumerate(self.depths) if each <= depth)

    def _all_counts(self) -> list[Counts] | None:
        """Every group of at most a micro-batch's peers; None where they are too many."""
        if math.prod(len(kind) + 1 for kind in self.kinds) - 1 > MAX_GROUPS:
            return None
        ranges = [range(len(kind) + 1) for kind in self.kinds]
        return [counts for counts in itertools.product(*ranges) if 0 < sum(counts) <= self.most_peers]

    def some_counts(self) -> list[Counts]:
        """A selection: see the module's first lines."""
        order = sorted(range(len(self.kinds)), key=lambda k: (-self._speeds[k], k))
        line = [kind for kind in order for _ in self.kinds[kind]]
        most = min(len(line), self.most_peers)
        runs = [line[i : i + n] for n in range(1, min(MAX_RUN, most) + 1) for i in range(len(line) - n + 1)]
        runs += [line[:n] for n in range(MAX_RUN + 1, most + 1)]
        found = {tuple(run.count(kind) for kind in range(len(self.kinds))) for run in runs}
        return sorted(found, key=lambda counts: (sum(counts), counts))

    def _group(self, counts: Counts) -> Group:
        peers = tuple(peer for kind, n in zip(self.kinds, counts, strict=True) for peer in kind[:n])
        return Group(
            counts,
            peers,
            sum(n * field for n, field in zip(counts, self._fields, strict=True)),
            all(self.model.task.peers[peer].has_data for peer in peers),
            sum(n * speed for n, speed in zip(counts, self._speeds, strict=True)),
        )

    def _soonest_alone_s(self) -> float:
        """What is slower than one peer alone is not worth having; infinite where none can train alone."""
        return min((self._alone_s(kind[0]) for kind in self.kinds if kind), default=math.inf) * (1 + 1e-6)

    def _alone_s(self, peer: int) -> float:
        """A round of the whole model on one peer; infinite where that can't be."""
        model, last = self.model, self.model.num_units
        if not model.task.peers[peer].has_data or model.split([peer], 0, last, 1) is None:
            return math.inf
        both = model.task.num_in_a_row * sum(model.stage_s(peer, 0, last, model.task.micro_batch))
        return both + model.task.batches * float(model.update_s([peer], model.parameter_bytes[last]))


def _kinds(model: CostModel) -> tuple[list[list[int]], bool]:
    """Peers by kind, and whether all are among them: only so many kinds fit into one integer. Then some of the fastest
    with samples are taken first, some of those with most memory, and else the fastest."""
    peers = model.task.peers
    linked = {name for pair in model.task.pair_rates for name in (pair.one, pair.other)}
    kinds: dict[object, list[int]] = {}
    for index, peer in sorted(enumerate(peers), key=lambda item: item[1].name):
        kinds.setdefault(replace(peer, name=peer.name if peer.name in linked else ""), []).append(index)
    fastest = sorted(kinds.values(), key=lambda kind: (-_speed(model, kind[0]), peers[kind[0]].name))
    if sum(map(_num_bits, fastest)) <= FIELD_BITS:
        return fastest, True
    largest = sorted(fastest, key=lambda kind: -peers[kind[0]].memory_bytes)[:WITH_MEMORY]
    with_data = [kind for kind in fastest if peers[kind[0]].has_data][:WITH_DATA]
    kept: list[list[int]] = []
    bits = 0
    for kind in (*with_data, *largest, *fastest):
        if kind not in kept and bits + _num_bits(kind) <= FIELD_BITS:
            bits += _num_bits(kind)
            kept.append(kind)
    return [kind for kind in fastest if kind in kept], False


def _num_bits(kind: Sequence[int]) -> int:
    return len(kind).bit_length() + 1


def _speed(model: CostModel, peer: int) -> float:
    """Never below what the peer reaches: the best that it does on any piece at any number of samples, in FLOP/s."""
    work = np.diff(model.work_flops)
    took = np.diff(model.forward_s[peer] + model.backward_s[peer], axis=1)[1:]
    samples = np.arange(1, len(took) + 1, dtype=np.float64)[:, None]
    if (work[None, :] * samples)[took == 0].any():  # work that took no time at all
        return math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = work[None, :] * samples / took
    return float(np.nanmax(rates))
