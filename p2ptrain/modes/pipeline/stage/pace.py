"""How fast a group's batches go by, as one of its peers sees it."""

from __future__ import annotations

import math
import statistics
from collections import deque

LOOK_S = 1.0
"""Between two looks at least."""
NUM_WARM_UP, NUM_TYPICAL = 3, 15
"""Batches of a plan: the first ones, which don't count, and how many more a typical one takes to be known.

More than what a device takes to tell that it is slow: else all of the pipeline would be taken for slower than planned.
"""
NUM_RECENT = 50


class Pace:
    """By the newest step that is known of."""

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None
        self._from_step = 0
        self.seconds = 0.0
        """How long a batch took lately; 0 = not known."""
        self.is_known = False
        """Whether that is of the plan in force."""
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        """Seconds of each batch under the plan in force."""
        self._num_seen = self._num_said = 0

    def begin(self, from_step: int) -> None:
        """Another plan is in force, from this step on. Its first batch doesn't count: peers wait for their blocks."""
        self._from_step, self._since, self.is_known = from_step, None, False
        self._recent.clear()
        self._num_seen = self._num_said = 0

    def seen(self, step: int, now: float) -> bool:
        """Whether ``typical_s`` is worth a look: for the first time, or after as many batches more."""
        if self._since is None or step < self._since[0]:
            self._since = (step, now) if step > self._from_step else None
        elif step > self._since[0] and now - self._since[1] >= LOOK_S:
            num = step - self._since[0]
            self.seconds, self.is_known = (now - self._since[1]) / num, True
            self._since = (step, now)
            self._num_seen += num
            if self._num_seen > NUM_WARM_UP:
                self._recent.extend([self.seconds] * min(num, NUM_RECENT))
        if len(self._recent) < NUM_TYPICAL or self._num_seen - self._num_said < NUM_TYPICAL:
            return False
        self._num_said = self._num_seen
        return True

    @property
    def typical_s(self) -> float:
        """The median batch under the plan in force, so that a stall does not count; 0 = too few."""
        return statistics.median(self._recent) if len(self._recent) >= NUM_TYPICAL else 0.0

    def steps_in(self, seconds: float) -> int:
        """Batches that may be done by then, generously."""
        return math.ceil(seconds / self.seconds) + 1 if self.seconds else 2
