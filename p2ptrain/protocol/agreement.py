"""Which plan a peer follows: proposals, news of better ones, and the rule by which all end up with the same.

Invariant: the plan in force only ever gives way to a better one that parsed and verified. Better is the higher epoch,
and of one epoch the lower hash: a total order, so peers that can hear each other converge with no coordinator.

Theory. A plan is a pure function of its inputs, which it carries; anyone may propose and everyone can check. To keep
rivals rare, only the ready member with the lowest id proposes, once its view of the ready members has been stable for
``settle_s``; the next in order steps in ``takeover_s`` later each. Rivals do happen (two halves of a split network)
and the order above settles them; whoever lost its place is a joiner of the next plan. A peer that sees less than half
of its plan's peers may be the one that is cut off, or just started: it waits ``minority_s`` before it plans alone.

    no plan --(min_peers ready, settled: propose)--> following      no plan --(heard of a plan: fetch)--> following
    following --(members changed, settled: propose)--> following    following --(heard of a better one)--> following
    fetching: ask a holder --(timeout)--> ask the next one --(``max_asks`` in vain)--> ignored for ``ignore_s``

What a plan is stays with the caller: ``Rules`` parses, verifies and makes them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.messages import PlanReply, PlanRequest, Record

HISTORY = 16
"""Plans kept to serve them, and to check the plans that follow from them."""
REMEMBERED = 256
"""Hashes remembered as refused, asked for, or of known epoch."""


class Proposal(Protocol):
    """What agreement needs to know of a plan. Its name is the sha256 of its canonical JSON."""

    @property
    def epoch(self) -> int: ...
    @property
    def parent(self) -> str: ...
    def to_json(self) -> str: ...


P = TypeVar("P", bound=Proposal)


class Rules(Protocol[P]):
    """How plans are read, checked and made: pure functions."""

    def parse(self, data: bytes) -> P:
        """Raises ``RemoteError``."""
        ...

    def verify(self, plan: P, parent: P | None) -> bool:
        """Whether the plan follows from its own inputs (and its parent's plan, where that is known here)."""
        ...

    def propose(self, current: P | None, members: Sequence[Record]) -> P | None:
        """The plan these members should have next; None = the current one will do."""
        ...

    def participants(self, plan: P) -> Collection[PeerId]:
        """The peers that the plan gives work to."""
        ...


class PlanRef(NamedTuple):
    epoch: int
    hash: str

    def beats(self, other: PlanRef | None) -> bool:
        return other is None or (-self.epoch, self.hash) < (-other.epoch, other.hash)


@dataclass(frozen=True, slots=True)
class AgreementConfig:
    min_peers: int = 2
    settle_s: float = 3.0
    takeover_s: float = 15.0
    """How long each further candidate waits for those before it."""
    minority_s: float = 15.0
    """Settling time of a peer that sees less than half of its plan's peers."""
    request_timeout_s: float = 2.0
    """Doubled for every round of all holders, up to ``max_timeout_s``."""
    max_timeout_s: float = 5.0
    max_asks: int = 10
    ignore_s: float = 30.0


@dataclass(frozen=True, slots=True)
class PlanAdopted(Generic[P]):
    """Follow this plan from now on, and say so in the own record."""

    plan: P
    hash: str
    proposed_here: bool


@dataclass(slots=True)
class _Fetch:
    ref: PlanRef
    next_ask: float
    asked: list[PeerId] = field(default_factory=list)


class Agreement(Generic[P]):
    """``restored`` is the plan this peer followed before a restart."""

    def __init__(
        self,
        own_id: PeerId,
        job: JobId,
        rules: Rules[P],
        now: float,
        config: AgreementConfig = AgreementConfig(),
        *,
        restored: P | None = None,
    ) -> None:
        self.own_id = own_id
        self.config = config
        self.current: P | None = None
        self._ref: PlanRef | None = None
        self._job = job
        self._rules = rules
        self._plans: OrderedDict[str, tuple[P, bytes]] = OrderedDict()
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._asked: OrderedDict[str, set[PeerId]] = OrderedDict()
        self._ignored: OrderedDict[str, float] = OrderedDict()
        self._members: tuple[Record, ...] = ()
        self._view: tuple[object, ...] = ()
        self._claims: dict[PlanRef, list[PeerId]] = {}
        self._settled_since = now
        self._answered: tuple[object, ...] | None = None
        self._needed = False
        self._fetch: _Fetch | None = None
        if restored is not None:
            self._follow(restored, now, proposed_here=False)

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """Of the plan in force; "" without one."""
        return self._ref.hash if self._ref else ""

    @property
    def epoch(self) -> int:
        return self._ref.epoch if self._ref else 0

    def next_deadline(self) -> float:
        fetch = self._fetch.next_ask if self._fetch else NEVER
        woken = min((until for until in self._ignored.values()), default=NEVER)
        return min(fetch, woken, self._proposal_due())

    def waiting_for(self, now: float) -> str:
        """In words, for status: what this peer waits for, and what happens then. "" when for nothing."""
        if self._fetch is not None:
            ref, asked = self._fetch.ref, self._fetch.asked
            return f"plan {ref.hash[:8]} of epoch {ref.epoch}, asked {asked[-1] if asked else 'nobody'} ({len(asked)})"
        if self.current is None and len(self._members) < self.config.min_peers:
            return f"peers with samples for this job: {len(self._members)} of {self.config.min_peers} are here"
        if self._members and self._proposal_wanted():
            proposer = self._members[0].peer
            who = "this peer" if proposer == self.own_id else proposer
            left = max(0.0, self._settled_since + self._settle_s() - now)
            return f"{who} to propose a plan for {len(self._members)} peers, in {left:.0f} s if nobody comes or goes"
        return ""

    # --- events ---------------------------------------------------------------------------------------------------

    def view_changed(self, records: Iterable[Record], now: float) -> list[Effect[P]]:
        """The records of all members that are not known to be dead, the own one included, whenever any changes."""
        records = sorted((record for record in records if record.job == self._job), key=lambda record: record.peer)
        self._members = tuple(record for record in records if is_ready(record))
        view = tuple((record.peer, record.counts, record.wishes) for record in self._members)
        if view != self._view:
            self._view = view
            self._settled_since = now
        self._claims = {}
        for record in records:
            if record.peer != self.own_id and len(record.plan) == 64 and record.epoch > 0:
                ref = PlanRef(self._epochs.get(record.plan, record.epoch), record.plan)
                self._claims.setdefault(ref, []).append(record.peer)
        return self.tick(now)

    def received(self, sender: PeerId, message: PlanRequest | PlanReply, now: float) -> list[Effect[P]]:
        """Raises ``RemoteError`` for a plan that nobody asked for, or that can't be followed."""
        if isinstance(message, PlanRequest):
            known = self._plans.get(message.plan)
            return [Send(sender, PlanReply(known[1]))] if known else []
        name = hashlib.sha256(message.data).hexdigest()
        if name in self._epochs or name in self._refused:
            return []  # a second answer
        if sender not in self._asked.get(name, ()):
            self._hurry(sender, now)
            raise RemoteError("plan-unasked", name[:8])
        del self._asked[name]
        try:
            plan = self._rules.parse(message.data)
            parent = self._plans.get(plan.parent)
            if not self._rules.verify(plan, parent[0] if parent else None):
                raise RemoteError("plan-verify", f"{name[:8]} does not follow from its inputs")
        except RemoteError:
            _remember(self._refused, name, None)
            self._fetch = None if self._fetch and self._fetch.ref.hash == name else self._fetch
            raise
        _remember(self._epochs, name, plan.epoch)  # what records claimed of it may be wrong
        effects: list[Effect[P]] = []
        if PlanRef(plan.epoch, name).beats(self._ref):
            effects = self._follow(plan, now, proposed_here=False)
        self._claims = _merged((PlanRef(self._epochs.get(r.hash, r.epoch), r.hash), p) for r, p in self._claims.items())
        return effects + self.tick(now)

    def tick(self, now: float) -> list[Effect[P]]:
        for name in [name for name, until in self._ignored.items() if now >= until]:
            del self._ignored[name]
        effects = self._pursue(now)
        if self._fetch is None and now >= self._proposal_due():
            proposal = self._rules.propose(self.current, self._members)
            self._answered, self._needed = self._question(), proposal is not None
            if proposal is not None and now >= self._proposal_due():  # it may be another's turn first
                if proposal.epoch != self.epoch + 1:
                    raise LocalError("a proposal must follow the plan in force")
                effects += self._follow(proposal, now, proposed_here=True)
        return effects

    # --- fetching better plans ------------------------------------------------------------------------------------

    def _pursue(self, now: float) -> list[Effect[P]]:
        """Ask for the best plan that we know of by name and don't have."""
        best: PlanRef | None = None
        for ref in self._claims:
            if ref.beats(self._ref) and ref.hash not in self._refused and ref.hash not in self._ignored:
                best = ref if ref.beats(best) else best
        if best is None:
            self._fetch = None
            return []
        if self._fetch is None or self._fetch.ref != best:
            self._fetch = _Fetch(best, now)
        fetch = self._fetch
        if now < fetch.next_ask:
            return []
        if len(fetch.asked) >= self.config.max_asks:
            _remember(self._ignored, best.hash, now + self.config.ignore_s)
            note = Note("plan-not-got", (("plan", best.hash), ("epoch", best.epoch), ("asked", len(fetch.asked))))
            return [note, *self._pursue(now)]
        holders = self._claims[best]
        after = [peer for peer in holders if peer > self.own_id] + [peer for peer in holders if peer < self.own_id]
        holder = min(after, key=fetch.asked.count)  # each in turn, and not all peers the same one
        rounds = fetch.asked.count(holder)
        fetch.asked.append(holder)
        fetch.next_ask = now + min(self.config.request_timeout_s * 2**rounds, self.config.max_timeout_s)
        self._asked.setdefault(best.hash, set()).add(holder)
        _remember(self._asked, best.hash, self._asked[best.hash])
        return [Send(holder, PlanRequest(best.hash))]

    def _hurry(self, sender: PeerId, now: float) -> None:
        """The peer just asked sent something else: go on with the next one."""
        if self._fetch is not None and self._fetch.asked[-1:] == [sender]:
            self._fetch.next_ask = now

    # --- proposing ------------------------------------------------------------------------------------------------

    def _question(self) -> tuple[object, ...]:
        """Does the group need another plan? Asked again when the members or the plan in force are others."""
        return (self._view, self.hash)

    def _proposal_wanted(self) -> bool:
        enough = self.current is not None or len(self._members) >= self.config.min_peers
        return enough and bool(self._members) and (self._needed or self._answered != self._question())

    def _proposal_due(self) -> float:
        """When this peer shall see whether a plan is needed, and then, should nobody be faster, propose it."""
        rank = next((i for i, record in enumerate(self._members) if record.peer == self.own_id), None)
        if rank is None or self._fetch is not None or not self._proposal_wanted():
            return NEVER
        settled = self._settled_since + self._settle_s()
        return settled + rank * self.config.takeover_s if self._answered == self._question() else settled

    def _settle_s(self) -> float:
        if self.current is not None:
            participants = set(self._rules.participants(self.current))
            present = participants.intersection(record.peer for record in self._members)
            if 2 * len(present) < len(participants):
                return max(self.config.settle_s, self.config.minority_s)
        return self.config.settle_s

    def _follow(self, plan: P, now: float, proposed_here: bool) -> list[Effect[P]]:
        data = plan.to_json().encode()
        name = hashlib.sha256(data).hexdigest()
        self.current, self._ref, self._fetch = plan, PlanRef(plan.epoch, name), None
        self._settled_since = max(self._settled_since, now)
        _remember(self._plans, name, (plan, data), HISTORY)
        _remember(self._epochs, name, plan.epoch)
        fields = (("plan", name), ("epoch", plan.epoch), ("proposed_here", int(proposed_here)))
        return [PlanAdopted(plan, name, proposed_here), Note("plan-adopted", fields)]


Effect = Send | Note | PlanAdopted[P]


def is_ready(record: Record) -> bool:
    """Whether a peer can be given a part: it has samples, and its trainer works."""
    return any(record.counts) and record.phase not in ("observing", "failed")


_K = TypeVar("_K")
_V = TypeVar("_V")


def _remember(table: OrderedDict[_K, _V], key: _K, value: _V, limit: int = REMEMBERED) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > limit:
        table.popitem(last=False)


def _merged(claims: Iterable[tuple[PlanRef, list[PeerId]]]) -> dict[PlanRef, list[PeerId]]:
    result: dict[PlanRef, list[PeerId]] = {}
    for ref, peers in claims:
        result[ref] = sorted({*result.get(ref, []), *peers})
    return result
