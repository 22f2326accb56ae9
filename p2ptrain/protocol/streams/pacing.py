"""Stage messages held back so that a neighbour gets no more of the link than a plan grants it.

A virtual clock for each neighbour (GCRA; ITU-T I.371): a message may go once the clock is no further ahead than a
burst, and puts the clock ahead by its size over the rate. So a neighbour that was idle may catch up a little, no more.

Invariant: messages to one neighbour keep their order; who is granted nothing in particular is not held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER

BURST_S = 0.05
"""So much a neighbour may be ahead of its rate; a message that is longer goes in one piece all the same."""

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    bytes_per_s: float
    clock: float = 0.0
    queue: deque[tuple[T, int]] = field(default_factory=deque)

    def due(self) -> float:
        """When the first that waits may go."""
        return self.clock - BURST_S if self.queue else NEVER


class Pacing(Generic[T]):
    """``rates``: bytes/s by neighbour."""

    def __init__(self, rates: Mapping[PeerId, float] | None = None) -> None:
        self._lanes: dict[PeerId, _Lane[T]] = {peer: _Lane(rate) for peer, rate in (rates or {}).items() if rate > 0}
        self.queued_bytes = 0
        """Held back, to all."""

    def add(self, to: PeerId, item: T, num_bytes: int, now: float) -> list[T]:
        """What may go now of what is for ``to``, this one the last."""
        lane = self._lanes.get(to)
        if lane is None:
            return [item]
        lane.queue.append((item, num_bytes))
        self.queued_bytes += num_bytes
        return self._released(lane, now)

    def due(self, now: float) -> list[T]:
        """What may go by now."""
        return [item for lane in self._lanes.values() for item in self._released(lane, now)]

    def next_deadline(self) -> float:
        return min((lane.due() for lane in self._lanes.values()), default=NEVER)

    def _released(self, lane: _Lane[T], now: float) -> list[T]:
        released = []
        while lane.queue and lane.due() <= now:
            item, num_bytes = lane.queue.popleft()
            self.queued_bytes -= num_bytes
            lane.clock = max(lane.clock, now) + num_bytes / lane.bytes_per_s
            released.append(item)
        return released
