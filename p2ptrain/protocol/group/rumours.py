"""What a peer tells others of the members, and how often: news first, and a few at random besides.

Invariant: no message has more than ``MAX_RUMOURS``; an item of news is sent at most ``retransmit_limit`` times; with
``announce`` false, our own name is never said.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.roster import Roster
from p2ptrain.protocol.group.swim import MembershipConfig
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import Ping, Rumour

MAX_RUMOURS = 64
MAX_INCARNATION = 2**53
_MAX_GREETING = 16
"""Messages that tell a newcomer of everyone; beyond 16 * 64 members it learns the rest in passing."""


def retransmit_limit(multiplier: int, num_members: int) -> int:
    """How often one item of news is sent: an epidemic reaches all with high probability after O(log n) rounds."""
    return multiplier * math.ceil(math.log2(num_members + 1))


def check_rumours(rumours: Sequence[Rumour]) -> None:
    """Of another's message. Raises ``RemoteError``."""
    if len(rumours) > MAX_RUMOURS:
        raise RemoteError("membership", "too many rumours")
    if any(not 0 <= rumour.incarnation <= MAX_INCARNATION for rumour in rumours):
        raise RemoteError("membership", "incarnation out of range")


class News:
    """Whom there is news of, and how often it was sent; what was sent least goes first."""

    __slots__ = ("_sent",)

    def __init__(self) -> None:
        self._sent: dict[PeerId, int] = {}

    def __bool__(self) -> bool:
        return bool(self._sent)

    def add(self, peer: PeerId) -> None:
        self._sent[peer] = 0

    def discard(self, peer: PeerId) -> None:
        self._sent.pop(peer, None)

    def take(self, count: int, limit: int) -> list[PeerId]:
        """Up to ``count`` for one message; what was sent ``limit`` times is news no more."""
        if len(self._sent) <= count:
            taken = list(self._sent)
        else:
            taken = heapq.nsmallest(count, self._sent, key=self._sent.__getitem__)
        for peer in taken:
            self._sent[peer] += 1
            if self._sent[peer] >= limit:
                del self._sent[peer]
        return taken


class Rumours:
    def __init__(self, roster: Roster, config: MembershipConfig, now: float) -> None:
        self._roster = roster
        self._config = config
        self._news = News()
        self._next_gossip = now

    def deadline(self) -> float:
        return self._next_gossip if self._news else NEVER

    def spread(self, peer: PeerId, now: float) -> None:
        """There is news of ``peer``."""
        if not self._news:
            self._next_gossip = max(self._next_gossip, now)
        self._news.add(peer)

    def discard(self, peer: PeerId) -> None:
        """What is known of ``peer`` is no news."""
        self._news.discard(peer)

    def gossip(self, now: float) -> list[Send]:
        """The news, told to a few at random."""
        self._next_gossip = now + self._config.gossip_s
        return [self.tell(peer) for peer in self._roster.sample_near(self._config.fanout) if self._news]

    def tell(self, peer: PeerId) -> Send:
        """A message for the sake of what it says."""
        return Send(peer, Ping(0, self.to(peer)))

    def greet(self, peer: PeerId) -> list[Send]:
        """Tell a newcomer of everyone."""
        roster = self._roster
        known = roster.sample(_MAX_GREETING * (MAX_RUMOURS - 1))
        own = (roster.own,) if self._config.announce else ()
        sends = []
        for start in range(0, max(1, len(known)), MAX_RUMOURS - 1):
            batch = (roster.members[other] for other in known[start : start + MAX_RUMOURS - 1] if other != peer)
            sends.append(Send(peer, Ping(0, own + tuple(r for r in batch if r.state == "alive"))))
        return sends

    def to(self, peer: PeerId, stale: Iterable[PeerId] = (), *, filler: int = 0) -> tuple[Rumour, ...]:
        """What to say in a message: ourselves, how its receiver is known, corrections, news, and a few at random, with
        one of those that went lately: whom the news of that missed asks nobody about it.

        Others hear of a suspect as news only: whoever says it besides counts as one more accuser.
        """
        roster, members, announce = self._roster, self._roster.members, self._config.announce
        own = roster.own
        said: dict[PeerId, None] = {}
        if announce:
            said[own.peer] = None
        member = members.get(peer)
        if member is not None and member.state != "alive":
            said[peer] = None
        said.update(dict.fromkeys(other for other in stale if members[other].state != "suspect"))
        if self._news and len(said) < MAX_RUMOURS:
            limit = retransmit_limit(self._config.retransmit, len(roster.round))
            for other in self._news.take(MAX_RUMOURS - len(said), limit):
                if other != own.peer or announce:
                    said[other] = None
        if filler and len(said) + filler < MAX_RUMOURS:
            others = [*roster.sample(filler), *roster.sample_gone()]
            said.update(dict.fromkeys(other for other in others if members[other].state != "suspect"))
        return tuple([members.get(other, own) for other in list(said)[:MAX_RUMOURS]])
