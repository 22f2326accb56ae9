"""The links that a peer of a large group has: to some neighbours always, and to whom it has business with.

In a small group everyone has a link to everyone. In a large one a peer keeps those to its ``neighbours``, over which
news of all reaches all. Whom else it has something to say to it dials when it says it, and says it as soon as the link
is there. A link to who is no neighbour that was of no use for a while is let go of, on both sides: that is no sign of
death, as neighbours see for everybody who lives; and whoever needs the link has it again with the next word.

Invariant: no more than ``MAX_WANTED`` addresses are dialled for it at once, and the next when one answers; a group that
was never large is left as it is. No link is let go of that something uses: a neighbour's, one with a fetch or stream
under way, one that carried anything but chatter within ``IDLE_S``, or, where there are more than ``SPARE`` others,
within ``SPARE_IDLE_S``.

    linked --of no use for so long--> said goodbye, and resting --the other end speaks, or dialled--> linked
    goodbye heard: of no use here either --> resting;  of use here --> kept, and the next word wakes the other end
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2ptrain.core.effects import Effects
from p2ptrain.ids import PeerId
from p2ptrain.protocol.blobs.transfer import Transfers
from p2ptrain.protocol.group.membership import Membership
from p2ptrain.protocol.machine import NEVER, Send
from p2ptrain.protocol.session.address_book import MAX_ADDRESSES
from p2ptrain.protocol.session.links import Idle
from p2ptrain.protocol.session.sessions import Sessions
from p2ptrain.runtime.peer.neighbours import Rings
from p2ptrain.wire import messages as m

LARGE = MAX_ADDRESSES
"""With more others alive, not all of them are dialled anyway."""
CROWDED = LARGE + LARGE // 8
"""With more others alive links are let go of. Not at ``LARGE``: there a group that loses a peer and gets it back would
let go of a hundred links and dial them again, as in a small one everyone probes everyone."""
LOOK_S = 5.0
"""So often it is seen whether the neighbours have links, and who else has one."""
IDLE_S = 120.0
"""An exchange waits for its partner, or a trainer, for a minute at most (``GossipConfig.ceiling_s``)."""
SPARE, SPARE_IDLE_S = 32, 20.0
MOST_AT_ONCE = 32
"""Links that are let go of at one look."""
UNSAID_S, MAX_UNSAID = 10.0, 16
"""So long, and so many unlike control messages to each member, wait for a link: what is said again waits from then
on."""
CHATTER = frozenset(
    {m.Ping, m.PingRequest, m.Ack, m.RecordDigest, m.Records, m.RecordChanges}
    | {m.JobRequest, m.JobReply, m.StatusRequest, m.StatusReply}
)
"""What goes over every link, of use or not."""
PASSED_ON = frozenset({m.PlanVote, m.Stop})
"""What everybody hears anyway, from records or from one another: nobody is dialled for it."""


class Reach:
    """``records``: by peer, where each can be dialled; ``epoch``: of the plan that this peer's data messages are of."""

    def __init__(
        self,
        own_id: PeerId,
        sessions: Sessions,
        transfers: Transfers,
        membership: Membership,
        records: Callable[[], Mapping[PeerId, m.Record]],
        epoch: Callable[[], int],
        now: float,
    ) -> None:
        self._own_id, self._sessions, self._transfers, self._membership = own_id, sessions, transfers, membership
        self._records, self._epoch = records, epoch
        self._next_look, self._was_large = now + LOOK_S, False
        self._of: frozenset[PeerId] | None = None
        self._rings = Rings(())
        self._used: dict[PeerId, float] = {}
        """When each link last carried anything but chatter."""
        self._streams: dict[PeerId, int] = {}
        """By peer, the epoch of the last stage message, or acknowledgement of one."""
        self._unsaid: dict[PeerId, list[tuple[float, m.Message]]] = {}
        """By member, the newest last."""
        sessions.when_idle = self._when_idle

    # --- what others may ask ------------------------------------------------------------------------------------------

    def neighbours(self, of: PeerId) -> frozenset[PeerId]:
        """Of a member, in a large group."""
        alive = self._membership.alive()
        if self._of is not alive:
            self._of, self._rings = alive, Rings({*alive, self._own_id})
        return self._rings.neighbours(of)

    def leads_to_member(self, address: str) -> bool:
        """Of a large group: it is dialled if it is a neighbour, or there is something to say to it."""
        alive = self._membership.alive() if self._is_large() else ()
        return any(address in record.addresses for peer, record in self._records().items() if peer in alive)

    def next_deadline(self) -> float:
        return self._next_look if self._is_large() else NEVER

    # --- events -------------------------------------------------------------------------------------------------------

    def admitted(self, peer: PeerId, now: float) -> Effects:
        """There is a link: what waited to be said over it."""
        if self._was_large:
            self._used[peer] = now
        said = [message for since, message in self._unsaid.pop(peer, []) if now - since < UNSAID_S]
        return [*(Send(peer, message) for message in said), *self._dial_unsaid(now)]

    def told_of(self, old: m.Record | None, new: m.Record, now: float) -> Effects:
        """Where a member can be dialled: reason enough to do so in a small group."""
        is_linked = self._sessions.key_of(new.peer) is not None
        if (old is not None and old.addresses == new.addresses) or (self._is_large() and not is_linked):
            return []
        effects: Effects = []
        for address in new.addresses:
            effects += self._sessions.propose(address, now, peer=new.peer)
        return effects

    def came(self, sender: PeerId, message: m.Message, now: float) -> None:
        """Whatever a member says shows that it lives: where a slow link is flooded, answers wait behind what was asked
        for, longer than anybody waits for them."""
        self.carried(sender, message, now)
        self._membership.heard_from(sender, now, is_turn=False)

    def carried(self, peer: PeerId, message: m.Message, now: float) -> None:
        """By the link to ``peer``, either way."""
        if not self._was_large or type(message) in CHATTER:
            return
        self._used[peer] = now
        if isinstance(message, m.StreamData | m.StreamAck):
            self._streams[peer] = message.epoch

    def dial(self, send: Send, now: float) -> Effects:
        """There is something to say, and no session to say it in."""
        peer, kind = send.to, type(send.message)
        record = self._records().get(peer) if self._is_large() and kind not in PASSED_ON else None
        if record is None or peer == self._own_id:
            return []
        if kind not in CHATTER and m.lane_of(send.message) == "control":
            others = (each for each in self._unsaid.get(peer, []) if each[1] != send.message)
            self._unsaid[peer] = [*others, (now, send.message)][-MAX_UNSAID:]
        return self._dial(record, now)

    def tick(self, now: float) -> Effects:
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_S
        if not self._is_large():
            return []
        effects: Effects = []
        records, linked = self._records(), set(self._sessions.peers())
        for peer in sorted(self.neighbours(self._own_id) - linked):
            effects += self._dial(records[peer], now) if peer in records else []
        effects += self._dial_unsaid(now)
        for gone in (self._used.keys() | self._streams.keys()) - linked:
            self._used.pop(gone, None)
            self._streams.pop(gone, None)
        for peer in self._spare(now):
            effects += self._sessions.rest(peer, now)
        return effects

    # --- inside -------------------------------------------------------------------------------------------------------

    def _dial(self, record: m.Record, now: float) -> Effects:
        effects: Effects = []
        for address in record.addresses:
            effects += self._sessions.propose(address, now, source="wanted", peer=record.peer)
        return effects

    def _dial_unsaid(self, now: float) -> Effects:
        """Whom something waits to be said to: there may have been no room to dial so far."""
        effects: Effects = []
        self._unsaid = {peer: said for peer, said in self._unsaid.items() if now - said[-1][0] < UNSAID_S}
        records = self._records() if self._unsaid else {}
        for peer in self._unsaid:
            if peer in records and self._sessions.key_of(peer) is None:
                effects += self._dial(records[peer], now)
        return effects

    def _spare(self, now: float) -> list[PeerId]:
        """Whose links to let go of."""
        spare = [peer for peer in self._sessions.peers() if self._is_spare(peer)]
        spare.sort(key=lambda peer: self._used.get(peer, now))
        too_many = len(spare) - SPARE
        return [
            peer
            for place, peer in enumerate(spare[:MOST_AT_ONCE])
            if self._idle_s(peer, now) >= (SPARE_IDLE_S if place < too_many else IDLE_S)
        ]

    def _is_spare(self, peer: PeerId) -> bool:
        """A living member's that is no neighbour, and that nothing uses."""
        if len(self._membership.alive()) <= CROWDED or self._membership.state(peer) != "alive":
            return False
        streams = self._streams.get(peer) == self._epoch() if peer in self._streams else False
        return not streams and peer not in self.neighbours(self._own_id) and not self._transfers.uses(peer)

    def _idle_s(self, peer: PeerId, now: float) -> float:
        return now - self._used.setdefault(peer, now)

    def _when_idle(self, peer: PeerId, now: float) -> Idle:
        """The other end of a member's link needs it no more. (Both saw the same messages, at nearly the same times.)"""
        if len(self._membership.alive()) <= CROWDED or self._membership.state(peer) != "alive":
            return "ends"
        return "rests" if self._is_spare(peer) and self._idle_s(peer, now) >= SPARE_IDLE_S / 2 else "stays"

    def _is_large(self) -> bool:
        """Or was: when many go at once, those who are left have links to some of them only, and probe all."""
        self._was_large = self._was_large or len(self._membership.alive()) > LARGE
        return self._was_large
