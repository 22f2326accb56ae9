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
from p2ptrain.wire.messages import MemberState, Record, StatusReply


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
    sent: Mapping[PeerId, Mapping[str, int]] = field(default_factory=dict)
    """Bytes by kind of message, of those who told."""
    figures: Mapping[PeerId, Mapping[str, float]] = field(default_factory=dict)
    """What devices measure of themselves, of those who told."""


def snapshot_status(node: ObserverNode) -> Status:
    """What an observer knows now."""
    observer = node.observer
    records = tuple(record for _, record in sorted(observer.records.items()))
    refused = {peer: dict(counts) for peer, counts in observer.peer_refused.items()}
    told = _told(observer.answers)
    return Status(
        observer.job, observer.plan(), records, dict(observer.states), refused, dict(observer.troubles), *told
    )


def _told(answers: Mapping[PeerId, StatusReply]) -> tuple[dict[PeerId, dict[str, int]], dict[PeerId, dict[str, float]]]:
    """What peers sent by kind, and their figures."""
    sent = {peer: {each.kind: each.num_bytes for each in answer.sent} for peer, answer in answers.items()}
    return sent, {peer: {each.name: each.value for each in answer.figures} for peer, answer in answers.items()}


def snapshot_peer(peer: Peer) -> Status:
    """What a peer on this device knows now; what only the others know, if it asked them (``ask_status``)."""
    states: dict[PeerId, MemberState] = {peer.own_id: "alive"}
    records = {peer.own_id: peer.records.own}
    for each, record in peer.records.all().items():
        if each != peer.own_id and (state := peer.membership.state(each)) is not None:
            states[each], records[each] = state, record
    plan = peer.role.plan if peer.role is not None else None
    refused = {other: {each.reason: each.count for each in answer.refused} for other, answer in peer.answers.items()}
    refused[peer.own_id] = dict(peer.refused + peer.sessions.refused)
    sent, figures = _told(peer.answers)
    sent[peer.own_id], figures[peer.own_id] = dict(peer.sent), dict(peer.figures)
    found = tuple(record for _, record in sorted(records.items()))
    return Status(peer.job, plan, found, states, refused, dict(peer.troubles), sent, figures)
