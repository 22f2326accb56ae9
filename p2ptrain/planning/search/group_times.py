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

from p2ptrain.planning.pipeline.cost import CostModel, Floats
from p2ptrain.planning.pipeline.shares import Ints, Mask, Sharing

MOST_AT_ONCE = 1 << 16
"""Shares of samples that are worked out together."""
SLACK = 1.2
"""Times the limit that is asked for: one that is little higher then needs no other go."""

Peers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """Of one group."""

    forward_s: Floats
    """Of a pass, [depth, run]; places in the depths, and as ``run_at`` says."""
    backward_s: Floats
    update_s: Floats
    """Seconds of the optimizer's step, [run]."""
    limit_s: float
    """No stage of interest takes as long for a round."""


def run_at(stop: int) -> int:
    """The place of the first of the runs that end at this cut; others follow by the cuts where they start."""
    return stop * (stop - 1) // 2


class Timing:
    """Works them out, for these depths of warm-up."""

    def __init__(self, model: CostModel, depths: Sequence[int]) -> None:
        self._model = model
        self._depths = depths
        self._sharing = Sharing(model)
        self.is_proportional = self._sharing.is_proportional
        """Forward and backward apart, too, no split is better."""
        self._stops, self._starts = np.tril_indices(model.num_units + 1, -1)
        self._work = model.work_flops * model.task.micro_batch * model.task.num_in_a_row
        self._parameter_bytes = model.parameter_bytes[self._stops] - model.parameter_bytes[self._starts]

    def times(
        self, groups: Sequence[Peers], flops_per_s: Sequence[float], total_flops_per_s: float, limit_s: float
    ) -> list[GroupTimes]:
        """``flops_per_s``: of each group at most; ``total_flops_per_s``: of all peers that there are."""
        limit_s *= SLACK
        found: dict[int, GroupTimes] = {}
        for together in self._batches(groups):
            peers = np.array([groups[i] for i in together]).T
            speeds = np.array([flops_per_s[i] for i in together])
            update = np.stack([self._model.update_s(groups[i], self._parameter_bytes) for i in together])
            hopeful = self._hopeful(speeds, total_flops_per_s, update, limit_s)
            forward, backward = self._passes(peers, hopeful, limit_s)
            for place, i in enumerate(together):
                found[i] = GroupTimes(forward[place], backward[place], update[place], limit_s)
        return [found[i] for i in range(len(groups))]

    def _batches(self, groups: Sequence[Peers]) -> Iterator[list[int]]:
        """Places of groups of as many peers, no more than fit."""
        order = sorted(range(len(groups)), key=lambda i: len(groups[i]))
        for num_peers, places in itertools.groupby(order, key=lambda i: len(groups[i])):
            most = max(1, MOST_AT_ONCE // (num_peers * len(self._starts)))
            left = list(places)
            while left:
                yield left[:most]
                left = left[most:]

    def _passes(self, peers: Ints, hopeful: Mask, limit_s: float) -> tuple[Floats, Floats]:
        """Forward and backward, [group, depth, run]; ``peers`` [peer, group], ``hopeful`` [group, run]."""
        sharing, num, samples = self._sharing, self._model.task.num_in_a_row, self._model.task.micro_batch
        forward = np.full((peers.shape[1], len(self._depths), len(self._starts)), np.inf)
        backward = forward.copy()
        group, runs = np.nonzero(hopeful)
        starts, stops = self._starts[runs], self._stops[runs]
        if sharing.is_proportional:
            ends = np.zeros(peers.shape[1], dtype=np.int64), np.full(peers.shape[1], self._model.num_units)
            shares = sharing.shares(peers, *ends, np.full(peers.shape, samples))[:, group]
        peers = peers[:, group]
        if not sharing.is_proportional:
            shares = sharing.shares(peers, starts, stops, np.full(peers.shape, samples))
        there, back = sharing.slowest(peers, starts, stops, shares)
        forward[group, :, runs], backward[group, :, runs] = there[:, None], back[:, None]
        lacking = [
            np.flatnonzero(~sharing.fits(peers, starts, stops, shares, np.full(len(runs), depth)))
            for depth in self._depths
        ]
        these, at = np.concatenate(lacking), np.repeat(np.arange(len(lacking)), [len(each) for each in lacking])
        forward[group[these], at, runs[these]] = np.inf
        within = (num * (there + back) < limit_s)[these]
        these, at = these[within], at[within]  # there others take what one can't hold
        ends = starts[these], stops[these]
        caps = sharing.caps(peers[:, these], *ends, np.array(self._depths)[at])
        fewer = sharing.shares(peers[:, these], *ends, caps)
        place = group[these], at, runs[these]
        forward[place], backward[place] = sharing.slowest(peers[:, these], *ends, fewer)
        return forward, backward

    def _hopeful(self, flops_per_s: Floats, total_flops_per_s: float, update: Floats, limit_s: float) -> Mask:
        """[group, run]: whether it may do that within the limit, and the other peers all the rest."""
        if not math.isfinite(limit_s) or not math.isfinite(total_flops_per_s):
            return np.ones(update.shape, dtype=np.bool_)
        own, all_work = self._work[self._stops] - self._work[self._starts], self._work[-1]
        others = np.maximum(0.0, total_flops_per_s - flops_per_s)[:, None]
        left = limit_s * (1 + 1e-6) - self._model.task.batches * update
        hopeful: Mask = own <= left * flops_per_s[:, None]
        hopeful &= all_work - own <= limit_s * (1 + 1e-6) * others + 1e-9 * all_work
        return hopeful
