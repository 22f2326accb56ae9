"""When mDNS is asked again.

Invariant: often while anybody is missing, at once (but not without pause) when somebody has just been lost, and now and
then in any case: two halves of a group miss nobody.
"""

from __future__ import annotations

import random

MISSING_S = (30.0, 60.0)
"""Between two askings while anybody is missing: drawn anew each time, so that devices don't ask in step."""
QUIET_S = (240.0, 360.0)
"""While nobody is known to be missing."""
PAUSE_S = 10.0
"""At least, between two askings: each announces for two seconds."""


class Asking:
    """``now`` at the start: the first question has just been asked."""

    def __init__(self, now: float, rng: random.Random) -> None:
        self._rng = rng
        self._asked_at = now
        self._num_missing = 0
        self._missing_s = rng.uniform(*MISSING_S)
        self._quiet_s = rng.uniform(*QUIET_S)
        self._lost = False

    def is_due(self, num_missing: int, now: float) -> bool:
        """Whether to ask now, with so many of the group known to be missing. True = it is asked."""
        self._lost = self._lost or num_missing > self._num_missing > 0 or (num_missing > 0 == self._num_missing)
        self._num_missing = num_missing
        wait_s = PAUSE_S if self._lost else self._missing_s if num_missing else self._quiet_s
        if now - self._asked_at < wait_s:
            return False
        self._asked_at, self._lost = now, False
        self._missing_s, self._quiet_s = self._rng.uniform(*MISSING_S), self._rng.uniform(*QUIET_S)
        return True
