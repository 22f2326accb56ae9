"""Which plan a peer follows: proposals, news of better ones, and the rule by which all end up with the same.

Invariant: the plan in force only ever gives way to a better one that parsed and verified. Better is the higher epoch,
and of one epoch the lower hash: a total order, so peers that can hear each other converge with no coordinator.

Theory. A plan is a pure function of its inputs, which it carries; anyone may propose and everyone can check. To keep
rivals rare, only the fastest ready member proposes (of equals the lowest id), once its view of the ready members has
been stable for ``settle_s``; the next in order steps in ``takeover_s`` later each. Rivals do happen (two halves of a
split network) and the order above settles them; whoever lost its place is a joiner of the next plan. A peer that sees
less than half of its plan's peers may be the one that is cut off, or just started: it waits ``minority_s`` before it
plans alone.

With ``majority`` that is not enough: a plan that follows from another takes effect only when a majority of the other
one's peers votes for it (``ballot``), so that two halves of a split network never both go on. Whoever sees a vote for
a plan it does not know fetches and verifies it, and votes for the best that it knows of; whoever sees the majority
follows. A plan whose parent is not known here is not ours to vote on: it is followed once somebody does.

    no plan --(min_peers ready, settled: propose)--> following      no plan --(heard of a plan: fetch)--> following
    following --(members changed, settled: propose)--> following    following --(heard of a better one)--> following
    following --(proposed, or heard of a vote: vote)--> pending --(a majority)--> following the next plan
    pending --(``vote_s`` without a majority: withdraw)--> following, and the members settle anew

How a better plan is fetched: ``plan_fetch``.

What a plan is stays with the caller, whose ``rules`` read, check and make them; the answer to a ``PlanWork`` counts if
the members are still the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Generic

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.consensus.ballot import Ballot, PlanRef, carries
from p2ptrain.protocol.consensus.plan_fetch import PlanFetch, remember
from p2ptrain.protocol.consensus.rules import AgreementConfig, Effect, P, PlanAdopted, PlanResult, Rules, VoteFor
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import NO_PART, PlanReply, PlanRequest, Record

HISTORY = 16
"""Plans kept to serve them, and to check the plans that follow from them."""


class Agreement(Generic[P]):
    """``restored`` is the plan this peer followed before a restart."""

    def __init__(
        self,
        own_id: PeerId,
        job: JobId,
        rules: Rules[P],
        now: float,
        config: AgreementConfig | None = None,
        *,
        restored: P | None = None,
    ) -> None:
        self.own_id = own_id
        self.config = config or AgreementConfig()
        self.current: P | None = None
        self._ref: PlanRef | None = None
        self._job = job
        self._rules = rules
        self._plans: OrderedDict[str, tuple[P, bytes]] = OrderedDict()
        self._members: tuple[Record, ...] = ()
        self._unready: list[PeerId] = []
        """The first few that are here and can't be given a part yet."""
        self._view: tuple[object, ...] = ()
        self._settled_since = now
        self._asking: tuple[object, ...] | None = None
        """What the question is about that is being worked out."""
        self._answered: tuple[object, ...] | None = None
        self._needed = False
        self._num_lessons = 0
        """How often the rules came to know more."""
        self.problem = ""
        """Why no plan could be made when one was last asked for; "" = nothing stood in the way."""
        self._fetch = PlanFetch(own_id, self.config.fetch, lambda name: self._ballot.get(name) is not None)
        self._ballot: Ballot[P] = Ballot(own_id, self.config.vote_s)
        self._proposed = ""
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

    @property
    def is_settled(self) -> bool:
        """A plan is in force, and as far as this peer can see it will stay."""
        return self.current is not None and not self._is_busy() and not self._proposal_wanted()

    def next_deadline(self) -> float:
        return min(self._fetch.deadline(), self._ballot.deadline(), self._proposal_due())

    def waiting_for(self, now: float) -> str:
        """In words, for status: what this peer waits for, and what happens then. "" when for nothing."""
        if self._fetch.asking is not None:
            ref, asked = self._fetch.asking.ref, self._fetch.asking.asked
            return f"plan {ref.hash[:8]} of epoch {ref.epoch}, asked {asked[-1] if asked else 'nobody'} ({len(asked)})"
        if self.current is None and len(self._members) < self.config.min_peers:
            unready = f"; not ready yet: {', '.join(self._unready)}" if self._unready else ""
            return f"{self._rules.wanted}: {len(self._members)} of {self.config.min_peers} are here{unready}"
        if self._ballot.own is not None:
            return self._votes_missing(self._ballot.own)
        if self._asking is not None:
            return f"a plan for {len(self._members)} peers, which this peer works out"
        if self._members and self._proposal_wanted() and (self.current is None or self._members[0].peer == self.own_id):
            proposer = self._members[0].peer
            who = "this peer" if proposer == self.own_id else proposer
            left = max(0.0, self._settled_since + self._settle_s() - now)
            return f"{who} to propose a plan for {len(self._members)} peers, in {left:.0f} s if nobody comes or goes"
        return ""

    # --- events ---------------------------------------------------------------------------------------------------

    def view_changed(self, records: Iterable[Record], now: float, left: Collection[PeerId] = ()) -> list[Effect[P]]:
        """The records of all members that are not known to be dead, the own one included, whenever any changes.

        ``left`` are the peers that said goodbye: they have no vote. Who is merely gone has one, and doesn't cast it.
        """
        records = sorted((record for record in records if record.job == self._job), key=_seniority)
        self._members = tuple(record for record in records if self._is_ready(record))
        self._unready = [r.peer for r in records if r.phase != "observing" and not self._is_ready(r)][:4]
        view = tuple(self._seen(record) for record in self._members)
        if view != self._view:
            self._view = view
            self._settled_since = now
        others = [record for record in records if record.peer != self.own_id]
        self._ballot.poll(others, left)
        self._fetch.claimed(self._claims(others))
        return self.tick(now)

    def reconsider(self, now: float) -> list[Effect[P]]:
        """The rules know more than when they last were asked for a proposal."""
        self._num_lessons += 1
        return self.tick(now)

    def answered(self, answer: PlanResult[P], now: float) -> list[Effect[P]]:
        """The answer to the last ``PlanWork``."""
        asked, self._asking = self._asking, None
        if asked is None:
            raise LocalError("an answer that nobody asked for")
        if asked[:-1] != self._question()[:-1]:
            return self.tick(now)  # members came or went, or another plan is in force: it may not be true any more
        plan = self._rules.timed(answer.plan) if answer.plan is not None else None
        self._answered, self._needed, self.problem = asked, plan is not None, answer.problem
        if plan is None or self._is_busy():
            return self.tick(now)
        if plan.epoch != self.epoch + 1:
            raise LocalError("a proposal must follow the plan in force")
        return self._propose(plan, now)

    def received(self, sender: PeerId, message: PlanRequest | PlanReply, now: float) -> list[Effect[P]]:
        """Raises ``RemoteError`` for a plan that nobody asked for, or that can't be followed."""
        if isinstance(message, PlanRequest):
            known = self._known(message.plan)
            return [Send(sender, PlanReply(known[1]))] if known else []
        name = hashlib.sha256(message.data).hexdigest()
        if self._fetch.is_settled(name, sender):
            return []
        if not self._fetch.answered(name, sender, now):
            raise RemoteError("plan-unasked", name[:8])
        try:
            plan = self._rules.parse(message.data)
            parent = self._known(plan.parent)
            if not self._rules.verify(plan, parent[0] if parent else None):
                raise RemoteError("plan-verify", f"{name[:8]} does not follow from its inputs")
        except RemoteError:
            self._fetch.refuse(name)
            raise
        ref = PlanRef(plan.epoch, name)
        self._fetch.known(ref)
        if ref.beats(self._ref):
            self._ballot.stand(ref, plan, message.data)
        return self.tick(now)

    def tick(self, now: float) -> list[Effect[P]]:
        effects = [*self._decide(now), *self._fetch.pursue(self._ref, now)]
        if now >= self._proposal_due():
            self._asking = self._question()
            effects.append(self._rules.question(self.current, self._members))
        return effects

    def _is_ready(self, record: Record) -> bool:
        return record.phase not in ("observing", "failed") and self._rules.is_ready(record)

    def _seen(self, record: Record) -> tuple[object, ...]:
        """What of a member bears on which plan is best, and restarts settling when it changes."""
        figures = (record.counts, record.wishes, record.slowdown, record.profile, record.link_bytes_per_s, record.links)
        idle = self.config.majority and record.plan == self.hash and record.part == NO_PART
        return (record.peer, *figures, idle)

    def _claims(self, others: Iterable[Record]) -> Iterator[tuple[PeerId, str, int]]:
        """Who has which plan, and of which epoch it ought to be."""
        for record in others:
            yield record.peer, record.plan, record.epoch
            if self.config.majority and record.vote != record.plan:
                yield record.peer, record.vote, record.epoch + 1

    def _known(self, name: str) -> tuple[P, bytes] | None:
        return self._plans.get(name) or self._ballot.get(name)

    # --- voting ---------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Effect[P]]:
        """Follow the best plan that may take effect; give up a vote that brought nothing; vote for what is better."""
        effects: list[Effect[P]] = []
        while carried := next((each for each in self._ballot.candidates() if self._may_follow(*each)), None):
            ref, plan = carried
            effects += self._follow(plan, now, proposed_here=ref.hash == self._proposed)
        if now >= self._ballot.deadline() and self._ballot.own is not None:
            lost = self._ballot.own
            known = self._ballot.get(lost.hash)
            if known is not None and len(self._electorate(known[0]) or ()) == 2:
                return [*effects, *self._follow(known[0], now, proposed_here=lost.hash == self._proposed)]
            self._ballot.give_up()
            self._answered, self._settled_since = None, now
            effects += [VoteFor("", None), Note("vote-withdrawn", (("plan", lost.hash), ("epoch", lost.epoch)))]
        for ref, plan in self._ballot.candidates():
            if self._has_vote(plan) and self._ballot.may_vote(ref):
                return [*effects, *self._vote(ref, plan, now)]
        return effects

    def _may_follow(self, ref: PlanRef, plan: P) -> bool:
        if not self.config.majority or not plan.parent:
            return True
        electorate = self._electorate(plan)
        if electorate is None:
            return bool(self._ballot.followers(ref.hash))
        return carries(self._ballot.voters(ref.hash), electorate)

    def _electorate(self, plan: P) -> set[PeerId] | None:
        """Who votes on ``plan``: those its parent gives work to. None where the parent is not known."""
        parent = self._known(plan.parent)
        return set(self._rules.participants(parent[0])) - self._ballot.left if parent else None

    def _has_vote(self, plan: P) -> bool:
        """Not on a rival of the plan in force that a majority follows: who was cut off meanwhile may still vote for one
        of its own, which would undo what all others have done since."""
        electorate = self._electorate(plan)
        if electorate is None or self.own_id not in electorate:
            return False
        return plan.epoch == self.epoch + 1 or (plan.epoch <= self.epoch and not self._is_carried())

    def _is_carried(self) -> bool:
        """Whether most of those who had a vote on the plan in force follow it."""
        electorate = self._electorate(self.current) if self.current is not None and self.current.parent else None
        return electorate is not None and carries(self._ballot.followers(self.hash) | {self.own_id}, electorate)

    def _vote(self, ref: PlanRef, plan: P, now: float) -> list[Effect[P]]:
        """The own vote may be the last one that was missing."""
        self._ballot.vote(ref, now)
        return [VoteFor(ref.hash, plan), Note("voted", (("plan", ref.hash), ("epoch", ref.epoch))), *self._decide(now)]

    def _votes_missing(self, ref: PlanRef) -> str:
        known = self._known(ref.hash)
        electorate = (self._electorate(known[0]) if known else None) or set()
        missing = sorted(electorate - self._ballot.voters(ref.hash))
        names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        num_votes = len(electorate) - len(missing)
        return f"votes for plan {ref.hash[:8]} of epoch {ref.epoch}: {num_votes} of {len(electorate)}, not yet {names}"

    # --- proposing ------------------------------------------------------------------------------------------------

    def _question(self) -> tuple[object, ...]:
        """Does the group need another plan? Asked again when the members or the plan in force are others, or (the last
        of these) when more is known."""
        return (self._view, self.hash, self._num_lessons)

    def _proposal_wanted(self) -> bool:
        enough = self.current is not None or len(self._members) >= self.config.min_peers
        if not enough or not self._members or not (self._needed or self._answered != self._question()):
            return False
        return not self._rules.is_beginning(self.current, self._members)

    def _proposal_due(self) -> float:
        """When this peer shall see whether a plan is needed, and if so propose it, should nobody have done so."""
        return NEVER if self._is_busy() or not self._proposal_wanted() else self._turn()

    def _is_busy(self) -> bool:
        """Working out whether a plan is needed, fetching a better one, or waiting for what the own vote brings."""
        return self._asking is not None or self._fetch.asking is not None or self._ballot.own is not None

    def _turn(self) -> float:
        """When this peer may propose; NEVER as long as it is not ready itself.

        It does not look any sooner whether a plan is needed: on a small device that takes seconds, which its stage
        would wait for.
        """
        rank = next((place for place, record in enumerate(self._members) if record.peer == self.own_id), None)
        if rank is None:
            return NEVER
        return self._settled_since + self._settle_s() + rank * self.config.takeover_s

    def _settle_s(self) -> float:
        if self.current is not None:
            participants = set(self._rules.participants(self.current))
            present = participants.intersection(record.peer for record in self._members)
            if 2 * len(present) < len(participants):
                return max(self.config.settle_s, self.config.minority_s)
        return self.config.settle_s

    def _propose(self, plan: P, now: float) -> list[Effect[P]]:
        if not self.config.majority or not plan.parent:
            return self._follow(plan, now, proposed_here=True)
        data = plan.to_json().encode()
        ref = PlanRef(plan.epoch, hashlib.sha256(data).hexdigest())
        self._proposed = ref.hash
        self._fetch.known(ref)
        self._ballot.stand(ref, plan, data)
        return self._vote(ref, plan, now)

    def _follow(self, plan: P, now: float, proposed_here: bool) -> list[Effect[P]]:
        data = plan.to_json().encode()
        name = hashlib.sha256(data).hexdigest()
        self.current, self._ref = plan, PlanRef(plan.epoch, name)
        self._fetch.known(self._ref)
        self._fetch.asking = None
        self._settled_since = max(self._settled_since, now)
        remember(self._plans, name, (plan, data), HISTORY)
        fields = (("plan", name), ("epoch", plan.epoch), ("proposed_here", int(proposed_here)))
        effects: list[Effect[P]] = [PlanAdopted(plan, name, proposed_here), Note("plan-adopted", fields)]
        return [*effects, VoteFor("", None)] if self._ballot.decided(self._ref) else effects


def _seniority(record: Record) -> tuple[float, PeerId]:
    """Who finds a plan soonest goes first."""
    return (-record.flops_per_s, record.peer)
