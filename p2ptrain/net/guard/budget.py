"""What may wait to be sent, to all neighbours together: who takes nothing of what it asked for costs others nothing.

Invariant: after ``make_room`` the queues have at most ``MAX_QUEUED_BYTES`` in all, and what was pushed out for that was
of the longest ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2ptrain.net.link import Link

MAX_QUEUED_BYTES = 256 << 20
MAX_SERVED_BYTES = 8 << 20
"""With so much waiting for a neighbour, nothing more is read for it of what it asks for."""
MAX_SERVED_BYTES_IN_ALL = 128 << 20
"""Shared among those who have something waiting, but each has ``MIN_SERVED_BYTES``."""
MIN_SERVED_BYTES = 256 << 10


def make_room(links: Iterable[Link]) -> int:
    """How many messages had to be forgotten."""
    num_dropped, waiting = 0, [link for link in links if link.queued_bytes]
    total = sum(link.queued_bytes for link in waiting)
    while total > MAX_QUEUED_BYTES:
        total -= max(waiting, key=lambda link: link.queued_bytes).drop_oldest()
        num_dropped += 1
    return num_dropped


def has_room(link: Link, links: Iterable[Link]) -> bool:
    """Whether more of what others ask for may be read, to be sent over ``link``, one of ``links``."""
    num_waiting = sum(each.queued_bytes > 0 for each in links)
    fair = max(MIN_SERVED_BYTES, MAX_SERVED_BYTES_IN_ALL // max(1, num_waiting))
    return link.queued_bytes < min(MAX_SERVED_BYTES, fair)
