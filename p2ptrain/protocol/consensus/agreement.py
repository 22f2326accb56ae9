"""Which plan a peer follows: proposals, news of better ones, and the rule by which all end up with the same.

Invariant: the plan in force only gives way to a better one that parsed and verified, be it ours. Better is the higher
epoch, and of one epoch the lower hash: a total order, so peers that hear each other converge with no coordinator.

Theory. A plan is a pure function of its inputs, which it carries; anyone may propose and everyone can check. To keep
rivals rare, only the fastest ready member proposes (of equals the lowest id), once its view of the ready members has
been stable for ``settle_s`` (``torn_s`` where the plan in force can't go on; ``Arrivals`` before the first); the next
in order steps in ``takeover_s`` later each. Who sees less than half of its plan's peers waits ``minority_s`` first.

With ``majority`` that is not enough: a plan that follows from another takes effect only when a majority of the other
one's peers votes for it (``ballot``). Whoever hears of a vote for a plan it does not know fetches and verifies it, and
votes for it if it may; whoever sees the majority follows, and so does whoever hears of one that follows. Those who are
no majority go on alone when they have waited for the others for ``alone_s``, if their rules let them. When parts meet,
all follow the highest epoch; but where the plan in force has brought its peers further, they take the others in.

    no plan --(min_peers ready, settled: propose)--> following      no plan --(heard of a plan: fetch)--> following
    following --(members changed, settled: propose)--> following    following --(heard of a better one)--> following
    following --(proposed, or heard of a vote: vote)--> pending --(a majority)--> following the next plan
    pending --(members changed, or ``vote_s`` without a majority)--> following, and the members settle anew
    pending --(proposed here, ``alone_s`` without enough peers: go alone)--> following

How a better plan is fetched: ``plan_fetch``. What it has to follow from: ``parentage``. What a plan is stays with the
caller's ``rules``; the answer to a ``PlanWork`` counts if the members are still the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import JobId, PeerId
from p2ptrain.protocol.consensus import candidates
from p2ptrain.protocol.consensus.ballot import Ballot, PlanRef, carries
from p2ptrain.protocol.consensus.parentage import Parentage
from p2ptrain.protocol.consensus.plan_fetch import PlanFetch, remember
from p2ptrain.protocol.consensus.rules import AgreementConfig, Effect, P, PlanAdopted, PlanResult, Rules, VoteFor
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import PlanReply, PlanRequest, PlanVote, Record

HISTORY = 16
"""Plans kept to serve them, and to check those that follow."""


class Agreement(Generic[P]):
    """``restored`` is the plan this peer followed before a restart, ``voted`` what it voted for last."""

    def __init__(
        self,
        own_id: PeerId,
        job: JobId,
        rules: Rules[P],
        now: float,
        config: AgreementConfig | None = None,
        *,
        restored: P | None = None,
        voted: PlanRef | None = None,
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
        self._view: tuple[object, ...] = ()
        self._settled_since, self.arrivals = now, candidates.Arrivals(now)
        self._asking: tuple[object, ...] | None = None
        """What the question is about that is being worked out."""
        self._answered: tuple[object, ...] | None = None
        self._needed = False
        self._num_lessons = 0
        """How often the rules came to know more."""
        self.problem = ""
        """Why no plan could be made when one was last asked for."""
        self.parentage: Parentage[P] = Parentage(self._plans, lambda name: self._ballot.get(name), rules.verify)
        self._fetch = PlanFetch(own_id, self.config.fetch, lambda name: self.parentage.get(name) is not None)
        self._ballot: Ballot[P] = Ballot(own_id, self.config.vote_s, self.config.alone_s, voted)
        self._proposed = ""
        self._needs_no_votes = ""
        """The own proposal, if its epoch need only be kept: a first plan, or one of who goes alone."""
        self._proposed_to: frozenset[PeerId] = frozenset()
        self._records: tuple[Record, ...] = ()
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
        return min(each.deadline() for each in (self._fetch, self._ballot, self.parentage, self))

    def deadline(self) -> float:
        """When this peer shall see whether a plan is needed, and if so propose it, should nobody have done so."""
        return NEVER if self._is_busy() or not self._proposal_wanted() else self._turn()

    def waiting_for(self, now: float) -> str:
        """In words, for status: what this peer waits for, and what happens then. "" when for nothing."""
        if self._fetch.asking is not None:
            return str(self._fetch.asking)
        if self.current is None and len(self._members) < self.config.min_peers:
            unready = f"; not ready yet: {', '.join(self._unready)}" if self._unready else ""
            return f"{self._rules.wanted}: {len(self._members)} of {self.config.min_peers} are here{unready}"
        if self._ballot.own is not None:
            own, known = self._ballot.own, self._ballot.get(self._ballot.own.hash)
            electorate = self._electorate(known[0]) if known else None
            return candidates.votes_missing(own, electorate or set(), self._ballot.voters(own.hash))
        if self._asking is not None:
            return f"a plan for {len(self._members)} peers, which this peer works out"
        if self._members and self._proposal_wanted() and (self.current is None or self._members[0].peer == self.own_id):
            return candidates.proposal_words(self.own_id, self._members, self._settled_since + self._settle_s() - now)
        return ""

    # --- events ---------------------------------------------------------------------------------------------------

    def view_changed(
        self, records: Iterable[Record], now: float, left: Iterable[PeerId] = (), ended: Iterable[PeerId] = ()
    ) -> list[Effect[P]]:
        """The records of all members that are not known to be dead, the own one included, whenever any changes.

        ``left`` said goodbye, and the processes of ``ended`` have: nobody waits for their votes.
        """
        self._ballot.ended = frozenset(ended)
        records = sorted((record for record in records if record.job == self._job), key=candidates.seniority)
        self._members = tuple(record for record in records if self._is_ready(record))
        self._unready = [r.peer for r in records if r.phase != "observing" and not self._is_ready(r)][:4]
        self.arrivals.look((record.peer for record in records), now, all_ready=not self._unready)
        view = tuple(candidates.seen(record, self.hash if self.config.majority else "") for record in self._members)
        if view != self._view:
            self._view = view
            self._settled_since = now
        self._records = tuple(record for record in records if record.peer != self.own_id)
        self._ballot.poll(self._records, left)
        self._fetch.claimed(self._claims())
        self.parentage.followed((record.plan for record in self._records), now)
        self._count_heads(now)
        self._look_at_vote(now)
        return self.tick(now)

    def reconsider(self, now: float) -> list[Effect[P]]:
        """The rules know more than when they last were asked for a proposal."""
        self._num_lessons += 1
        self._look_at_vote(now)
        return self.tick(now)

    def answered(self, answer: PlanResult[P], now: float) -> list[Effect[P]]:
        """The answer to the last ``PlanWork``."""
        asked, self._asking = self._asking, None
        if asked is None:
            raise LocalError("an answer that nobody asked for")
        if asked[:-1] != self._question()[:-1]:
            return self.tick(now)  # members came or went, or another plan is in force: it may not be true any more
        plan = self._rules.timed(answer.plan, self._next_epoch()) if answer.plan is not None else None
        if plan is not None and self.config.majority and plan.epoch <= self._ballot.last_epoch:
            plan = self._rules.timed(plan, self._ballot.epoch_apart(self.epoch))
        self._answered, self._needed, self.problem = asked, plan is not None, answer.problem
        if plan is not None and (why := candidates.objection(self._rules, plan, self.current)):
            plan, self._needed, self.problem = None, False, why
        return self.tick(now) if plan is None or self._is_busy() else self._propose(plan, now)

    def received(self, sender: PeerId, message: PlanRequest | PlanReply | PlanVote, now: float) -> list[Effect[P]]:
        """Raises ``RemoteError`` for a plan that nobody asked for, or that can't be followed."""
        if isinstance(message, PlanVote):
            self._ballot.told(sender, message)
            self._ballot.poll(self._records, self._ballot.left)
            self._fetch.claimed(self._claims())
            self._look_at_vote(now)
            return self.tick(now)
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
        except RemoteError:
            self._fetch.refuse(name)
            raise
        if not self.parentage.follows(name, plan):
            self._fetch.refuse(name)
            if plan.proposer == sender:
                raise RemoteError("plan-verify", f"{name[:8]} does not follow from its inputs")
            return [Note("plan-refused", (("plan", name), ("peer", plan.proposer))), *self.tick(now)]
        ref = PlanRef(plan.epoch, name)
        self._fetch.known(ref)
        if ref.beats(self._ref):
            self._ballot.stand(ref, plan, message.data)
        else:
            self.parentage.keep(name, plan)
        self._fetch.claimed(self._claims())
        return self.tick(now)

    def tick(self, now: float) -> list[Effect[P]]:
        effects = [*self._decide(now), *self._fetch.pursue(self._ref, now)]
        if now < self.deadline():
            return effects
        self._asking = self._question()
        return [*effects, self._rules.question(self.current, self._members)]

    def _is_ready(self, record: Record) -> bool:
        return record.phase not in ("observing", "failed") and self._rules.is_ready(record)

    def _claims(self) -> Iterator[tuple[PeerId, str, int]]:
        """Who has which plan, and of which epoch it ought to be; and who may have one that another follows from."""
        for ref, plan in self._ballot.candidates():
            wanted_by = self._ballot.wanted_by(ref.hash) if (missing := self.parentage.missing(plan)) else ()
            yield from ((peer, missing, ref.epoch) for peer in sorted(wanted_by))
        for record in self._records:
            yield record.peer, record.plan, record.epoch
            if self.config.majority and record.vote != record.plan:
                yield record.peer, record.vote, record.epoch + 1
        if self.config.majority:
            here = {record.peer for record in self._records}
            yield from ((peer, vote.plan, vote.epoch) for peer, vote in self._ballot.claims() if peer in here)

    def _known(self, name: str) -> tuple[P, bytes] | None:
        return self._plans.get(name) or self._ballot.get(name)

    # --- voting ---------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Effect[P]]:
        """Follow the best plan that may take effect; vote for what is better; and see what comes of the own vote."""
        effects: list[Effect[P]] = []
        self.parentage.settled(ref.hash for ref, _ in self._ballot.candidates())
        while carried := next((each for each in self._ballot.candidates() if self._may_follow(*each, now)), None):
            effects += self._follow(carried[1], now, proposed_here=carried[0].hash == self._proposed)
        if now >= self._ballot.deadline():
            effects += self._vote_failed(now)
        for ref, plan in self._ballot.candidates():
            if not self._has_vote(plan) or not self._ballot.wanted_by(ref.hash):
                continue
            if not self._ballot.may_vote(ref, self.epoch):
                effects += self._ballot.correction(ref, plan.proposer)
            elif self._rules.accepts(plan):
                return [*effects, *self._ballot.choose(ref, now)]
        return effects

    def _may_follow(self, ref: PlanRef, plan: P, now: float) -> bool:
        followers = self._ballot.followers(ref.hash)
        if not self.parentage.may_follow(ref.hash, plan, self.epoch, len(followers), now):
            return False
        if not self.parentage.is_sound(ref.hash, plan):
            self._fetch.refuse(ref.hash)
            self._ballot.drop(ref.hash)
            return False
        if not self.config.majority or not plan.parent:
            return True
        electorate, is_next = self._electorate(plan), plan.parent == self.hash
        if is_next and electorate is not None and carries(self._ballot.voters(ref.hash), electorate):
            return True
        current, rules = self.current, self._rules
        alone = self._ballot.is_short and current is not None and rules.may_go_alone(current, self._members)
        if not (followers if electorate is None or alone else followers & electorate):  # who came later has no vote
            return False
        return is_next or current is None or not rules.holds_on(current, plan, self._records, followers)

    def _electorate(self, plan: P) -> set[PeerId] | None:
        """Whom its parent gives work to. None where the parent is not known."""
        parent = self._known(plan.parent)
        return set(self._rules.participants(parent[0])) if parent else None

    def _has_vote(self, plan: P) -> bool:
        """Not on a rival of the plan in force: that would undo what all others have done since."""
        electorate = self._electorate(plan)
        return plan.parent == self.hash and electorate is not None and self.own_id in electorate

    def vote_kept(self, ref: PlanRef, saved: bool, now: float) -> list[Effect[P]]:
        """The answer to ``KeepVote``: it is safe on disk, or the disk refused it, and it is not cast."""
        if not saved:
            return [Note("vote-not-kept", (("epoch", ref.epoch),))]
        plan = self._ballot.kept(ref)
        if plan is None or plan.parent != self.hash:
            return self.tick(now)
        if self._needs_no_votes == ref.hash:
            of = len(self._rules.participants(self.current)) if self.current is not None else 0
            note = Note("goes-on-alone", (("here", len(self._members)), ("of", of), ("epoch", plan.epoch)))
            return [*([note] if of else []), *self._follow(plan, now, proposed_here=True), *self.tick(now)]
        self._ballot.cast(ref, now)
        voted = Note("voted", (("plan", ref.hash), ("epoch", ref.epoch)))
        return [VoteFor(ref.hash, plan), *self._tell(ref, adopted=False), voted, *self.tick(now)]  # the last one?

    def _tell(self, ref: PlanRef, *, adopted: bool) -> list[Effect[P]]:
        return [Send(record.peer, PlanVote(ref.hash, ref.epoch, adopted)) for record in self._records]

    def _look_at_vote(self, now: float) -> None:
        """Is what this peer voted for still the plan to have?"""
        own = self._ballot.own
        known = self._ballot.get(own.hash) if own is not None else None
        if own is None or known is None:
            return
        if own.hash == self._proposed:
            outdated = self._proposed_to != frozenset(r.peer for r in self._members)
            here = {self.own_id, *(record.peer for record in self._records)}
            outdated = outdated or not self._rules.accepts(known[0])
            outdated = outdated or self._ballot.is_outvoted(here, self._electorate(known[0]) or set(), self.epoch)
        else:
            outdated = known[0].proposer not in {record.peer for record in self._records}
        if outdated:
            self._ballot.forget()
            self._answered, self._settled_since = None, now

    def _vote_failed(self, now: float) -> list[Effect[P]]:
        own, known = self._ballot.own, self._ballot.get(self._ballot.own.hash) if self._ballot.own else None
        if own is not None and known is not None and self.current is not None and self._ballot.is_short:
            may = self._ballot.is_deserted or self._rules.may_go_alone(self.current, self._members)
            if own.hash != self._proposed or not may:
                self._ballot.wait_longer(now)
                return []
            plan = self._rules.timed(known[0], self._ballot.epoch_apart(self.epoch))
            if plan is not None:
                return self._propose(plan, now, needs_votes=False)
        self._ballot.failed()
        self._answered, self._settled_since = None, now
        return [Note("vote-withdrawn", (("plan", own.hash), ("epoch", own.epoch)))] if own else []

    def _count_heads(self, now: float) -> None:
        if self.current is not None and self.config.majority:
            here = [self.own_id, *(record.peer for record in self._records)]
            self._ballot.count_heads(here, self._rules.participants(self.current), now)

    def _next_epoch(self) -> int:
        """Of a proposal: one that this peer has not voted for, and that beats the plans of others that are known."""
        return self._ballot.next_epoch(self.epoch) if self.config.majority and self.current else self.epoch + 1

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

    def _is_busy(self) -> bool:
        """Working out whether a plan is needed, fetching a better one, or waiting for what the own vote brings."""
        return any(each is not None for each in (self._asking, self._fetch.asking, self._ballot.own))

    def _turn(self) -> float:
        """When this peer may propose; NEVER as long as it is not ready itself. Who follows a later plan has no turn.

        It looks no sooner whether one is needed: that takes a small device seconds, which its stage would wait for."""
        ours = [record.peer for record in self._members if record.epoch <= self.epoch or not self.epoch]
        rank = ours.index(self.own_id) if self.own_id in ours else NEVER
        return self._settled_since + self._settle_s() + rank * self.config.takeover_s

    def _settle_s(self) -> float:
        first_s = self.arrivals.settle_s(self.config, self._settled_since)
        known = (self.config, self._rules, self.current, self.hash, self._members, self._records)
        return candidates.settle_s(*known, self._ballot.ended, first_s)

    def _propose(self, plan: P, now: float, *, needs_votes: bool = True) -> list[Effect[P]]:
        if not self.config.majority:
            return self._follow(plan, now, proposed_here=True)
        data = plan.to_json().encode()
        ref = PlanRef(plan.epoch, hashlib.sha256(data).hexdigest())
        self._proposed, self._proposed_to = ref.hash, frozenset(record.peer for record in self._members)
        self._fetch.known(ref)
        self._ballot.stand(ref, plan, data)
        self._needs_no_votes = "" if needs_votes and plan.parent else ref.hash
        return [*self._ballot.choose(ref, now)]

    def _follow(self, plan: P, now: float, proposed_here: bool) -> list[Effect[P]]:
        data = plan.to_json().encode()
        name = hashlib.sha256(data).hexdigest()
        self.current, self._ref = plan, PlanRef(plan.epoch, name)
        self._fetch.known(self._ref)
        self._fetch.stop()
        self._settled_since = max(self._settled_since, now)
        remember(self._plans, name, (plan, data), HISTORY)
        fields = (("plan", name), ("epoch", plan.epoch), ("proposed_here", int(proposed_here)))
        effects: list[Effect[P]] = [PlanAdopted(plan, name, proposed_here), Note("plan-adopted", fields)]
        effects += self._tell(self._ref, adopted=True) if self.config.majority and plan.parent else []
        void = self._ballot.decided(self._ref)
        self._count_heads(now)
        return [*effects, VoteFor("", None)] if void else effects
