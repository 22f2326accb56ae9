"""The samples that a peer of a pipeline's first stage draws, one share of a micro-batch after the other.

Invariant: what is drawn follows from (job seed, peer name, samples drawn before) alone. Each pass is a permutation of
the peer's own samples, so however many are drawn at once, each comes once a pass.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from p2ptrain.errors import DataError
from p2ptrain.ids import lot
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.data.source import Indices


class SampleStream:
    """Call ``draw``; set ``drawn`` to go on from elsewhere."""

    def __init__(self, data: Dataset, *, seed: int, peer_name: str, augment: bool) -> None:
        if not len(data):
            raise DataError("a peer of the pipeline's first stage has no samples; give it data, or let it hold none")
        self.drawn = 0
        """Samples so far, in all passes."""
        self._data = data
        self._augment = augment
        self._seed = [seed, lot(peer_name, 8)]
        self._pass = -1
        self._order: Indices = np.empty(0, np.int64)

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """The next samples, x ``[num, ...]`` and y ``[num]`` or ``[num, T]``."""
        chosen = self._chosen(num)
        # The second generator is the samples' own: how they are augmented must not hang on what was drawn before them.
        rng = np.random.default_rng([*self._seed, self.drawn, 1])
        self.drawn += num
        if not self._augment:
            return self._data.tensors(chosen)
        return next(self._data.subset(chosen).batches(rng, num, augment=True))

    def _chosen(self, num: int) -> Indices:
        parts: list[Indices] = []
        at, left = self.drawn, num
        while left:
            number, offset = divmod(at, len(self._data))
            if number != self._pass:
                self._order = np.random.default_rng([*self._seed, number]).permutation(len(self._data))
                self._pass = number
            parts.append(self._order[offset : offset + left])
            at, left = at + len(parts[-1]), left - len(parts[-1])
        return np.concatenate(parts)
