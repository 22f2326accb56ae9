"""How many samples a second are trained on: all figures from one clock, none over less time than says something."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL_S = 0.5
"""Figures in the middle of a round are over at least so much time."""


class Pace:
    """``num_samples`` always means: so far, in all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin(0)

    def begin(self, num_samples: int) -> None:
        """Training begins, or goes on from a snapshot."""
        self._round = self._last = (self._clock(), num_samples)

    @property
    def is_due(self) -> bool:
        """Whether ``progress`` has enough time to tell of."""
        return self._clock() - self._last[0] >= INTERVAL_S

    def progress(self, num_samples: int) -> float:
        """Samples a second since the last figure."""
        before, self._last = self._last, (self._clock(), num_samples)
        return _rate(before, self._last)

    def round_ended(self, num_samples: int) -> float:
        """Samples a second over the whole round."""
        before = self._round
        self._round = self._last = (self._clock(), num_samples)
        return _rate(before, self._last)


def _rate(before: tuple[float, int], after: tuple[float, int]) -> float:
    return (after[1] - before[1]) / max(after[0] - before[0], 1e-6)
