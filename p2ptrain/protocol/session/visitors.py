"""Who of the admitted only visits, and which visitors have to go.

A visitor is an admitted key that is no member: an observer (a status, a harvest), or a peer whose record has not come
yet. Membership never speaks of visitors, so nobody else would notice that one is gone.

Invariant: a visitor that says nothing for ``VISITOR_SILENT_S`` has to go, time in which this process was not running
itself left out; and of those that have been here for longer than it takes a peer's record to come, the longest silent
have to go when there are more than ``max_visitors``. A member never has to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.machine import NEVER

VISITOR_SILENT_S = 15.0
"""An observer asks every second, and so does a peer that lacks the record of another."""
NEWCOMER_S = 10.0
"""Everybody starts as a visitor: whoever comes into a large group meets more than ``MAX_VISITORS`` of them at once."""
MAX_VISITORS = 32
LOOK_S = 1.0
"""Between two looks; whatever is above twice as long was no silence of others, but a stall of ours."""


class Visitors:
    """Of all admitted keys, since when they are here and when they were last heard; ``is_member`` tells them apart."""

    def __init__(self, is_member: Callable[[PeerId], bool], max_visitors: int = MAX_VISITORS) -> None:
        self._is_member = is_member
        self._max_visitors = max_visitors
        self._since: dict[bytes, float] = {}
        self._heard: OrderedDict[bytes, float] = OrderedDict()
        """The longest silent first. These times, too, are seconds that this process was awake."""
        self._awake_s = 0.0
        self._looked_at = 0.0

    def is_visitor(self, key: bytes) -> bool:
        return not self._is_member(peer_id(key))

    def next_deadline(self) -> float:
        return self._looked_at + LOOK_S if self._heard else NEVER

    def admitted(self, key: bytes, now: float) -> None:
        if not self._heard:
            self._looked_at = now
        self._since[key] = self._awake_s
        self.heard(key)

    def heard(self, key: bytes) -> None:
        """It said something."""
        self._heard[key] = self._awake_s
        self._heard.move_to_end(key)

    def gone(self, key: bytes) -> None:
        self._since.pop(key, None)
        self._heard.pop(key, None)

    def longest_silent(self) -> bytes | None:
        """Who gives way if somebody has to; ``None``: there are only members."""
        return next(self._visitors(), None)

    def to_go(self, now: float) -> list[tuple[bytes, str]]:
        """Who has to go now, and why."""
        if now < self.next_deadline():
            return []
        self._awake_s += min(now - self._looked_at, 2 * LOOK_S)
        self._looked_at = now
        visitors = list(self._visitors())
        silent = [key for key in visitors if self._awake_s - self._heard[key] >= VISITOR_SILENT_S]
        settled = [key for key in visitors[len(silent) :] if self._awake_s - self._since[key] >= NEWCOMER_S]
        too_many = settled[: max(0, len(settled) - self._max_visitors)]
        return [*((key, "silent") for key in silent), *((key, "too many visitors") for key in too_many)]

    def _visitors(self) -> Iterator[bytes]:
        return (key for key in self._heard if self.is_visitor(key))
