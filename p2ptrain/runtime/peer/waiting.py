"""What a peer waits for, in words for people, and how its search for others fares: each source of addresses by itself.

Invariant: nothing is said that was not tried: an address that does not answer is named with the number of tries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2ptrain.core.mode import Role
from p2ptrain.core.plan import Plan
from p2ptrain.protocol.consensus.agreement import Agreement
from p2ptrain.protocol.session.address_book import Shut, Source, Unanswered
from p2ptrain.runtime.peer.completion import Completion
from p2ptrain.wire.messages import Record

MAX_NAMED = 3
_BY: Mapping[Source, str] = {
    "given": "given by --peer",
    "mdns": "found by mDNS",
    "remembered": "remembered from last time",
    "peer": "named by another peer",
    "wanted": "of a peer that there is something to say to",
}
_SHUT: Mapping[Shut, str] = {
    "there": "answers, and does not let this device in so far",
    "here": "answers, and has not been let in so far",
}


def finding_words(unanswered: Sequence[Unanswered], troubles: Mapping[str, str], other_version: bool = False) -> str:
    """``troubles``: by source, why it finds nothing; ``other_version``: a peer of one was met, at whatever address.

    "" where there is nothing to say.
    """
    order = list(_BY)
    tried = sorted((each for each in unanswered if each.attempts), key=lambda each: order.index(each.source))
    said = ["a peer of another version of p2ptrain was met: install the same on all"] if other_version else []
    said += [_tried(each, other_version) for each in tried[:MAX_NAMED]]
    if len(tried) > MAX_NAMED:
        said.append(f"nor do {len(tried) - MAX_NAMED} other addresses")
    return "; ".join([*said, *(f"{source} {why}" for source, why in sorted(troubles.items()))])


def _tried(each: Unanswered, other_version: bool) -> str:
    what = "doesn't answer" if not other_version else "led to nobody of this version so far"
    what = _SHUT.get(each.shut, what)
    tries = "1 try" if each.attempts == 1 else f"{each.attempts} tries"
    return f"{each.address.removeprefix('tcp://')}, {_BY[each.source]}, {what} ({tries})"


def waiting_words(
    own: Record, role: Role | None, agreement: Agreement[Plan] | None, completion: Completion | None, now: float
) -> str:
    """What a peer that has its job waits for; "" for nothing."""
    if not own.counts:
        return role.loading if role else ""
    if agreement and agreement.problem:
        return f"a plan that can be made: {agreement.problem}"
    if agreement and (words := agreement.waiting_for(now)):
        return words
    waits = [role.waiting_for(now) if role else "", completion.waiting_for(now) if completion else ""]
    return "; ".join(filter(None, waits))
