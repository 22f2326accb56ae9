"""How long to wait for a thing, learnt from how long it took.

Invariant: a timeout lies between a floor and a ceiling, and grows with each thing that did not come in time.
"""

from __future__ import annotations

import statistics
from collections import deque


class Patience:
    """How long to wait for a thing, learnt from how long it took."""

    def __init__(self, floor_s: float, ceiling_s: float) -> None:
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._seen: deque[float] = deque(maxlen=31)
        self._back_off = 1.0

    def add(self, duration_s: float) -> None:
        self._seen.append(duration_s)
        self._back_off = max(1.0, self._back_off / 2)

    def timed_out(self) -> None:
        self._back_off = min(64.0, self._back_off * 2)

    def timeout_s(self) -> float:
        if len(self._seen) < 3:
            return min(self._ceiling_s, max(self._floor_s, self._ceiling_s / 3 * self._back_off))
        median = statistics.median(self._seen)
        deviation = 1.4826 * statistics.median(abs(duration - median) for duration in self._seen)
        timeout = (median + 6 * max(deviation, median / 2)) * self._back_off
        return min(self._ceiling_s, max(self._floor_s, timeout))
