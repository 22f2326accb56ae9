"""Gossip payloads of ours that nobody has fetched whole yet: their masses come back if nobody ever will.

Invariant: the masses of a payload are counted once, by its receiver or by us. So a payload whose masses were taken
back is never served to its end any more, and one that was served to its end is never taken back. (No two payloads are
the same blob, though their parameters may be: each names its exchange.)

    published --served to its end--> served        published --exchange failed, or expired--> withdrawn, reclaimed

The bytes of what was served or withdrawn are ``spent`` a while later: until then its last bytes may be asked for again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import NEVER

Masses = tuple[tuple[str, float], ...]
MAX_PUBLISHED = 64
MAX_WITHDRAWN = 256
ASKED_AGAIN_S = 10.0
"""Who lacks a chunk asks for it again sooner."""


@dataclass(slots=True)
class _Payload:
    blob: BlobId
    num_bytes: int
    partner: PeerId
    masses: Masses
    expires_at: float = NEVER


class Payloads:
    """Each call that takes payloads back returns their masses, to be given to the trainer."""

    def __init__(self) -> None:
        self._published: OrderedDict[int, _Payload] = OrderedDict()
        """Payloads that may still be fetched, by exchange."""
        self._withdrawn: OrderedDict[tuple[PeerId, BlobId], None] = OrderedDict()
        self._over: list[BlobId] = []
        """Served or withdrawn since ``spent`` was asked last."""
        self._spent_at: deque[tuple[float, BlobId]] = deque()

    def __len__(self) -> int:
        return len(self._published)

    def publish(self, exchange: int, blob: BlobId, num_bytes: int, partner: PeerId, masses: Masses) -> list[Masses]:
        self._withdrawn.pop((partner, blob), None)
        self._published[exchange] = _Payload(blob, num_bytes, partner, masses)
        oldest = list(self._published)[:-MAX_PUBLISHED]
        return self._take_back(oldest)

    def ended(self, exchange: int, done: bool, expires_at: float) -> list[Masses]:
        """Its exchange ended. Done: it may be fetched until ``expires_at``."""
        if done and exchange in self._published:
            self._published[exchange].expires_at = expires_at
            return []
        return self._take_back([exchange])

    def may_serve(self, to: PeerId, blob: BlobId) -> bool:
        return (to, blob) not in self._withdrawn

    def served(self, to: PeerId, blob: BlobId, end: int) -> bool:
        """``to`` was sent the bytes up to ``end``. Whether that is all of a payload for it, for the first time."""
        whole = [
            exchange
            for exchange, payload in self._published.items()
            if payload.partner == to and payload.blob == blob and end >= payload.num_bytes
        ]
        for exchange in whole:
            del self._published[exchange]
            self._over.append(blob)
        return bool(whole)

    def spent(self, now: float) -> list[BlobId]:
        """Whose bytes nobody needs any more."""
        self._spent_at += [(now + ASKED_AGAIN_S, blob) for blob in self._over]
        self._over.clear()
        spent = []
        while self._spent_at and self._spent_at[0][0] <= now:
            spent.append(self._spent_at.popleft()[1])
        return spent

    def forget(self) -> None:
        """The trainer starts from a snapshot: nobody knows whether it counts these masses."""
        self._take_back(list(self._published))

    def expire(self, now: float) -> list[Masses]:
        return self._take_back([e for e, payload in self._published.items() if now >= payload.expires_at])

    def next_deadline(self) -> float:
        return min((payload.expires_at for payload in self._published.values()), default=NEVER)

    def _take_back(self, exchanges: Iterable[int]) -> list[Masses]:
        taken = [payload for exchange in exchanges if (payload := self._published.pop(exchange, None)) is not None]
        for payload in taken:
            self._withdrawn[payload.partner, payload.blob] = None
            self._over.append(payload.blob)
        while len(self._withdrawn) > MAX_WITHDRAWN:
            self._withdrawn.popitem(last=False)
        return [payload.masses for payload in taken]
