"""What a peer answers to who asks for its view of the group."""

from __future__ import annotations

from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.runtime.peer.core import Core
from p2ptrain.wire import messages as m

MAX_MEMBERS = 511
MAX_REASONS = 64
MAX_FIGURES = 32
MAX_FIGURE = 1e18


def status_reply(core: Core, records: RecordBook, membership: Membership, *, has_left: bool) -> m.StatusReply:
    """The members, this peer first; what its core refused by reason and sent by kind, the most first; and figures.

    Those that can't go on the wire are left out: a plan may predict nonsense from what others measured.
    """
    rumours = [m.Rumour(records.own_id, "left" if has_left else "alive", 0)]
    for peer in sorted(records.all())[:MAX_MEMBERS]:
        state = membership.state(peer)
        if peer != records.own_id and state is not None:
            rumours.append(m.Rumour(peer, state, membership.incarnation(peer) or 0))
    figures = [(name, value) for name, value in core.figures.items() if abs(value) <= MAX_FIGURE]
    counts = (core.refused + core.sessions.refused).most_common(MAX_REASONS)
    return m.StatusReply(
        tuple(rumours),
        tuple(m.RefusedCount(reason[:256], count) for reason, count in counts),
        tuple(m.SentBytes(kind, num_bytes) for kind, num_bytes in core.sent.most_common(MAX_REASONS)),
        tuple(m.Figure(name, float(value)) for name, value in figures[:MAX_FIGURES]),
    )
