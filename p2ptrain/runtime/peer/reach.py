"""The links that a peer makes sure of, beside those that it comes by.

Of a large group a peer dials no more addresses than its book holds: those that it happened to hear of. Two kinds of
links it needs whatever chance gave it. To whom it has something to say: dialled when it says it. (What was said then is
lost, as on any bad network, and whoever said it says it again.) And to its neighbours on the ring of all ids, so that
the group hangs together: ids are hashes of keys, so the neighbours are random peers, and everyone finds the same ring,
whoever comes, goes, or was away.

Invariant: no more than ``MAX_WANTED`` addresses are dialled for it; a group that was never large is left as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence

from p2ptrain.core.effects import Effects
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.session.address_book import MAX_ADDRESSES
from p2ptrain.protocol.session.sessions import Sessions
from p2ptrain.wire.messages import Record

LARGE = MAX_ADDRESSES
"""With more others alive, not all of them are dialled anyway."""
RING_S = 5.0
"""So often it is seen whether the neighbours have links."""
BESIDE = 2
"""Neighbours on each side: two that go at once, whoever they are, tear nothing before it is known."""


class Reach:
    """``alive``: the other members; ``records``: by peer, where each can be dialled."""

    def __init__(
        self,
        own_id: PeerId,
        sessions: Sessions,
        alive: Callable[[], Collection[PeerId]],
        records: Callable[[], Mapping[PeerId, Record]],
        now: float,
    ) -> None:
        self._own_id, self._sessions, self._alive, self._records = own_id, sessions, alive, records
        self._next_look, self._was_large = now + RING_S, False

    def dial(self, peer: PeerId, now: float) -> Effects:
        """There is something to say to it, and no session to say it in."""
        record = self._records().get(peer) if self._is_large() else None
        effects: Effects = []
        for address in record.addresses if record is not None and peer != self._own_id else ():
            effects += self._sessions.propose(address, now, source="wanted", peer=peer)
        return effects

    def tick(self, now: float) -> Effects:
        if now < self._next_look:
            return []
        self._next_look = now + RING_S
        effects: Effects = []
        for peer in ring_neighbours(self._own_id, self._alive(), BESIDE) if self._is_large() else ():
            if self._sessions.key_of(peer) is None:
                effects += self.dial(peer, now)
        return effects

    def next_deadline(self) -> float:
        return self._next_look if self._is_large() else NEVER

    def _is_large(self) -> bool:
        """Or was: when many go at once, those who are left have links to some of them only, and probe all."""
        self._was_large = self._was_large or len(self._alive()) > LARGE
        return self._was_large


def ring_neighbours(own: PeerId, others: Collection[PeerId], num: int) -> Sequence[PeerId]:
    """So many on each side of the ring of all ids in their order, the last beside the first."""
    ring = sorted(others)
    at = bisect_left(ring, own)
    places = [(at + step) % len(ring) for step in (*range(num), *range(-num, 0))] if ring else []
    return [ring[place] for place in dict.fromkeys(places)]
