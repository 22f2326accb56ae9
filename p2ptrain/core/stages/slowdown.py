"""How many times as slow as its profile a device is, and when its group is told of it.

Invariant: a change is told once two looks in a row, and all for ``APART_S``, show it. One alone may be a short stall,
or half of it from before the change, and a plan made by it would soon be followed by another.

    trains --looks every few batches--> trains
    trains, told to be slow --no stage--> stands by --``REST_S``, then twice as long--> looks again
    stands by --a look differs--> looks again ``SOON_S`` later --both agree--> told
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from p2ptrain.protocol.machine import NEVER

STEP = 0.15
"""Relative change that is worth telling the group."""
FULLY_BUSY = 0.9
"""Who is busy for this share of the time has no pauses to speak of."""
PASS_S = 0.005
"""Added to both sides of that for each pass: one that is much shorter is overhead most of all, and no measure of the
device."""

WARM_UP = 2
"""Batches of a stage that don't count: they make kernels ready and take memory for the first time."""
FIRST_LOOK = 10
"""Batches after these until the time of a unit is first compared with the profile, and from then on as often."""
SECOND_LOOK = 4
"""Batches until the next look where one differs from that before: whether it is a change is soon known."""

APART_S, MAX_LOOKS = 3.0, 16
REST_S, MOST_REST_S, SOON_S = 120.0, 3600.0, 10.0
"""Of a device that stands by because it was slow, between looks at whether it still is: longer each time, for a group
that takes it in again only to find it slow."""


def slowdown_of(seconds: float, expected_s: float, passing_s: float, busy: float) -> float:
    """How many times as long as expected work took, that the node's work for stage messages may have held up or not.

    That is planned for apart: all of it at most is no slowdown of the device. Faster than expected counts only of a
    device that was ``busy`` for nearly all of the time: with pauses in between it is cooler, or has more of a share of
    a core left, than it would have with more to do.
    """
    if expected_s <= 0:
        return 1.0
    if seconds < expected_s:
        return seconds / expected_s if busy >= FULLY_BUSY else 1.0
    return max(1.0, seconds / (expected_s + passing_s))


def differs(one: float, other: float) -> bool:
    """Whether two slowdowns, both above zero, are worth telling apart."""
    return abs(math.log(one / other)) >= math.log1p(STEP)


class SlowdownReport:
    """What the group knows of a device's slowdown."""

    def __init__(self) -> None:
        self.told = 1.0
        self.look_at = NEVER
        """When to look again, as nobody trains here who would."""
        self._looks: deque[float] = deque(maxlen=MAX_LOOKS)
        """The last ones in a row that differ from what is told, all to the same side."""
        self._since = 0.0
        """The first of them."""
        self._rest_s = REST_S

    def stand_by(self, now: float) -> None:
        """There is no stage for this device, for now."""
        self.look_at = now + self._rest_s if self.told > 1 else NEVER

    def train(self) -> None:
        self.look_at = NEVER

    def is_due(self, now: float) -> bool:
        """Whether to look now; then the next look is later."""
        if now < self.look_at:
            return False
        self.look_at = now + self._rest_s
        self._rest_s = min(2 * self._rest_s, MOST_REST_S)
        return True

    def seen(self, slowdown: float, now: float) -> bool:
        """Whether the group is to be told; ``told`` is then the new figure. One that makes no sense is passed over."""
        if slowdown <= 0 or not math.isfinite(slowdown):
            return False
        if not differs(slowdown, self.told):
            self._looks.clear()
            return False
        if self.look_at != NEVER:
            self.look_at = now + SOON_S
        if self._looks and (slowdown > self.told) != (self._looks[0] > self.told):
            self._looks.clear()
        if not self._looks:
            self._since = now
        self._looks.append(slowdown)
        if len(self._looks) < 2 or now - self._since < APART_S:
            return False
        self.told = statistics.median_low(list(self._looks)[1:])
        self._looks.clear()
        if self.look_at != NEVER:
            self.stand_by(now)
        return True
