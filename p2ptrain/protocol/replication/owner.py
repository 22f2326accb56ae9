"""The owner of a snapshot, who sees that others keep copies of it.

For each holder: offer -> (no ack: offer again, later each time) -> acked. After ``max_offers`` without an ack the
holder counts as unwilling for a while, and the next in the ranking takes its place. What has been offered and not acked
stays in ``pinned``: a holder may be fetching it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.replication.rules import Effect, ReplicationConfig, rank_holders
from p2ptrain.wire.messages import ReplicaOffer, SnapshotRef

_MAX_REMEMBERED_OFFERS = 3


@dataclass(slots=True)
class _Offers:
    """The owner's dealings with one holder."""

    acked: SnapshotRef | None = None
    open: list[SnapshotRef] = field(default_factory=list)
    """Offered and not acked, oldest first: the first may be under way, and so may the newest ones."""
    num_unanswered: int = 0
    next_at: float = NEVER


class Owner:
    """Of one own snapshot at a time, the newest."""

    def __init__(self, own_id: PeerId, config: ReplicationConfig) -> None:
        self._own_id = own_id
        self._config = config
        self.snapshot: SnapshotRef | None = None
        """The newest one, safe in the own store."""
        self._members: dict[PeerId, int] = {}
        self._offers: dict[PeerId, _Offers] = {}
        self._unwilling: dict[PeerId, float] = {}
        self.rank: Callable[[SnapshotRef, Mapping[PeerId, int]], Sequence[PeerId]] = _rank
        """Who may keep an own snapshot, of the members (each with the part it trains), the best holder first."""
        self.has_it: Callable[[SnapshotRef, PeerId], bool] = lambda own, peer: False
        """Whether a peer has what an own snapshot holds anyway: it counts as a holder, and is sent nothing."""

    def pinned(self) -> frozenset[BlobId]:
        """Own blobs that a holder may be fetching: not to be deleted yet."""
        return frozenset(holding.blob for offers in self._offers.values() for holding in offers.open)

    def holders(self) -> dict[PeerId, SnapshotRef | None]:
        """The peers chosen for the own snapshot, each with the newest one it has acknowledged."""
        return {peer: offers.acked for peer, offers in self._offers.items()}

    def members_changed(self, members: Mapping[PeerId, int], now: float) -> list[Effect]:
        """The alive peers that can keep something, each with the part it trains."""
        self._members = dict(members)
        return self.choose(now)

    def saved(self, holding: SnapshotRef, now: float) -> list[Effect]:
        """The own newest snapshot, safe in the own store."""
        self.snapshot = holding
        effects = self.choose(now)
        for peer, offers in self._offers.items():
            if offers.acked != holding and holding not in offers.open:
                effects += self._offer(peer, offers, now)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Offer again where no ack has come, and turn to somebody else where none ever does."""
        effects: list[Effect] = []
        for peer, offers in list(self._offers.items()):
            if now < offers.next_at:
                continue
            if offers.num_unanswered >= self._config.max_offers:
                self._unwilling[peer] = now + self._config.unwilling_s
                waited = (("peer", peer), ("offers", offers.num_unanswered))
                effects.append(Note("replica-unwilling", waited))
                offers.open, offers.num_unanswered = [], 0
        for peer in [peer for peer, until in self._unwilling.items() if now >= until]:
            del self._unwilling[peer]
        effects += self.choose(now)
        for peer, offers in self._offers.items():
            if now >= offers.next_at:
                effects += self._offer(peer, offers, now)
        return effects

    def next_deadline(self) -> float:
        times = [offers.next_at for offers in self._offers.values()]
        return min([*times, *self._unwilling.values()], default=NEVER)

    def choose(self, now: float) -> list[Effect]:
        """Keep the holders in line with the members."""
        own = self.snapshot
        if own is None:
            return []
        ranked = list(self.rank(own, {p: n for p, n in self._members.items() if p != self._own_id}))
        ranked.sort(key=lambda peer: peer in self._unwilling)
        lack = [peer for peer in ranked if not self.has_it(own, peer)]
        wanted = min(self._config.num_holders, max(1, len(ranked) - 1))  # of three peers one
        chosen = lack[: max(0, wanted - (len(ranked) - len(lack)))]
        for peer in [peer for peer in self._offers if peer not in chosen]:
            del self._offers[peer]
        effects: list[Effect] = []
        for peer in chosen:
            if peer not in self._offers:
                self._offers[peer] = _Offers()
                effects += self._offer(peer, self._offers[peer], now)
        return effects

    def _offer(self, peer: PeerId, offers: _Offers, now: float) -> list[Effect]:
        own = self.snapshot
        if own is None:
            return []
        if own not in offers.open:
            offers.open = [*offers.open[:1], *offers.open[1:][-(_MAX_REMEMBERED_OFFERS - 2) :], own]
        due = offers.next_at <= now or offers.next_at == NEVER
        if due:  # a newer snapshot doesn't put off the next attempt, nor count as one
            wait = self._config.first_offer_s * 2.0 ** min(offers.num_unanswered, 16)
            offers.next_at = now + min(wait, self._config.max_offer_s)
            offers.num_unanswered += 1
        return [Send(peer, ReplicaOffer(own))]

    def acked(self, sender: PeerId, blob: BlobId) -> list[Effect]:
        offers = self._offers.get(sender)
        if offers is None:
            return []
        index = next((i for i, holding in enumerate(offers.open) if holding.blob == blob), None)
        if index is None:
            return []  # an ack come twice, or of an attempt given up
        offers.acked, offers.open = offers.open[index], offers.open[index + 1 :]
        offers.num_unanswered = 0
        if not offers.open:
            offers.next_at = NEVER
        fields = (("peer", sender), ("epoch", offers.acked.epoch), ("round", offers.acked.round))
        return [Note("replica-acked", fields)]


def _rank(own: SnapshotRef, members: Mapping[PeerId, int]) -> list[PeerId]:
    return rank_holders(own.part, own.trainer, members)
