"""Which addresses to dial, when, and which of them lead to whom.

Invariant: at most ``MAX_ADDRESSES``, and beside them of peers that there is something to say to those that lead to an
admitted one, and ``MAX_WANTED`` that lead nowhere yet; an address that leads to an admitted peer or to ourselves is not
due.

An address:  due --Hello sent--> dialling --Welcome--> open --its peer is dropped--> due
             open --its visitor has gone, and had told us of it; or nobody needs its peer--> forgotten
             led to a peer that is elsewhere now, or was told by it before --> forgotten, unless the user gave it
             dialling: due again and again, further and further apart; one that leads nowhere is forgotten after a
             while: never if the user gave it, after a week if mDNS showed it, and that week begins anew whenever mDNS
             shows it again. One that leads to ourselves is not dialled again while our own addresses stay: later it
             may be somebody else's.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from p2ptrain.protocol.machine import NEVER

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
"""Hellos to an address that does not answer: 0.5 s apart, then 1, 2, 4 ... 30, each up to a quarter longer."""
FORGET_ADDRESS_S = 300.0
FORGET_PEER_S = 3600.0
FORGET_SHOWN_S = 7 * 86_400.0
"""An address that never led to a peer, one that did, and one that mDNS showed are forgotten after so long without an
answer: a network that was away over a weekend shows nothing anew where multicast is filtered."""
REST_S = 600.0
"""An address that the user gave is dialled again so long after nobody needed the link to it any more, or as soon as
there is something to say to it."""
MAX_ADDRESSES = 128
MAX_WANTED = 64
"""Beside these, addresses that are dialled because there is something to say to a peer, and lead nowhere yet. Those
that do are as many as there are sessions (``sessions.MAX_PEERS``)."""
ANSWER_S = 2.0
"""So long such an address has to answer before another may take its place."""

Source = Literal["given", "mdns", "remembered", "peer", "wanted"]
"""Who named an address: the user, mDNS, the state directory, another peer; or this peer needs it (``MAX_WANTED``)."""
SOURCES: tuple[Source, ...] = ("given", "mdns", "remembered", "peer", "wanted")
"""Of several that name the same one, the first of these counts."""
Shut = Literal["", "there", "here"]
"""Whose door keeps this device and who answers apart so far: "there" theirs, "here" that of this device; "" = none."""


def backoff_s(attempts: int, rng: random.Random) -> float:
    """How long to wait after that many tries before this one."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts, 16)) * rng.uniform(1.0, 1.25)


@dataclass(slots=True)
class Target:
    """An address to dial with ``nonce``; open while it leads to the admitted peer ``key``."""

    address: str
    source: Source
    since: float
    due: float
    nonce: bytes = b""
    attempts: int = 0
    key: bytes = b""
    last_key: bytes = b""
    shut: Shut = ""
    is_answered: bool = False
    """Whether somebody who was kept apart answered since the last Hello."""

    @property
    def kept(self) -> bool:
        return self.source == "given"

    @property
    def lasts_s(self) -> float:
        """How long it is worth dialling in vain."""
        if self.source == "mdns":
            return FORGET_SHOWN_S
        return NEVER if self.kept else FORGET_PEER_S if self.last_key else FORGET_ADDRESS_S

    def open(self, key: bytes) -> None:
        self.key = self.last_key = key
        self.due, self.shut = NEVER, ""

    def kept_apart(self, shut: Shut) -> None:
        self.shut, self.is_answered = shut, True


@dataclass(frozen=True, slots=True)
class Unanswered:
    """For people: an address that was dialled ``attempts`` times, in vain."""

    address: str
    source: Source
    attempts: int
    shut: Shut = ""


