"""How long a plan that works stays before it may be changed for a faster one.

Invariant: a plan that does not work any more is replaced at once. Changing one costs a pause and blocks on their way,
and on a device that is now busy, now not, the next change would follow soon: so after each change that only promised
more speed the group waits, and twice as long after the next one.
"""

from __future__ import annotations

from p2ptrain.core.plan import Plan
from p2ptrain.protocol.machine import NEVER

REST_S, MOST_REST_S = 30.0, 600.0
"""After the first change, and at most. Without a change for as long as the most, the next one is the first again."""
MAX_DOUBLED = 10


class Calm:
    """By the plans that were in force here."""

    def __init__(self) -> None:
        self._num_changes = 0
        self._changed_at = -NEVER
        self._until = -NEVER
        self._now = 0.0

    @property
    def is_over(self) -> bool:
        """Whether a faster plan may take the place of the one in force, by the time that was seen last."""
        return self._now >= self._until

    def adopted(self, old: Plan | None, new: Plan, now: float) -> None:
        """``new`` is in force, in place of ``old``."""
        self._now = now
        if old is None or new.parent != old.hash or not {p.peer for p in new.peers}.issuperset(old.trainers()):
            return  # the first one, or one for want of a peer
        self._num_changes = self._num_changes + 1 if now - self._changed_at < MOST_REST_S else 1
        self._changed_at = now
        self._until = now + min(REST_S * 2.0 ** min(self._num_changes - 1, MAX_DOUBLED), MOST_REST_S)

    def ends(self, now: float) -> bool:
        """Whether the wait is just over, and a faster plan is worth a look."""
        before, self._now = self._now, now
        return before < self._until <= now
