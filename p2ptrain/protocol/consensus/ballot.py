"""Votes on which plan comes next: what stands for election, who wants what, and when that is enough.

Invariant: this peer votes for one plan of an epoch at most, and never for one of an older epoch than it voted for; and
of one plan's peers, two sets that have nobody in common are never both a majority (``carries``). So of the plans that
follow from one another's votes there is one of each epoch.

A vote is a message (``PlanVote``), and a field of a record besides: a message that gets lost costs time, nothing else.
It is never taken back: who counts late counts right. What brought no majority is not waited for any more (``forget``),
and a plan of a later epoch has its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Generic, NamedTuple, TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.epochs import GENERATION
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import PlanVote, Record

MAX_CANDIDATES = 16
MAX_DOUBLED = 6
MAX_VOTERS = 1024
"""Whose last message is remembered."""

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

    def __init__(self, own_id: PeerId, vote_s: float, alone_s: float) -> None:
        """Seconds of patience with those who are here, and with those who are not."""
        self.own: PlanRef | None = None
        """What this peer voted for last, as long as it waits for what comes of it."""
        self.since = 0.0
        """When it did."""
        self.last_epoch = 0
        """Of the plan that it voted for last."""
        self.left: frozenset[PeerId] = frozenset()
        """Peers that said goodbye: nobody waits for their votes."""
        self.ended: frozenset[PeerId] = frozenset()
        """Peers whose processes have ended: they are no other part of the group, which would have to be waited for."""
        self._said = ""
        """What its record says of that. It may stay there when the plan is in force: that is no vote any more."""
        self._own_id = own_id
        self._vote_s, self._alone_s = vote_s, alone_s
        self._short_since = NEVER
        self._num_failed = 0
        self._corrected: set[PlanRef] = set()
        """Candidates whose proposers were told, once, that their epoch is over."""
        self._candidates: dict[PlanRef, tuple[T, bytes]] = {}
        self._told: OrderedDict[PeerId, PlanVote] = OrderedDict()
        """The last message of each."""
        self._votes: dict[str, set[PeerId]] = {}
        self._followers: dict[str, set[PeerId]] = {}

    def told(self, sender: PeerId, vote: PlanVote) -> None:
        """What a peer says in a message of its own, which its record says later."""
        self._told[sender] = vote
        self._told.move_to_end(sender)
        while len(self._told) > MAX_VOTERS:
            self._told.popitem(last=False)

    def claims(self) -> list[tuple[PeerId, PlanVote]]:
        """All that was told so."""
        return list(self._told.items())

    def poll(self, records: Iterable[Record], left: Iterable[PeerId]) -> None:
        """The records of all others that are not known to be dead."""
        self.left = frozenset(left)
        self._votes, self._followers = {}, {}
        here = set()
        for record in records:
            here.add(record.peer)
            self._followers.setdefault(record.plan, set()).add(record.peer)
            self._votes.setdefault(record.vote, set()).add(record.peer)
        for peer, vote in self._told.items():
            if peer in here:
                table = self._followers if vote.adopted else self._votes
                table.setdefault(vote.plan, set()).add(peer)

    def followers(self, name: str) -> set[PeerId]:
        """Others that follow this plan."""
        return self._followers.get(name, set())

    def wanted_by(self, name: str) -> set[PeerId]:
        """Others that vote for this plan, or follow it already."""
        return self._votes.get(name, set()) | self.followers(name)

    def voters(self, name: str) -> set[PeerId]:
        """The same, and this peer if it does."""
        return self.wanted_by(name) | ({self._own_id} if name and self._said == name else set())

    def stand(self, ref: PlanRef, plan: T, data: bytes) -> None:
        self._candidates[ref] = plan, data
        for worst in [ref for ref in best_first(self._candidates) if ref != self.own][MAX_CANDIDATES:]:
            del self._candidates[worst]

    def drop(self, name: str) -> None:
        """It can't be followed after all."""
        self._candidates = {ref: found for ref, found in self._candidates.items() if ref.hash != name}

    def get(self, name: str) -> tuple[T, bytes] | None:
        return next((found for ref, found in self._candidates.items() if ref.hash == name), None)

    def candidates(self) -> list[tuple[PlanRef, T]]:
        """The best first."""
        return [(ref, self._candidates[ref][0]) for ref in best_first(self._candidates)]

    def may_vote(self, ref: PlanRef) -> bool:
        """Whether somebody wants it, and this peer has not voted for one of its epoch yet."""
        return bool(self.wanted_by(ref.hash)) and ref.epoch > self.last_epoch

    def vote(self, ref: PlanRef, now: float) -> None:
        self.own, self._said, self.since, self.last_epoch = ref, ref.hash, now, ref.epoch

    @property
    def is_short(self) -> bool:
        """Whether those who are here are no majority."""
        return self._short_since != NEVER

    def count_heads(self, here: Iterable[PeerId], participants: Collection[PeerId], now: float) -> None:
        """Who is here, of those who vote on the next plan."""
        electorate = set(participants) - self.left
        if carries(set(here), electorate):
            self._short_since = NEVER
        else:
            waited_s = self._alone_s if electorate.difference(here) <= self.ended else 0.0
            self._short_since = min(self._short_since, now - waited_s)

    def deadline(self) -> float:
        """When to see what comes of the own vote."""
        if self.own is None:
            return NEVER
        if self.is_short:
            return max(self.since, self._short_since + self._alone_s)
        return self.since + self._vote_s * 2.0 ** min(self._num_failed, MAX_DOUBLED)

    def wait_longer(self, now: float) -> None:
        """Those who are here are too few, and may not go on alone: nothing is to be had by another proposal."""
        self.since = now + self._alone_s

    def failed(self) -> None:
        """Enough were here, and it brought no majority: the next one gets more time."""
        self._num_failed += 1
        self.own = None

    def latest_epoch(self, generation: int) -> int:
        """In that generation, the highest that this peer, or one of those who told it, voted in."""
        told = [vote.epoch for vote in self._told.values()]
        return max((e for e in (self.last_epoch, *told) if e // GENERATION == generation), default=0)

    def correction(self, ref: PlanRef, proposer: PeerId) -> list[Send]:
        """To a proposer whose plan is of an epoch that this peer has voted in: it has to take a later one."""
        if ref.epoch > self.last_epoch or not self._said or self._said == ref.hash or ref in self._corrected:
            return []
        self._corrected.add(ref)
        return [Send(proposer, PlanVote(self._said, self.last_epoch, False))]

    def forget(self) -> None:
        """It is not to be had any more what this peer voted for: wait for it no longer. The vote stays cast."""
        self.own = None

    def decided(self, current: PlanRef) -> bool:
        """``current`` is in force: forget what it beats. True when the own record names another that is void now."""
        self._candidates = {ref: found for ref, found in self._candidates.items() if ref.beats(current)}
        self._num_failed = 0
        self._corrected.clear()
        self.last_epoch = max(self.last_epoch, current.epoch)
        if self.own is not None and self.own.beats(current):
            return False
        void = self._said not in ("", current.hash)
        self.own, self._said = None, "" if void else self._said
        return void
