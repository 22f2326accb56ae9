"""Which links are dialled, which of them nobody needs any more, and how sessions end.

Invariant: a link is dialled once, and once more when its bulk address is known. A session *rests* when nobody needed it
for a while: it is over at this end, and the first frame that the other end sends in it brings it back. So whether both
ends think alike of it or not, none of them speaks into nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.session.address_book import AddressBook
from p2ptrain.protocol.session.effects import Dial, Effect, HangUp, PeerDropped
from p2ptrain.protocol.session.guests import Guests
from p2ptrain.protocol.session.table import SessionTable
from p2ptrain.protocol.session.visitors import Visitors
from p2ptrain.wire.addresses import with_port
from p2ptrain.wire.messages import Ack, Goodbye, JobReply, RecordChanges, Records, StatusReply

LINGER_S = 2.0
"""A link stays open for so long after its session came to rest: what was said last goes out."""
ANSWERS = (Ack, Records, RecordChanges, JobReply, StatusReply, Goodbye)
"""What is under way when a session comes to rest, and needs no session any more."""
Idle = Literal["ends", "rests", "stays"]
"""What becomes of a session that its other end does not need: over, and its peer looked for; or see above; or kept."""


class Links:
    """By control address."""

    def __init__(self) -> None:
        self._bulk: dict[str, str] = {}
        """The bulk address of each; "" until it is known."""
        self._lingers: dict[str, float] = {}
        """Until when."""

    def next_deadline(self) -> float:
        return min(self._lingers.values(), default=NEVER)

    def link(self, address: str, bulk_port: int = 0) -> list[Dial]:
        """Dial what is not linked yet."""
        self._lingers.pop(address, None)
        bulk_address = with_port(address, bulk_port) if bulk_port else self._bulk.get(address, "")
        if self._bulk.get(address) == bulk_address:
            return []
        self._bulk[address] = bulk_address
        return [Dial(address, bulk_address)]

    def linger(self, address: str, now: float) -> None:
        """It is needed no more, but for what waits to go out."""
        self._lingers[address] = now + LINGER_S

    def hang_up(self, address: str) -> HangUp:
        self._bulk.pop(address, None)
        self._lingers.pop(address, None)
        return HangUp(address)

    def hang_ups(self, needed: Collection[str], now: float) -> list[HangUp]:
        """All but those, and but what lingers."""
        self._lingers = {address: until for address, until in self._lingers.items() if until > now}
        return [self.hang_up(each) for each in list(self._bulk) if each not in needed and each not in self._lingers]


class Endings:
    """Of sessions: what becomes of the links they used, and of what is known of their peers."""

    def __init__(
        self, table: SessionTable, book: AddressBook, guests: Guests, visitors: Visitors, links: Links
    ) -> None:
        self._table, self._book, self._guests, self._visitors, self._links = table, book, guests, visitors, links

    def drop(self, key: bytes, reason: str, now: float) -> list[Effect]:
        """Dial its addresses again soon."""
        session = self._table[key]
        effects = self.end(key, reason)
        self._book.lost(key, session.end.addresses, now, self._table.routes())
        return effects

    def part(self, key: bytes, reason: str, now: float, *, for_good: bool = False) -> list[Effect]:
        """A visitor goes, and what it left here with it: it is not looked for at addresses that only it named."""
        effects = self.end(key, reason)
        self._book.parted(key, now, for_good=for_good)
        self._guests.forget(key)
        self._guests.forget_nonces(key)
        self._table.forget_first(key)  # before any member
        return effects

    def idle(self, key: bytes, does: Idle, now: float) -> list[Effect]:
        """The other end of a member's session does not need it."""
        if does == "stays":
            return []
        return self.rest(key, now) if does == "rests" else self.drop(key, "goodbye", now)

    def rest(self, key: bytes, now: float) -> list[Effect]:
        """Nobody needs it for now."""
        session = self._table.close(key, rests=True)
        self._visitors.gone(key)
        self._book.rested(key, now)
        self._links.linger(session.address, now)
        return [PeerDropped(session.peer, "idle")]

    def end(self, key: bytes, reason: str) -> list[Effect]:
        """Its session is over."""
        session = self._table.close(key)
        self._visitors.gone(key)
        if session.address in self._table.routes():
            return [PeerDropped(session.peer, reason)]
        return [PeerDropped(session.peer, reason), self._links.hang_up(session.address)]
