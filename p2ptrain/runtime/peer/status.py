"""What a peer answers to who asks for its view of the group."""

from __future__ import annotations

from collections import Counter

from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.group.records import RecordBook
from p2ptrain.wire import messages as m

MAX_MEMBERS = 511
MAX_REASONS = 64


def status_reply(
    records: RecordBook, membership: Membership, refused: Counter[str], *, has_left: bool
) -> m.StatusReply:
    """The members, this peer first, and what it ``refused`` by reason, the most frequent first."""
    rumours = [m.Rumour(records.own_id, "left" if has_left else "alive", 0)]
    for peer in sorted(records.all())[:MAX_MEMBERS]:
        state = membership.state(peer)
        if peer != records.own_id and state is not None:
            rumours.append(m.Rumour(peer, state, membership.incarnation(peer) or 0))
    counts = refused.most_common(MAX_REASONS)
    return m.StatusReply(tuple(rumours), tuple(m.RefusedCount(reason[:256], count) for reason, count in counts))
