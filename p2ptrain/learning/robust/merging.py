"""What a gossip merge may change: bounded around the own model, by what honest training is seen to change.

An honest copy is about as far away as training moves the own one in a round. So the distance of a copy is told in such
rounds: for each tensor in what the own rounds changed (their median), and over all tensors as the root of the mean
square. It may be ``REACH`` rounds, or ``REACH`` times the lower median of what partners' latest copies have, which a
minority can't raise. A copy that lies further away counts less, by the square (a redescending form of self-centred
clipping; Karimireddy et al., ICML 2021; He et al., 2022), and so does its mass. It counts alike in all tensors: half of
two models is none. Honest copies lie within, and merge as if this were not there.

With "trimmed-mean" or "median" a merge also takes in the latest copies of other partners, so that there are three.

Invariant: whatever came, a merge moves no further than a copy at the bound would. What merges changed is no part of
what the own rounds changed, so a patient partner can't widen the bound.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque

import torch
from torch import Tensor

from p2ptrain.config import Robust
from p2ptrain.learning.averaging import Indices, State, wide
from p2ptrain.learning.robust.means import FEWEST, robust

REACH = 2.0
"""Of honest copies of digits no single tensor was further away than 1.7 rounds."""
ROUNDS = 5
"""That are remembered: the learning rate falls."""
UNCHANGED = 1e-3
"""Of its norm: what a tensor is taken to change at least, as rounding does."""
MAX_PARTNERS = 64
MAX_LATEST = 6
"""Copies that are kept for "trimmed-mean" and "median"."""


class MergeGuard:
    """Of one peer's part. Give ``toward`` to ``averaging.merge`` between ``begin_merge`` and ``end_merge``."""

    def __init__(self, how: Robust) -> None:
        self.how = how
        self._before: dict[str, Tensor] = {}
        """The float tensors when the round began, moved along with what merges changed since."""
        self._moves: dict[str, deque[float]] = {}
        """By tensor: what whole rounds changed."""
        self._far: OrderedDict[str, float] = OrderedDict()
        """By partner: how far away its latest copy was, in rounds."""
        self._latest: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._partner = ""
        self._factor = 1.0

    # --- the own training ---

    @property
    def is_under_way(self) -> bool:
        """A round has begun, and not ended."""
        return bool(self._before)

    @torch.no_grad()
    def begin_round(self, state: State) -> None:
        self._before = {name: wide(t.detach()).clone() for name, t in state.items() if t.is_floating_point()}

    @torch.no_grad()
    def end_round(self, state: State) -> None:
        for name, before in self._before.items():
            self._moves.setdefault(name, deque(maxlen=ROUNDS)).append(_norm(wide(state[name]) - before))
        self._before = {}

    # --- a merge ---

    @torch.no_grad()
    def begin_merge(self, partner: str, current: State, incoming: State, indices: Indices | None = None) -> float:
        """What share of the copy, and of its mass, counts. ``current``: what the merge will change."""
        far = self._distance(current, incoming, indices or {})
        self._far[partner] = far
        self._far.move_to_end(partner)
        while len(self._far) > MAX_PARTNERS:
            self._far.popitem(last=False)
        seen = sorted(self._far.values())
        typical = seen[(len(seen) - 1) // 2] if len(seen) > 1 else 0.0
        bound = REACH * max(1.0, typical)
        self._partner, self._factor = partner, 1.0 if far <= bound else (bound / far) ** 2
        if self.how in ("trimmed-mean", "median"):
            self._keep(partner, incoming)
        for name in self._before.keys() & current.keys():
            self._before[name] -= current[name]
        return self._factor

    @torch.no_grad()
    def end_merge(self, current: State) -> None:
        """Also after a merge that failed."""
        for name in self._before.keys() & current.keys():
            self._before[name] += current[name]

    def toward(self, name: str, mine: Tensor, theirs: Tensor) -> Tensor:
        """In place of ``theirs``; both are all of the tensor, or the coordinates that came."""
        copies = [copy[name] for partner, copy in self._latest.items() if partner != self._partner and name in copy]
        if 2 + len(copies) >= FEWEST and name in self._latest.get(self._partner, {}):
            values = torch.stack([wide(each) for each in (mine, theirs, *copies)])
            return robust(values, torch.ones(len(values)).to(values), self.how).to(mine.dtype)
        if self._factor == 1:
            return theirs
        return torch.where(theirs == mine, mine, mine + (theirs - mine) * self._factor)  # a mask of minus infinity

    def _keep(self, partner: str, incoming: State) -> None:
        kept = self._latest.setdefault(partner, {})
        kept |= {name: tensor.detach().clone() for name, tensor in incoming.items() if tensor.is_floating_point()}
        self._latest.move_to_end(partner)
        while len(self._latest) > MAX_LATEST:
            self._latest.popitem(last=False)

    def _distance(self, current: State, incoming: State, indices: Indices) -> float:
        """In rounds."""
        squares = []
        for name, mine in current.items():
            if not mine.is_floating_point() or not mine.numel():
                continue
            size = _norm(wide(mine))
            if not math.isfinite(size) and not bool(mine.isfinite().all()):
                continue  # a constant, such as a mask of minus infinity
            at = indices.get(name)
            held = mine if at is None else mine.reshape(-1)[at.to(mine.device, torch.int64)]
            gap = _norm(wide(incoming[name].to(mine.device)) - wide(held))
            squares.append((gap / max(self._own(name, mine), UNCHANGED * size, 1e-12)) ** 2)
        return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0

    def _own(self, name: str, mine: Tensor) -> float:
        """What a round changes; before the first has ended, what it has changed so far."""
        if moves := self._moves.get(name):
            return statistics.median(moves)
        before = self._before.get(name)
        return _norm(wide(mine) - before) if before is not None else 0.0


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
