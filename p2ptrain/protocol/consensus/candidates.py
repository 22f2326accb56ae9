"""Who may be given a part by a plan: who of them proposes first, what of each bears on it, and whose votes are missing.

And what others would have against a proposal.

Invariant: pure; by what the members' records say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.protocol.consensus.epochs import epoch_words
from p2ptrain.protocol.consensus.rules import AgreementConfig, P, Rules
from p2ptrain.wire.messages import NO_PART, Record
from p2ptrain.words import listed


def seniority(record: Record) -> tuple[float, PeerId]:
    """Who finds a plan soonest goes first."""
    return (-record.flops_per_s, record.peer)


def seen(record: Record, voted_on: str) -> tuple[object, ...]:
    """What of a member bears on which plan is best, and restarts settling when it changes. ``voted_on``: the plan in
    force if plans are voted on; who has lost its part of it says so."""
    figures = (record.counts, record.wishes, record.slowdown, record.profile, record.link_bytes_per_s, record.links)
    idle = voted_on != "" and record.plan == voted_on and record.part == NO_PART
    return (record.peer, *figures, idle, record.leaving)


def votes_missing(ref: PlanRef, electorate: Collection[PeerId], voters: Collection[PeerId]) -> str:
    """In words."""
    missing = sorted(set(electorate).difference(voters))
    num_votes = len(electorate) - len(missing)
    plan = f"plan {ref.hash[:8]} of epoch {epoch_words(ref.epoch)}"
    return f"votes for {plan}: {num_votes} of {len(electorate)}, not yet {listed(missing)}"


def proposal_words(own: PeerId, members: Sequence[Record], left_s: float) -> str:
    """Who proposes next, and when."""
    who = "this peer" if members[0].peer == own else members[0].peer
    when = f"in {max(0.0, left_s):.0f} s if nobody comes or goes"
    return f"{who} to propose a plan for {len(members)} peers, {when}"


class Arrivals:
    """Since when nobody new has come, and whether all who did are ready: then a first plan need not wait for more.

    ``num_coming``: how many are here and have no job yet.
    """

    def __init__(self, now: float) -> None:
        self.num_coming = 0
        self._here: frozenset[PeerId] = frozenset()
        self._last = now
        self._all_ready = False

    def look(self, here: Iterable[PeerId], now: float, *, all_ready: bool) -> None:
        here = frozenset(here)
        self._last = self._last if here <= self._here else now
        self._here, self._all_ready = here, all_ready

    def settle_s(self, config: AgreementConfig, settled_since: float) -> float:
        """How long the ready ones have to stay the same before the first plan. Plans that are voted on need more than
        readiness, such as links that are still being measured."""
        if config.majority or not self._all_ready or self.num_coming:
            return config.settle_s
        return min(config.settle_s, max(config.ready_s, self._last + config.settle_s - settled_since))


def settle_s(
    config: AgreementConfig,
    rules: Rules[P],
    current: P | None,
    name: str,
    members: Sequence[Record],
    others: Iterable[Record],
    ended: Collection[PeerId],
    first_s: float,
) -> float:
    """How long the ready ``members`` have to stay the same before somebody proposes; ``first_s`` without a plan.

    ``name``: of the plan in force; ``others`` are here, at least; ``ended``: whose processes have.
    """
    if current is None:
        return first_s
    participants = set(rules.participants(current)).difference(ended)
    present = participants.intersection(record.peer for record in members)
    if 2 * len(present) < len(participants):
        return max(config.settle_s, config.minority_s)
    # Started again, and not ready yet. Who knows the plan is here all the time, and has lost its trainer.
    returning = participants.intersection(record.peer for record in others if record.plan != name) - present
    if not returning and rules.is_torn(current, members):
        return min(config.settle_s, config.torn_s)
    return config.settle_s


def objection(rules: Rules[P], plan: P, parent: P | None) -> str:
    """Why others would refuse our own proposal; "" = they would not."""
    try:
        sound = rules.parse(plan.to_json().encode()) == plan and rules.verify(plan, parent)
    except RemoteError as error:
        return f"what this peer would propose is none: {error.detail}"
    return "" if sound else "what this peer would propose does not follow from its inputs"
