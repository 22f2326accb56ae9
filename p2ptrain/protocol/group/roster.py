"""Whom this peer knows: what it would say of each, who is in and who is gone, and whose turn it is to be probed.

Invariant: ``own`` is not in ``members``; of these, everyone is either in, with one turn, or gone.

Who was silent for longest is next. What a member says shows that it lives, as its answer would, so its turn is a round
later: of two members the one that asks first spares the other the question. Who is dead asks nobody, so it is asked as
soon as if nobody ever were spared.

In a group of up to ``all_near`` everyone is *near*: probed, told and asked, whether there is a link or not, as others
may have one. In a larger one those are near that there is a link to; of the others, those that are near them tell.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection
from functools import lru_cache
from itertools import islice

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.swim import Forbearance, MembershipConfig
from p2ptrain.protocol.machine import NEVER
from p2ptrain.wire.messages import MemberState, Rumour

_LAST_GONE = 8
NeighboursOf = Callable[[PeerId], Collection[PeerId]]
"""Who of a large group has a link to a peer, as far as one can know."""


@lru_cache(maxsize=16384)
def _newborn(peer: PeerId) -> Rumour:
    return Rumour(peer, "alive", 0)


def _nobody(peer: PeerId) -> tuple[PeerId, ...]:
    """Where neighbours are not known."""
    return ()


class Roster:
    def __init__(
        self,
        own: Rumour,
        members: Collection[PeerId],
        rng: random.Random,
        config: MembershipConfig,
        now: float,
        linked: Collection[PeerId] | None = None,
    ) -> None:
        """``linked``: all ``members``, if not given."""
        self.own = own
        self._config = config
        self._linked = set(members if linked is None else linked)
        self._near: list[PeerId] | None = None
        self.members = {peer: _newborn(peer) for peer in members if peer != own.peer}
        """What we know of each, as we would say it."""
        self.gone: dict[PeerId, float] = {}
        """Dead and left ones, and since when."""
        self.forbearance = Forbearance()
        self._rng = rng
        self.round = list(self.members)
        """Who is in, suspects included."""
        self._turns = {peer: self._first_turn(now) for peer in self.round}
        """When each of them was heard or asked last, or came, and after which part of a round from then it is next."""
        self.neighbours_of: NeighboursOf = _nobody
        self._alive: frozenset[PeerId] | None = None

    def alive(self) -> frozenset[PeerId]:
        """Who is in; the same object until that changes."""
        if self._alive is None:
            self._alive = frozenset(self.round)
        return self._alive

    def as_known(self, peer: PeerId, state: MemberState) -> Rumour:
        """``peer`` in another state, as of the incarnation that is known."""
        return dataclasses.replace(self.members[peer], state=state)

    def sample(self, count: int) -> list[PeerId]:
        """Up to ``count`` of those that are in."""
        return self._rng.sample(self.round, min(count, len(self.round)))

    def sample_gone(self) -> list[PeerId]:
        """One of the last few that went, if any did."""
        last = list(islice(reversed(self.gone), _LAST_GONE))
        return [self._rng.choice(last)] if last else []

    def link(self, peer: PeerId) -> bool:
        """There is a link to it; whether that is new."""
        if peer in self._linked:
            return False
        self._linked.add(peer)
        self._near = None
        return True

    def unlink(self, peer: PeerId) -> None:
        """There is none any more."""
        self._linked.discard(peer)
        self._near = None

    def is_near(self, peer: PeerId) -> bool:
        return len(self.round) <= self._config.all_near or peer in self._linked

    def near(self) -> list[PeerId]:
        """Of those that are in."""
        if len(self.round) <= self._config.all_near:
            return self.round
        if self._near is None:
            self._near = [peer for peer in self.round if peer in self._linked]
        return self._near

    def sample_near(self, count: int, but: PeerId | None = None) -> list[PeerId]:
        """Up to ``count`` of them."""
        sample = self._rng.sample(self.near(), min(count + (but is not None), len(self.near())))
        return [peer for peer in sample if peer != but][:count]

    def sample_helpers(self, count: int, target: PeerId) -> list[PeerId]:
        """Up to ``count`` of them who may reach ``target``: all in a small group, of a large one its neighbours."""
        if len(self.round) > self._config.all_near:
            beside = self.neighbours_of(target)
            common = [peer for peer in self.near() if peer in beside and peer != target]
            if common:
                return self._rng.sample(common, min(count, len(common)))
        return self.sample_near(count, but=target)

    def is_verifier_of(self, peer: PeerId, verifiers: int) -> bool:
        """Whether we are one of so many who see for themselves whether an accused peer answers."""
        return self.is_near(peer) and self._rng.random() * len(self.near()) < verifiers

    def had_turn(self, peer: PeerId, now: float) -> None:
        """Who is in was heard, or asked. The next turn is not at the same moment at both ends."""
        self._turns[peer] = now, self._rng.uniform(0.9, 1.1)

    def next_turn(self, but: Collection[PeerId]) -> tuple[PeerId | None, float]:
        """Who of those that are near is next, and when. (A round is as long as there are such peers.)"""
        near, turns, next_peer, next_at = self.near(), self._turns, None, NEVER
        round_s = self._config.period_s * len(near)
        for peer in near:
            last, part = turns[peer]
            if (at := last + part * round_s) < next_at and peer not in but:
                next_peer, next_at = peer, at
        return next_peer, next_at

    def _first_turn(self, now: float) -> tuple[float, float]:
        """Some time in the round that begins now: of both ends' turns the earlier one is at any time as likely."""
        return now, 1.0 - self._rng.random() ** 2

    def enter(self, peer: PeerId, now: float, before: Rumour | None = None) -> None:
        """It is in: new, or back. ``before``: what was said of it until now."""
        since = self.gone.pop(peer, None)
        if before is not None and since is not None:
            self.forbearance.is_back(before, self.members[peer], now - since, now)
        self.round.append(peer)
        self._alive = self._near = None
        self._turns[peer] = self._first_turn(now)

    def exit(self, peer: PeerId, now: float) -> None:
        """Who was in is gone."""
        self.gone[peer] = now
        self._alive = self._near = None
        self._linked.discard(peer)
        self.round.remove(peer)
        del self._turns[peer]

    def forget(self, peer: PeerId) -> None:
        """Who is gone was never known."""
        self.forbearance.forget(peer)
        del self.gone[peer]
        del self.members[peer]
