"""Looks into why a peer was lost that had been admitted: do large packets pass on the way to it, and how slowly?

Invariant: seldom: one look at an address in ``AGAIN_S``, at most ``MAX_LOOKS`` at once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from p2ptrain.net.ways.path import SLOW_S, Passage, large_packets
from p2ptrain.protocol.machine import Note

AGAIN_S = 300.0
MAX_LOOKS = 4
MAX_REMEMBERED = 512
LOST = frozenset({"failed", "silent", "restarted"})


class PathWatch:
    """``look``: at an address; ``tell``: what it found."""

    def __init__(
        self,
        tell: Callable[[Note], None],
        look: Callable[[str], Awaitable[tuple[Passage, float]]] = large_packets,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._look = look
        self._clock = clock
        self._addresses: OrderedDict[str, str] = OrderedDict()
        self._looked_at: dict[str, float] = {}
        self._num_looking = 0

    def heard(self, note: Note) -> str | None:
        """A line of the journal. An address that is to be looked at now, or None."""
        fields = dict(note.fields)
        peer = str(fields.get("peer"))
        if note.kind == "admitted":
            self._addresses[peer] = str(fields.get("address"))
            self._addresses.move_to_end(peer)
            if len(self._addresses) > MAX_REMEMBERED:
                self._looked_at.pop(self._addresses.popitem(last=False)[1], None)
        if note.kind != "asked-again" and (note.kind != "link-closed" or fields.get("reason") not in LOST):
            return None
        address, now = self._addresses.get(peer, ""), self._clock()
        if not address or now - self._looked_at.get(address, -AGAIN_S) < AGAIN_S or self._num_looking >= MAX_LOOKS:
            return None
        self._looked_at[address] = now
        return address

    async def look(self, address: str) -> None:
        self._num_looking += 1
        try:
            passage, took_s = await self._look(address)
            if passage == "lost":
                self._tell(Note("large-packets-lost", (("address", address),)))
            elif passage == "passes" and took_s > SLOW_S:
                self._tell(Note("slow-way", (("address", address), ("took_s", round(took_s, 1)))))
        finally:
            self._num_looking -= 1
