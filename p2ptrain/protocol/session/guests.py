"""Keys whose handshake is under way because they said Hello, and the nonces that were sent to them.

Invariant: bounded, whoever says Hello how often: ``MAX_GUESTS`` keys for ``GUEST_S`` each, with ``MAX_GUEST_ADDRESSES``
addresses and hellos, and ``MAX_CHALLENGES`` nonces; the oldest give way. A nonce is the same one whenever it is sent
again, and to be guessed by nobody.

A guest:  --Hello--> told its nonces, again and again --Proof--> admitted (gone from here)
          for too long, or one guest too many --> gone
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from dataclasses import dataclass, field

from p2ptrain.errors import RemoteError
from p2ptrain.protocol.machine import NEVER
from p2ptrain.protocol.session.address_book import backoff_s
from p2ptrain.protocol.session.proofs import BOOT_BYTES

GUEST_S = 40.0
"""Time for a handshake that someone else began: on a link that takes seconds for a round trip, a connection back takes
ten, and the words that go over it five more."""
MAX_GUESTS = 16
MAX_GUEST_ADDRESSES = 8
MAX_CHALLENGES = 512


@dataclass(frozen=True, slots=True)
class End:
    """What the other side said of itself in its Hello or Welcome."""

    nonce: bytes
    addresses: tuple[str, ...]
    bulk_port: int
    software: str

    @property
    def boot(self) -> bytes:
        return self.nonce[:BOOT_BYTES]


@dataclass(slots=True)
class Guest:
    """A key that said Hello and has not proved itself yet, or (no hellos) is being told why it can't."""

    addresses: tuple[str, ...]
    deadline: float
    due: float
    attempts: int = 0
    hellos: OrderedDict[bytes, End] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a nonce of ours was sent for: to whom, where, and in answer to which nonce of theirs."""

    key: bytes
    address: str
    their_nonce: bytes


class Guests:
    def __init__(self, boot: bytes, rng: random.Random) -> None:
        self._boot = boot
        self._rng = rng
        self._secret = rng.randbytes(32)
        self._guests: OrderedDict[bytes, Guest] = OrderedDict()
        self._challenges: OrderedDict[bytes, Challenge] = OrderedDict()

    def next_deadline(self) -> float:
        return min((min(guest.due, guest.deadline) for guest in self._guests.values()), default=NEVER)

    def addresses(self) -> set[str]:
        """Where guests are answered."""
        return {address for guest in self._guests.values() for address in guest.addresses}

    def said_hello(self, key: bytes, end: End, now: float) -> Guest:
        """A new guest, one with a further hello, or the same hello again."""
        guest = self._guests.pop(key, None)
        if guest is None or end.nonce not in guest.hellos:
            hellos = guest.hellos if guest else OrderedDict[bytes, End]()
            guest = Guest(end.addresses, deadline=now + GUEST_S, due=now, hellos=hellos)
        guest.hellos[end.nonce] = end
        if len(guest.hellos) > MAX_GUEST_ADDRESSES:
            guest.hellos.popitem(last=False)
        self._add(key, guest)
        return guest

    def turned_away(self, key: bytes, end: End, now: float) -> None:
        """It is told why, and that needs links for a while."""
        self._add(key, Guest(end.addresses, deadline=now + GUEST_S, due=NEVER))

    def welcomed(self, guest: Guest, now: float) -> None:
        """Its nonces are on their way; they may be lost."""
        guest.due = now + backoff_s(guest.attempts, self._rng)
        guest.attempts += 1

    def due(self, now: float) -> list[tuple[bytes, Guest]]:
        """Whom to welcome again."""
        return [(key, guest) for key, guest in self._guests.items() if guest.due <= now < guest.deadline]

    def overdue(self, now: float) -> list[tuple[bytes, Guest]]:
        """Those whose time is up; they are guests no more."""
        found = [(key, guest) for key, guest in self._guests.items() if guest.deadline <= now]
        for key, _ in found:
            del self._guests[key]
        return found

    def challenge(self, challenge: Challenge) -> bytes:
        """The nonce of a Welcome."""
        words = challenge.key + challenge.their_nonce + challenge.address.encode()
        digest = hashlib.blake2b(words, key=self._secret, digest_size=16 - BOOT_BYTES).digest()
        nonce = self._boot + digest
        self._challenges[nonce] = challenge
        self._challenges.move_to_end(nonce)
        if len(self._challenges) > MAX_CHALLENGES:
            self._challenges.popitem(last=False)
        return nonce

    def answered(self, key: bytes, echo: bytes) -> tuple[Challenge, End]:
        """What a Proof of ``key`` that repeats our nonce is about. Raises ``RemoteError``."""
        challenge, guest = self._challenges.get(echo), self._guests.get(key)
        end = guest.hellos.get(challenge.their_nonce) if challenge and guest else None
        if challenge is None or end is None or challenge.key != key:
            raise RemoteError("echo", "a proof for no welcome of ours, or too late")
        return challenge, end

    def proved(self, challenge: Challenge) -> None:
        """This hello led to a session; others of the same guest, from other addresses, may still."""
        guest = self._guests[challenge.key]
        del guest.hellos[challenge.their_nonce]
        if not guest.hellos:
            del self._guests[challenge.key]

    def forget(self, key: bytes) -> None:
        """It is a guest no more. What it was sent still counts, if it says Hello again."""
        self._guests.pop(key, None)

    def forget_nonces(self, key: bytes, boot: bytes = b"") -> None:
        """Those sent to ``key``, but for its hellos with this ``boot``."""
        self._challenges = OrderedDict(
            (nonce, each)
            for nonce, each in self._challenges.items()
            if each.key != key or (boot and each.their_nonce[:BOOT_BYTES] == boot)
        )

    def _add(self, key: bytes, guest: Guest) -> None:
        self._guests[key] = guest
        if len(self._guests) > MAX_GUESTS:
            self._guests.popitem(last=False)
