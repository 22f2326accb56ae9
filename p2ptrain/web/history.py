"""How loss and accuracy went, as the group's records told it, for as long as somebody has been looking.

Invariant: bounded: so many peers, so many points of each; who is full loses every second point and no end of its curve.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from p2ptrain.core.looks.figures import looks_of_group
from p2ptrain.ids import JobId, PeerId
from p2ptrain.wire.messages import Record

MAX_POINTS, MAX_PEERS, MAX_NEWS = 400, 64, 1024
WHOLE = PeerId("")
"""In place of a peer: the whole model, as the group looked at it last."""


class Point(NamedTuple):
    """What a peer said: seconds since 1970, the job that it was about, and how far it was then."""

    time: float
    round: int
    samples: int
    loss: float | None
    accuracy: float | None
    """On its own validation samples; None = not known."""


class History:
    def __init__(self) -> None:
        self._points: dict[PeerId, list[Point]] = {}
        self._news: deque[tuple[PeerId, Point]] = deque(maxlen=MAX_NEWS)
        self.number = 0
        """Points so far: a place in the order of news."""
        self._whole_from = 0
        """News from before it are no longer all there are: points were thinned out, or another job began."""
        self._job = ""

    def add(self, records: Sequence[Record], job: str, now: float) -> None:
        """What the records of those who are here say now; of another job than before, all begins anew."""
        if job != self._job:
            self._job, self._whole_from = job, self.number + 1
            self._points.clear()
            self._news.clear()
            self.number += 1
        for record in records:
            if record.job == job and job:
                self._add_record(record, now)
        samples = max((record.samples for record in records), default=0)
        for look in looks_of_group(records, JobId(job))[-1:] if job else ():
            self._add(WHOLE, Point(now, look.round, samples, look.loss, look.accuracy))

    def _add_record(self, record: Record, now: float) -> None:
        loss = record.loss if math.isfinite(record.loss) and record.loss != 0 else None
        accuracy = record.accuracy if record.accuracy >= 0 else None
        if record.step and not (loss is None and accuracy is None):
            self._add(record.peer, Point(now, record.round, record.samples, loss, accuracy))

    def _add(self, peer: PeerId, point: Point) -> None:
        points = self._points.get(peer)
        if points is None:
            if len(self._points) >= MAX_PEERS:
                return
            points = self._points[peer] = []
        elif _news_of(peer, point) == _news_of(peer, points[-1]):
            return
        points.append(point)
        self._news.append((peer, point))
        self.number += 1
        if len(points) > MAX_POINTS:
            points[:] = [*points[:-1:2], points[-1]]

    def since(self, number: int) -> tuple[bool, list[tuple[PeerId, Point]]]:
        """All points, and True, or only those that came after ``number`` of them."""
        if self._whole_from <= number and self.number - number <= len(self._news):
            return False, list(self._news)[len(self._news) - (self.number - number) :]
        return True, [(peer, point) for peer, points in self._points.items() for point in points]


def _news_of(peer: PeerId, point: Point) -> tuple[object, ...]:
    """What of a point is news: samples go on while the group's last look at its model is the same."""
    return (point.round, point.accuracy, point.loss) if peer == WHOLE else point[1:]