class AddressBook:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._targets: OrderedDict[str, Target] = OrderedDict()
        self._ourselves: OrderedDict[str, None] = OrderedDict()

    def unanswered(self) -> list[Target]:
        """Those that lead nowhere so far."""
        return [target for target in self._targets.values() if not target.key]

    def next_deadline(self) -> float:
        return min((target.due for target in self._targets.values()), default=NEVER)

    def due(self, now: float) -> list[Target]:
        """What to dial now. What led nowhere for too long is forgotten instead."""
        found = [target for target in self._targets.values() if target.due <= now]
        for target in found:
            if now - target.since >= target.lasts_s:
                del self._targets[target.address]
        return [target for target in found if target.address in self._targets]

    def dialled(self, target: Target, now: float) -> None:
        target.due = now + backoff_s(target.attempts, self._rng)
        target.attempts += 1
        target.shut = target.shut if target.is_answered else ""  # the last Hello was in vain
        target.is_answered = False

    def dialled_with(self, nonce: bytes) -> Target | None:
        return next((target for target in self._targets.values() if target.nonce == nonce), None)

    def propose(self, address: str, now: float, *, source: Source, in_use: Collection[str]) -> Target | None:
        """What is to be dialled now: a new target, or one that rests and is needed again. None if the address is known
        otherwise, ours, or there is no room for it."""
        known = self._targets.get(address)
        if known and source == "wanted" and not known.key and not known.nonce:
            known.since = known.due = now
            return known
        if known and SOURCES.index(source) <= SOURCES.index(known.source):
            known.source = source
            known.since = known.since if known.key or source != "mdns" else now
        if known or address in self._ourselves or not self._make_room(in_use, source, now):
            return None
        self._targets[address] = target = Target(address, source, since=now, due=now)
        return target

    def found(self, address: str, key: bytes, now: float, in_use: Collection[str]) -> None:
        """``address`` leads to the admitted peer ``key``."""
        target = self._targets.get(address) or self.propose(address, now, source="peer", in_use=in_use)
        if target:
            target.open(key)

    def found_ourselves(self, nonce: bytes) -> None:
        """A Hello of ours came back to us."""
        target = self.dialled_with(nonce)
        if target:
            del self._targets[target.address]
            self._ourselves[target.address] = None
            if len(self._ourselves) > MAX_ADDRESSES:
                self._ourselves.popitem(last=False)

    def readdressed(self) -> None:
        """We have other addresses than before."""
        self._ourselves.clear()

    def lost(self, key: bytes, addresses: Collection[str], now: float, in_use: Collection[str]) -> None:
        """The peer ``key`` was dropped: dial all its addresses again soon, and those it told us of."""
        for address in addresses:
            self.propose(address, now, source="peer", in_use=in_use)
            if address in self._targets and not self._targets[address].key:
                self._targets[address].open(key)
        for target in [each for each in self._targets.values() if each.key == key]:
            if target.source == "wanted" and len(self._wanted()) >= MAX_WANTED:
                del self._targets[target.address]
                continue
            target.key, target.nonce, target.attempts = b"", b"", 0
            target.since, target.due = now, now + backoff_s(1, self._rng)

    def moved(self, key: bytes, *, told_then: Collection[str], told_now: Collection[str]) -> None:
        """A session with the peer ``key`` begins: it is no more where it was, but for what it tells of now.

        A process that starts again has another port, and a device in another network another address. Whoever has the
        former one next is met as anybody is.
        """
        for target in list(self._targets.values()):
            led_to = target.key or target.last_key
            was_there = led_to == key or (not led_to and target.address in told_then)
            if was_there and not target.kept and target.address not in told_now:
                del self._targets[target.address]

    def parted(self, key: bytes, now: float, *, for_good: bool) -> None:
        """The visitor ``key`` has gone: forget the addresses that only it told us of.

        What the user gave is dialled again, and unless it went for good so is, like any new address, what we had
        dialled by ourselves: of two peers that each lost the other before they knew it for a member, one did.
        """
        for target in [each for each in self._targets.values() if each.key == key]:
            if target.kept or (target.nonce and not for_good):
                target.key, target.last_key, target.nonce, target.attempts = b"", b"", b"", 0
                target.since, target.due = now, now + backoff_s(1, self._rng)
            else:
                del self._targets[target.address]

    def rested(self, key: bytes, now: float) -> None:
        """Nobody needs the peer ``key`` for now: whoever does knows where it is by its record."""
        for target in [each for each in self._targets.values() if each.key == key]:
            if target.kept:
                target.key, target.nonce, target.attempts = b"", b"", 0
                target.since, target.due = now, now + REST_S
            else:
                del self._targets[target.address]

    def _wanted(self) -> list[Target]:
        """Those of peers that there is something to say to that lead nowhere yet."""
        return [each for each in self._targets.values() if each.source == "wanted" and not each.key]

    def _make_room(self, in_use: Collection[str], source: Source, now: float) -> bool:
        """Forget an address that is neither in use nor given by the user, if there has to be room.

        Any one of those that never led anywhere, or whoever names most would push out all that others name; first of
        those that anybody in the network could show. Only then the oldest.
        """
        if source == "wanted":
            alike, room = self._wanted(), MAX_WANTED
            spare = [each for each in alike if each.address not in in_use and now - each.since >= ANSWER_S]
        else:
            alike, room = [each for each in self._targets.values() if each.source != "wanted"], MAX_ADDRESSES
            spare = [each for each in alike if not each.kept and each.address not in in_use]
        if len(alike) < room:
            return True
        if not spare:
            return False
        unmet = [each for each in spare if not each.last_key]
        shown = [each for each in unmet if each.source == "mdns"]
        del self._targets[(self._rng.choice(shown or unmet) if unmet else spare[0]).address]
        return True
