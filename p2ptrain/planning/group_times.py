"""What groups of peers take for every run of blocks: groups of as many peers are worked out together.

Invariant: seconds are those of the split of samples that lets the slowest peer end soonest within memory; infinite
where there is none, or no hope that a plan with it ends within the limit. Deeper warm-up keeps more activations, so
they never fall with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2ptrain.planning.pipeline_cost import CostModel, Floats
from p2ptrain.planning.pipeline_shares import Ints, Sharing

MOST_AT_ONCE = 1 << 20
"""Shares of samples that are worked out together."""
SLACK = 1.2
"""Times the limit that is asked for: one that is little higher then needs no other go."""

Peers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """Of one group."""

    forward_s: Floats
    """Of a pass, [stop, depth, start]; places in the model's cuts, and in the depths."""
    backward_s: Floats
    update_s: Floats
    """[start, stop]"""
    limit_s: float
    """No stage of interest takes as long for a round."""


class Timing:
    """Works them out, for these depths of warm-up."""

    def __init__(self, model: CostModel, depths: Sequence[int]) -> None:
        self._model = model
        self._depths = depths
        self._sharing = Sharing(model)
        self.is_proportional = self._sharing.is_proportional
        """Forward and backward apart, too, no split is better."""
        self._starts, self._stops = np.triu_indices(model.num_units + 1, 1)
        self._work = model.work_flops * model.task.micro_batch * model.task.num_in_a_row
        self._spans = model.parameter_bytes[None, :] - model.parameter_bytes[:, None]

    def times(
        self, groups: Sequence[Peers], flops_per_s: Sequence[float], total_flops_per_s: float, limit_s: float
    ) -> list[GroupTimes]:
        """``flops_per_s``: of each group at most; ``total_flops_per_s``: of all peers that there are."""
        limit_s *= SLACK
        found: dict[int, GroupTimes] = {}
        for together in self._batches(groups):
            peers = np.array([groups[i] for i in together]).T
            speeds = np.array([flops_per_s[i] for i in together])
            forward, backward = self._passes(peers, speeds, total_flops_per_s, limit_s)
            for place, i in enumerate(together):
                update_s = self._model.update_s(groups[i], self._spans)
                found[i] = GroupTimes(forward[place], backward[place], update_s, limit_s)
        return [found[i] for i in range(len(groups))]

    def _batches(self, groups: Sequence[Peers]) -> Iterator[list[int]]:
        """Places of groups of as many peers, no more than fit."""
        order = sorted(range(len(groups)), key=lambda i: len(groups[i]))
        for num_peers, places in itertools.groupby(order, key=lambda i: len(groups[i])):
            most = max(1, MOST_AT_ONCE // (num_peers * len(self._depths) * len(self._starts)))
            left = list(places)
            while left:
                yield left[:most]
                left = left[most:]

    def _passes(
        self, peers: Ints, flops_per_s: Floats, total_flops_per_s: float, limit_s: float
    ) -> tuple[Floats, Floats]:
        """Forward and backward, [group, stop, depth, start]; ``peers`` [peer, group]."""
        sharing, size = self._sharing, self._model.num_units + 1
        num, samples = self._model.task.num_in_a_row, self._model.task.micro_batch
        forward = np.full((peers.shape[1], size, len(self._depths), size), np.inf)
        backward = forward.copy()
        group, starts, stops = self._hopeful(peers, flops_per_s, total_flops_per_s, limit_s)
        if sharing.is_proportional:
            ends = np.zeros(peers.shape[1], dtype=np.int64), np.full(peers.shape[1], size - 1)
            shares = sharing.shares(peers, *ends, np.full(peers.shape, samples))[:, group]
        peers = peers[:, group]
        if not sharing.is_proportional:
            shares = sharing.shares(peers, starts, stops, np.full(peers.shape, samples))
        there, back = sharing.slowest(peers, starts, stops, shares)
        forward[group, stops, :, starts], backward[group, stops, :, starts] = there[:, None], back[:, None]
        within = num * (there + back) < limit_s
        for at, depth in enumerate(self._depths):
            depths = np.full(len(group), depth)
            lacking = ~sharing.fits(peers, starts, stops, shares, depths)
            forward[group[lacking], stops[lacking], at, starts[lacking]] = np.inf
            run = np.flatnonzero(lacking & within)  # others hold what these can't
            few = peers[:, run], starts[run], stops[run]
            fewer = sharing.shares(*few, sharing.caps(*few, depths[run]))
            place = group[run], stops[run], at, starts[run]
            forward[place], backward[place] = sharing.slowest(*few, fewer)
        return forward, backward

    def _hopeful(
        self, peers: Ints, flops_per_s: Floats, total_flops_per_s: float, limit_s: float
    ) -> tuple[npt.NDArray[np.intp], Ints, Ints]:
        """Group, start and stop of the runs that it may do within the limit, and the other peers all the rest."""
        own, all_work = self._work[self._stops] - self._work[self._starts], self._work[-1]
        hopeful = np.ones((len(flops_per_s), len(own)), dtype=np.bool_)
        if math.isfinite(limit_s) and math.isfinite(total_flops_per_s):
            others = np.maximum(0.0, total_flops_per_s - flops_per_s)[:, None]
            hopeful = own <= limit_s * (1 + 1e-6) * flops_per_s[:, None]
            hopeful &= all_work - own <= limit_s * (1 + 1e-6) * others + 1e-9 * all_work
        group, run = np.nonzero(hopeful)
        starts, stops = self._starts[run], self._stops[run]
        if math.isfinite(limit_s) and not self.is_proportional:
            least = self._sharing.seconds(peers[:, group], np.array(1), starts, stops).max(axis=0)
            kept = self._model.task.num_in_a_row * least < limit_s * (1 + 1e-6)
            group, starts, stops = group[kept], starts[kept], stops[kept]
        return group, starts, stops
