"""The groups of peers that may become a stage, and what each takes for each run of blocks: the search's ground.

Peers that differ in nothing but their names are of one *kind*, unless a link of theirs has a rate of its own; a group
is so many of each kind. So sixteen equal boards are sixteen groups and not 65,535. Rooms whose groups are few are
searched with all of them; others with a selection: every single peer, peers of like speed together, and the fastest n
(a slow peer sets the pace of its group). The search begins with the selection anyway: its first plan sets a limit, and
what can't be done within it is not worked out for all groups.

How many peers of each kind are taken is one integer with a field for each kind, wide enough for one carry:
``taken & group.guard`` says at once for many partial plans whether a group is still to be had.

Invariant: ``seconds`` are those of the split of samples that lets the slowest peer end soonest within memory; infinite
where there is none, or no hope that a plan with it ends within the limit. Deeper warm-up keeps more activations, so
they never fall with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2ptrain.planning.pipeline_cost import CostModel, Floats
from p2ptrain.planning.pipeline_plan import PipelinePlan
from p2ptrain.planning.pipeline_shares import Ints, Mask, Sharing

MAX_GROUPS = 255
"""So many groups are all tried; of more, a selection."""
MAX_RUN = 4
"""Peers of like speed in a group of the selection."""
FIELD_BITS = 62

Counts = tuple[int, ...]
"""Peers of each kind."""


@dataclass(frozen=True, slots=True)
class Group:
    """So many peers of each kind; ``peers`` are the first ones of each kind, which stand for all."""

    counts: Counts
    peers: tuple[int, ...]
    code: int
    """To add to the code of what is taken."""
    has_data: bool
    flops_per_s: float
    """Together; the most that they may reach."""
    link_rate: float
    """Of the slowest link within it."""


class Ground:
    """All that the search looks up: kinds, groups, and their times, [group, start, stop] for each warm-up depth."""

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
        self.total_speed = sum(speed * len(kind) for speed, kind in zip(self._speeds, self.kinds, strict=True))
        counts = self._all_counts()
        deepest = min(model.task.most_ahead, 2 * max_stages - 1)
        usual = {1, 2, *range(3, deepest, 2), deepest}  # 2(P-p)-1 is odd
        self.depths = tuple(k for k in range(1, deepest + 1) if counts is not None or k in usual)
        self._sharing = Sharing(model)
        self.covers_all = has_all_kinds and counts is not None and self._sharing.is_proportional
        """Every plan worth having is made of these groups and splits. With measured times a split that is best in sum
        may not be best forward and backward apart."""
        self._single_s = min(self._alone_s(kind[0]) for kind in self.kinds) * (1 + 1e-6)
        self._known: dict[Counts, tuple[Group, Floats, Floats, Floats]] = {}
        self.counts = counts or self._some_counts()
        """Of the groups that the search chooses from, ..."""
        self.use(self._some_counts(), math.inf)

    def use(self, counts: Sequence[Counts], limit_s: float) -> None:
        """Make these the groups to choose from. No stage of interest takes ``limit_s`` for a round."""
        limit_s = min(limit_s, self._single_s)
        spans = self.model.parameter_bytes[None, :] - self.model.parameter_bytes[:, None]
        for each in counts:
            if each not in self._known:
                group = self._group(each)
                self._known[each] = (group, *self._seconds(group, limit_s), self.model.update_s(group.peers, spans))
        groups, forward, backward, update = zip(*(self._known[each] for each in counts), strict=True)
        self.groups: tuple[Group, ...] = groups
        self.forward_s: Floats = np.stack(forward, axis=1)
        """[depth, group, start, stop]"""
        self.backward_s: Floats = np.stack(backward, axis=1)
        self.update_s: Floats = np.stack(update)
        """[group, start, stop]"""
        self.link_rates = self._link_rates()
        """Between two groups, [group, group]; what it says of groups that share peers means nothing."""
        self.links_as_well: list[list[bool]] = self._links_as_well().tolist()
        """[one, other]: whether the one's links to all others are no slower than the other's."""

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
        """The groups of a plan, those with one peer more or less, and every single peer."""
        kind_of = {self.model.task.peers[peer].name: k for k, kind in enumerate(self.kinds) for peer in kind}
        found = {tuple(int(k == single) for k in range(len(self.kinds))) for single in range(len(self.kinds))}
        for stage in plan.stages:
            counts = [0] * len(self.kinds)
            for peer in stage.peers:
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

    def _some_counts(self) -> list[Counts]:
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
            self.model.link_rate(peers),
        )

    def _alone_s(self, peer: int) -> float:
        """A round of the whole model on one peer; infinite where that can't be."""
        model, last = self.model, self.model.num_units
        if not model.task.peers[peer].has_data or model.split([peer], 0, last, 1) is None:
            return math.inf
        both = model.task.num_in_a_row * sum(model.stage_s(peer, 0, last, model.task.micro_batch))
        return both + model.task.batches * float(model.update_s([peer], model.parameter_bytes[last]))

    def _hopeful(self, group: Group, limit_s: float) -> tuple[Ints, Ints]:
        """Starts and stops of the runs that the group may do within the limit, and the other peers all the rest."""
        model, task = self.model, self.model.task
        starts, stops = np.triu_indices(model.num_units + 1, 1)
        if not math.isfinite(limit_s) or not math.isfinite(self.total_speed):
            return starts, stops
        own = (model.work_flops[stops] - model.work_flops[starts]) * task.micro_batch * task.num_in_a_row
        rest = model.work_flops[-1] * task.micro_batch * task.num_in_a_row - own
        speed_left = max(0.0, self.total_speed - group.flops_per_s)
        slack = limit_s * (1 + 1e-6)
        hopeful = (own <= slack * group.flops_per_s) & (rest <= slack * speed_left + 1e-9 * own.max())
        starts, stops = starts[hopeful], stops[hopeful]
        least = self._sharing.seconds(np.array(group.peers)[:, None], np.array(1), starts, stops).max(axis=0)
        hopeful = task.num_in_a_row * least < slack
        return starts[hopeful], stops[hopeful]

    def _seconds(self, group: Group, limit_s: float) -> tuple[Floats, Floats]:
        """Forward and backward seconds of the group, [depth, start, stop]; infinite where there is no hope."""
        sharing, peers = self._sharing, np.array(group.peers)
        num, samples = self.model.task.num_in_a_row, self.model.task.micro_batch
        size = self.model.num_units + 1
        forward = np.full((len(self.depths), size, size), np.inf)
        backward = forward.copy()
        starts, stops = self._hopeful(group, limit_s)
        if not len(starts):
            return forward, backward
        if sharing.is_proportional:
            whole = sharing.shares(peers, np.array([0]), np.array([size - 1]), np.full((len(peers), 1), samples))
            shares = np.broadcast_to(whole, (len(peers), len(starts)))
        else:
            shares = sharing.shares(peers, starts, stops, np.full((len(peers), len(starts)), samples))
        there, back = sharing.slowest(peers, starts, stops, shares)
        forward[:, starts, stops], backward[:, starts, stops] = there, back
        caps = sharing.caps(peers, starts, stops, self.depths)
        at, run = np.nonzero((shares > caps).any(axis=1))
        forward[at, starts[run], stops[run]] = np.inf
        within = (num * (there + back) < limit_s)[run]
        at, run = at[within], run[within]
        at_starts, at_stops = starts[run], stops[run]
        fewer = sharing.shares(peers, at_starts, at_stops, caps[at, :, run].T)
        slower = sharing.slowest(peers, at_starts, at_stops, fewer)
        forward[at, at_starts, at_stops], backward[at, at_starts, at_stops] = slower
        return forward, backward


def _kinds(model: CostModel) -> tuple[list[list[int]], bool]:
    """Peers by kind, and whether all are among them: only so many kinds fit into one integer, the fastest first."""
    linked = {name for pair in model.task.pair_rates for name in (pair.one, pair.other)}
    kinds: dict[object, list[int]] = {}
    for index, peer in sorted(enumerate(model.task.peers), key=lambda item: item[1].name):
        kinds.setdefault(replace(peer, name=peer.name if peer.name in linked else ""), []).append(index)
    fastest = sorted(kinds.values(), key=lambda kind: (-_speed(model, kind[0]), model.task.peers[kind[0]].name))
    kept: list[list[int]] = []
    bits = 0
    for kind in fastest:
        bits += len(kind).bit_length() + 1
        if bits <= FIELD_BITS:
            kept.append(kind)
    return kept, len(kept) == len(fastest)


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
