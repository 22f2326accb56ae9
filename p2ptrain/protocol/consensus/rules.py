"""What agreement asks of planning, and what it tells: how plans are read, checked and made, and which to follow.

Invariant: nothing here decides. Agreement knows of a plan only what ``Proposal`` says, and of planning only ``Rules``.

To make a plan is a search, which may take a small device many seconds, and who does not answer pings meanwhile is taken
for dead. So it is a ``PlanWork`` that the caller works out wherever nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.ballot import KeepVote
from p2ptrain.protocol.consensus.plan_fetch import FetchConfig
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.wire.messages import Record


class Proposal(Protocol):
    """What agreement needs to know of a plan. Its name is the sha256 of its canonical JSON."""

    @property
    def epoch(self) -> int: ...
    @property
    def parent(self) -> str: ...
    @property
    def proposer(self) -> PeerId: ...
    def to_json(self) -> str: ...


P = TypeVar("P", bound=Proposal)


@dataclass(frozen=True, slots=True)
class PlanResult(Generic[P]):
    """The plan that some members should have next; None = the one in force will do, or (``problem``) there is none."""

    plan: P | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PlanWork(Generic[P]):
    """Work this out, in any thread, and give the answer to ``answered``."""

    work: Callable[[], PlanResult[P]]


class Rules(Protocol[P]):
    """How plans are read, checked and made."""

    @property
    def wanted(self) -> str:
        """Whom a plan can have, in words."""
        ...

    def is_ready(self, record: Record) -> bool:
        """Whether a plan can have this peer, as far as its mode goes: it is here, and its trainer works."""
        ...

    def parse(self, data: bytes) -> P:
        """Raises ``RemoteError``."""
        ...

    def verify(self, plan: P, parent: P | None) -> bool:
        """Whether the plan follows from its own inputs (and its parent's plan, where that is known here)."""
        ...

    def is_beginning(self, current: P | None, members: Sequence[Record]) -> bool:
        """Whether the plan in force is not yet under way, and no other may follow it before it is."""
        ...

    def question(self, current: P | None, members: Sequence[Record]) -> PlanWork[P]:
        """Which plan these members should have next, by what is known now."""
        ...

    def timed(self, plan: P, epoch: int) -> P | None:
        """The same plan, of this epoch or a later one that it needs, by what is known now, a while after the question;
        None = it is of no use any more."""
        ...

    def accepts(self, plan: P) -> bool:
        """Whether this peer, by what it knows now, knows of nothing against the plan."""
        ...

    def is_torn(self, current: P, members: Sequence[Record]) -> bool:
        """Whether the plan in force can't go on, as somebody is gone who was there a moment ago."""
        ...

    def may_go_alone(self, current: P, members: Sequence[Record]) -> bool:
        """Whether these may go on though they are no majority, when they have waited for the others."""
        ...

    def holds_on(self, current: P, plan: P, records: Sequence[Record], others: Collection[PeerId]) -> bool:
        """Whether the plan in force has brought its peers further than these ``others``, who follow ``plan``."""
        ...

    def participants(self, plan: P) -> Collection[PeerId]:
        """The peers that the plan gives work to."""
        ...


@dataclass(frozen=True, slots=True)
class AgreementConfig:
    min_peers: int = 2
    settle_s: float = 3.0
    ready_s: float = 0.5
    """Instead of that before the first plan, if all who came are ready and nobody new has come for ``settle_s``."""
    takeover_s: float = 15.0
    """How long each further candidate waits for those before it."""
    minority_s: float = 15.0
    """Settling time of a peer that sees less than half of its plan's peers."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    majority: bool = False
    """A plan that has a parent needs the votes of most of the parent's participants."""
    torn_s: float = 0.05
    """Settling time where the plan in force can't go on: with the search that follows, which is done anew where there
    is more news by then, long enough for the news of two deaths at once."""
    vote_s: float = 8.0
    """A vote that has not brought a majority of those who are here for so long is not waited for any more."""
    alone_s: float = 20.0
    """So long those who are no majority wait for the others, then they go on alone, if ``Rules.may_go_alone``."""


@dataclass(frozen=True, slots=True)
class PlanAdopted(Generic[P]):
    """Follow this plan from now on, and say so in the own record."""

    plan: P
    hash: str
    proposed_here: bool


@dataclass(frozen=True, slots=True)
class VoteFor(Generic[P]):
    """Say in the own record that this plan ought to be the next; with "" and None, none any more."""

    hash: str
    plan: P | None


Effect = Send | Note | PlanAdopted[P] | VoteFor[P] | KeepVote | PlanWork[P]


def is_ready(record: Record) -> bool:
    """Whether a peer can be given a part: it has samples or measured a model's blocks, and its trainer works."""
    return (any(record.counts) or bool(record.profile)) and record.phase not in ("observing", "failed")
