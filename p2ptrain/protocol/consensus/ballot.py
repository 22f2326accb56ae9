"""Votes on which plan comes next: what stands for election, who wants what, and when that is enough.

Invariant: no two plans of one epoch ever take effect.

Theory. Of one plan's peers, two sets that have nobody in common are never both a majority (``carries``). A peer votes
for one plan of an epoch at most, and never for one of an older epoch than it voted for. And as long as it does not know
what came of its vote, it votes for no other plan of the same generation: what it voted for may be in force elsewhere by
now, and others may follow from that, of the next epochs. So within a generation at most one plan that follows from
another by votes takes effect, and generations are somebody's own (``epochs``). All of this holds for a peer that dies
and comes back as well: its vote is on disk (``KeepVote``) before anybody hears of it, and so is the epoch of what it
proposes.

A vote is a message (``PlanVote``), and a field of a record besides: a message that gets lost costs time, nothing else.
It is never taken back: who counts late counts right. What brought no majority is not waited for any more (``forget``),
and a plan of a later generation has its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.epochs import GENERATION, MAX_JUMP, epoch_apart
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.wire.messages import PlanVote, Record

MAX_CANDIDATES = 16
MAX_DOUBLED = 6
MAX_VOTERS = 1024
"""Whose last message is remembered."""

UNREADABLE = "0" * 64
"""In place of a plan's hash: what this peer voted for is not known any more, but up to which epoch it may have."""

T = TypeVar("T")


class PlanRef(NamedTuple):
    epoch: int
    hash: str

    def beats(self, other: PlanRef | None) -> bool:
        return other is None or self._rank() < other._rank()

    def _rank(self) -> tuple[int, str]:
        return -self.epoch, self.hash


