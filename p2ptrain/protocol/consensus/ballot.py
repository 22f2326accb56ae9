"""Votes on which plan comes next: what stands for election, who wants what, and when that is enough.

Invariant: of one plan's peers, two sets that have nobody in common are never both a majority (``carries``); and this
peer votes for one plan at a time, changing only to a better one until it is carried or given up.

A vote is a field of a record, so it spreads, is repeated and gets lost like all else there. It is a peer's word of the
moment: whoever counts may see it late. A candidate: stands --voted for--> pending --carried--> adopted, or
pending --``patience_s`` without a majority--> given up, until nobody votes for it any more. Then the figures that it
was made from are of yesterday, and a new proposal has its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Generic, NamedTuple, TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import NEVER
from p2ptrain.wire.messages import Record

MAX_CANDIDATES = 16
_MAX_GIVEN_UP = 256

T = TypeVar("T")


class PlanRef(NamedTuple):
    epoch: int
    hash: str

    def beats(self, other: PlanRef | None) -> bool:
        return other is None or self._rank() < other._rank()

    def _rank(self) -> tuple[int, str]:
        return -self.epoch, self.hash


def best_first(refs: Iterable[PlanRef]) -> list[PlanRef]:
    return sorted(refs, key=PlanRef._rank)


def carries(voters: Collection[PeerId], participants: Collection[PeerId]) -> bool:
    """Whether ``voters`` are a majority of ``participants``; of two halves it is the one with the lowest id."""
    num_votes = len(set(participants).intersection(voters))
    if 2 * num_votes == len(participants):
        return not participants or min(participants) in voters
    return 2 * num_votes > len(participants)


class Ballot(Generic[T]):
    """Candidates are plans of type ``T`` that parsed and verified, each with its canonical bytes."""

    def __init__(self, own_id: PeerId, patience_s: float) -> None:
        self.own: PlanRef | None = None
        """What this peer votes for."""
        self._said = ""
        """What its record says of that. It may stay there when the plan is in force: that is no vote any more."""
        self.left: frozenset[PeerId] = frozenset()
        """Peers that said goodbye: nobody waits for their votes."""
        self._own_id = own_id
        self._patience_s = patience_s
        self._own_since = 0.0
        self._candidates: dict[PlanRef, tuple[T, bytes]] = {}
        self._votes: dict[str, set[PeerId]] = {}
        self._followers: dict[str, set[PeerId]] = {}
        self._given_up: OrderedDict[str, None] = OrderedDict()

    def poll(self, records: Iterable[Record], left: Iterable[PeerId]) -> None:
        """The records of all others that are not known to be dead."""
        self.left = frozenset(left)
        self._votes, self._followers = {}, {}
        for record in records:
            self._followers.setdefault(record.plan, set()).add(record.peer)
            self._votes.setdefault(record.vote, set()).add(record.peer)
        for name in [name for name in self._given_up if not self.wanted_by(name)]:
            del self._given_up[name]

    def followers(self, name: str) -> set[PeerId]:
        """Others that follow this plan."""
        return self._followers.get(name, set())

    def wanted_by(self, name: str) -> set[PeerId]:
        """Others that vote for this plan, or follow it already."""
        return self._votes.get(name, set()) | self.followers(name)

    def voters(self, name: str) -> set[PeerId]:
        """The same, and this peer if it does."""
        own = {self._own_id} if self.own is not None and self.own.hash == name else set()
        return self.wanted_by(name) | own

    def stand(self, ref: PlanRef, plan: T, data: bytes) -> None:
        self._candidates[ref] = plan, data
        for worst in [ref for ref in best_first(self._candidates) if ref != self.own][MAX_CANDIDATES:]:
            del self._candidates[worst]

    def get(self, name: str) -> tuple[T, bytes] | None:
        return next((found for ref, found in self._candidates.items() if ref.hash == name), None)

    def candidates(self) -> list[tuple[PlanRef, T]]:
        """The best first."""
        return [(ref, self._candidates[ref][0]) for ref in best_first(self._candidates)]

    def may_vote(self, ref: PlanRef) -> bool:
        """Whether somebody wants it, it is better than what this peer votes for, and it was not given up."""
        return bool(self.wanted_by(ref.hash)) and ref.beats(self.own) and ref.hash not in self._given_up

    def vote(self, ref: PlanRef, now: float) -> None:
        self.own, self._said, self._own_since = ref, ref.hash, now
        self._given_up.pop(ref.hash, None)

    def give_up(self) -> None:
        """Withdraw the own vote: it has not been enough for too long."""
        if self.own is not None:
            self._given_up[self.own.hash] = None
            if len(self._given_up) > _MAX_GIVEN_UP:
                self._given_up.popitem(last=False)
        self.own, self._said = None, ""

    def deadline(self) -> float:
        """When the own vote is to be given up."""
        return self._own_since + self._patience_s if self.own is not None else NEVER

    def decided(self, current: PlanRef) -> bool:
        """``current`` is in force: forget what it beats. True when the own record names another that is void now."""
        self._candidates = {ref: found for ref, found in self._candidates.items() if ref.beats(current)}
        if self.own is not None and self.own.beats(current):
            return False
        void = self._said not in ("", current.hash)
        self.own, self._said = None, "" if void else self._said
        return void
