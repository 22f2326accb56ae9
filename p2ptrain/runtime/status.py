"""A look at the group: everyone that is here, as an observer or a peer on this device knows them.

Invariant: a copy; what happens afterwards does not change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.ids import PeerId
from p2ptrain.runtime.node.observer_node import ObserverNode
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.wire.messages import MemberState, Record


@dataclass(frozen=True, slots=True)
class Status:
    """Everyone that is here, as an observer found them, or a peer knows them."""

    job: Job | None
    plan: Plan | None
    records: tuple[Record, ...]
    """What all peers known say of themselves, by peer id."""
    states: dict[PeerId, MemberState]
    refused: dict[PeerId, dict[str, int]]
    """Messages that each peer refused, by reason."""
    troubles: Mapping[str, str] = field(default_factory=dict)
    """Sources of addresses that find nothing on this device, and why."""


def snapshot_status(node: ObserverNode) -> Status:
    """What an observer knows now."""
    observer = node.observer
    records = tuple(record for _, record in sorted(observer.records.items()))
    refused = {peer: dict(counts) for peer, counts in observer.peer_refused.items()}
    return Status(observer.job, observer.plan(), records, dict(observer.states), refused, dict(observer.troubles))


def snapshot_peer(peer: Peer) -> Status:
    """What a peer on this device knows now: without what the others refused, which only they tell."""
    states: dict[PeerId, MemberState] = {peer.own_id: "alive"}
    records = {peer.own_id: peer.records.own}
    for each, record in peer.records.all().items():
        if each != peer.own_id and (state := peer.membership.state(each)) is not None:
            states[each], records[each] = state, record
    plan = peer.role.plan if peer.role is not None else None
    refused = {peer.own_id: dict(peer.refused + peer.sessions.refused)}
    return Status(peer.job, plan, tuple(r for _, r in sorted(records.items())), states, refused, dict(peer.troubles))
