"""Who may be given a part by a plan: who of them proposes first, what of each bears on it, and whose votes are missing.

Invariant: pure; by what the members' records say.
"""

from __future__ import annotations

from collections.abc import Collection

from p2ptrain.ids import PeerId
from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.wire.messages import NO_PART, Record


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
    names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    num_votes = len(electorate) - len(missing)
    return f"votes for plan {ref.hash[:8]} of epoch {ref.epoch}: {num_votes} of {len(electorate)}, not yet {names}"