@dataclass(frozen=True, slots=True)
class KeepVote:
    """Have it safe on disk that this peer votes for no other plan of this epoch, nor of any before; ``vote_kept``."""

    ref: PlanRef


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

    def __init__(self, own_id: PeerId, vote_s: float, alone_s: float, last: PlanRef | None = None) -> None:
        """Seconds of patience with those who are here, and with those who are not. ``last``: the vote kept on disk."""
        self.own: PlanRef | None = None
        """What this peer voted for last, as long as it waits for what comes of it."""
        self.since = 0.0
        """When it did."""
        self.last_epoch = last.epoch if last else 0
        """Of the plan that it voted for last, or that is in force."""
        self._last = last
        """What it voted for last, whatever came of it."""
        self._is_cast = False
        self.left: frozenset[PeerId] = frozenset()
        """Peers that said goodbye: nobody waits for their votes."""
        self.is_deserted = False
        """All who vote and are not here said goodbye: those who are here need nobody's leave."""
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
        followed: dict[PeerId, PlanRef] = {}
        for record in records:
            followed[record.peer] = PlanRef(record.epoch, record.plan)
            self._votes.setdefault(record.vote, set()).add(record.peer)
        for peer, vote in self._told.items():
            told = PlanRef(vote.epoch, vote.plan)
            if peer in followed and not vote.adopted:
                self._votes.setdefault(vote.plan, set()).add(peer)
            elif peer in followed and told.beats(followed[peer]):  # its record and its message overtake each other
                followed[peer] = told
        for peer, ref in followed.items():
            self._followers.setdefault(ref.hash, set()).add(peer)

    def followers(self, name: str) -> set[PeerId]:
        """Others that follow this plan, and not yet the next."""
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

    def may_vote(self, ref: PlanRef, epoch: int) -> bool:
        """Whether somebody wants it, and no vote of this peer's stands against it; ``epoch``: of the plan in force."""
        return bool(self.wanted_by(ref.hash)) and ref.epoch > self.last_epoch and not self.is_bound(ref.epoch, epoch)

    def is_bound(self, wanted: int, epoch: int) -> bool:
        """Whether what this peer voted for last, since the plan of ``epoch`` is in force, may be in force elsewhere,
        with a plan of the epoch ``wanted`` after it."""
        return self.last_epoch > epoch and wanted // GENERATION == self.last_epoch // GENERATION

    def choose(self, ref: PlanRef, now: float) -> list[KeepVote]:
        """From now on this peer votes for no other of its epoch. Nobody hears of it before that is kept."""
        self.own, self.since, self.last_epoch, self._is_cast = ref, now, ref.epoch, False
        return [KeepVote(ref)]

    def kept(self, ref: PlanRef) -> T | None:
        """The choice is safe on disk. The plan, if it is still the one to have and nobody has heard of the vote yet."""
        known = self.get(ref.hash)
        return known[0] if self.own == ref and known is not None and not self._is_cast else None

    def cast(self, ref: PlanRef, now: float) -> None:
        """Others hear of the vote."""
        self._said, self._last, self.since, self._is_cast = ref.hash, ref, now, True

    @property
    def is_short(self) -> bool:
        """Whether those who are here are no majority."""
        return self._short_since != NEVER

    def count_heads(self, here: Iterable[PeerId], participants: Collection[PeerId], now: float) -> None:
        """Who is here, of those who vote on the next plan."""
        missing = set(participants).difference(here)
        self.is_deserted = missing <= self.left
        if carries(set(here), set(participants)):
            self._short_since = NEVER
        else:
            waited_s = self._alone_s if missing <= self.ended | self.left else 0.0
            self._short_since = min(self._short_since, now - waited_s)

    def deadline(self) -> float:
        """When to see what comes of the own vote."""
        if self.own is None:
            return NEVER
        if self.is_short and self._is_cast:
            return max(self.since, self._short_since + self._alone_s)
        return self.since + self._vote_s * 2.0 ** min(self._num_failed, MAX_DOUBLED)

    def wait_longer(self, now: float) -> None:
        """Those who are here are too few, and may not go on alone: nothing is to be had by another proposal."""
        self.since = now + self._alone_s

    def failed(self) -> None:
        """Enough were here, and it brought no majority: the next one gets more time."""
        self._num_failed += 1
        self.own = None

    def next_epoch(self, epoch: int) -> int:
        """Of a plan that this peer proposes after the one in force, of ``epoch``: one that those who have voted since
        then may vote for."""
        generation = epoch // GENERATION
        told = [vote.epoch for vote in self._told.values() if vote.epoch // GENERATION == generation]
        rivals = any(ref.epoch > epoch and self.followers(ref.hash) for ref in self._candidates)
        is_bound = max([self.last_epoch, *told]) > epoch
        return self.epoch_apart(epoch) if is_bound or rivals else epoch + 1

    def epoch_apart(self, epoch: int) -> int:
        """That no other peer can come to."""
        told = [vote.epoch for vote in self._told.values() if vote.epoch <= epoch + MAX_JUMP]
        return epoch_apart(max([epoch, self.last_epoch, *told, *(ref.epoch for ref in self._candidates)]), self._own_id)

    def is_outvoted(self, here: Collection[PeerId], electorate: Collection[PeerId], epoch: int) -> bool:
        """Whether those who are ``here`` were enough for what this peer voted for, had they not voted for another since
        the plan of ``epoch`` is in force."""
        if self.own is None:
            return False
        own, may = self.own, set(here)
        for peer, vote in self._told.items():
            is_same = vote.epoch > epoch and vote.epoch // GENERATION == own.epoch // GENERATION
            if not vote.adopted and vote.plan != own.hash and (is_same or vote.epoch >= own.epoch):
                may.discard(peer)
        return carries(here, electorate) and not carries(may, electorate)

    def correction(self, ref: PlanRef, proposer: PeerId) -> list[Send]:
        """To a proposer whose plan this peer may not vote for, as it has voted for another: it has to take a later
        epoch, or another generation."""
        last = self._last
        if last is None or last.hash == ref.hash or ref in self._corrected:
            return []
        self._corrected.add(ref)
        return [Send(proposer, PlanVote(last.hash, last.epoch, False))]

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
