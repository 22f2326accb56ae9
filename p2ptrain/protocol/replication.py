"""Replication: every peer's newest snapshot also lies with others, so that a part survives its trainer.

Responsible for who keeps what for whom. Invariant: a replica holder lets go of an older snapshot of a (part, trainer)
only when a newer one of the same is safe on its disk; so once a snapshot has been acknowledged, there is at every
moment one at least as fresh, unless the owner's word or a full store says otherwise (``forget_before``,
``max_holdings``). And of older ones it lets go only as ``surplus`` says: where snapshots are of use only together with
others of the same step, as in a pipeline, the newest may not be the one that is wanted.

Holders are chosen by rendezvous hashing of (part, trainer, peer): every peer comes to the same choice from the same
members, and a peer that joins or dies moves only the snapshots that it gains or leaves. Peers that train another part
come first: one that trains the same part has a copy of sorts already, and where ``has_it`` says so it is as good as a
holder.

Owner, for each holder: offer -> (no ack: offer again, later each time) -> acked. After ``max_offers`` without an
ack the holder counts as unwilling for a while, and the next in the ranking takes its place. What has been offered
and not acked stays in ``pinned``: a holder may be fetching it. Holder, for each (part, trainer): the one kept,
the one being fetched, and the newest offered meanwhile, which is next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId, lot
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.wire.messages import NO_PART, ReplicaAck, ReplicaOffer, SnapshotRef

_MAX_RECORD_HOLDINGS = 256
_MAX_REMEMBERED_OFFERS = 3


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """How many holders a snapshot gets, what a holder takes, and the owner's patience."""

    num_holders: int = 1
    max_holdings: int = 64
    max_holdings_per_trainer: int = 4
    max_snapshot_bytes: int = 4 << 30
    max_total_bytes: int = 16 << 30
    first_offer_s: float = 5.0
    """Until the second offer; doubled each time up to ``max_offer_s``."""
    max_offer_s: float = 60.0
    max_offers: int = 6
    unwilling_s: float = 600.0
    past_epochs: bool = False
    """Take snapshots of older epochs, too: those of a pipeline are the group's way back."""


@dataclass(frozen=True, slots=True)
class FetchSnapshot:
    """Get this snapshot, check it and save it, then call ``stored`` or ``fetch_failed``."""

    holding: SnapshotRef
    source: PeerId


@dataclass(frozen=True, slots=True)
class DiscardSnapshot:
    """Not kept for its owner any more: a newer one is safe, or it is of no use."""

    holding: SnapshotRef


@dataclass(frozen=True, slots=True)
class CancelSnapshot:
    """Its fetch has lost its point."""

    holding: SnapshotRef


Effect = Send | Note | FetchSnapshot | DiscardSnapshot | CancelSnapshot
_Key = tuple[int, PeerId]


def freshness(holding: SnapshotRef) -> tuple[int, int, int]:
    """What makes a snapshot newer than another of the same part and trainer."""
    return holding.epoch, holding.round, holding.step


def rank_holders(part: int, trainer: PeerId, members: Mapping[PeerId, int]) -> list[PeerId]:
    """All ``members`` (peer to the part it trains) but ``trainer``, the best holder first."""

    def score(peer: PeerId) -> int:
        return lot(f"{part}/{trainer}/{peer}")

    return sorted((peer for peer in members if peer != trainer), key=lambda p: (members[p] == part, score(p), p))


@dataclass(slots=True)
class _Offers:
    """The owner's dealings with one holder."""

    acked: SnapshotRef | None = None
    open: list[SnapshotRef] = field(default_factory=list)
    """Offered and not acked, oldest first: the first may be under way, and so may the newest ones."""
    num_unanswered: int = 0
    next_at: float = NEVER


@dataclass(slots=True)
class _Incoming:
    """A snapshot being fetched to be kept, and the newest one offered meanwhile."""

    fetching: SnapshotRef
    next: SnapshotRef | None = None


class Replication:
    """Both roles of one peer: owner of its snapshot, and holder of others'."""

    def __init__(
        self, own_id: PeerId, config: ReplicationConfig | None = None, kept: Iterable[SnapshotRef] = ()
    ) -> None:
        """``kept``: what the store kept for others over a restart."""
        self._own_id = own_id
        self._config = config or ReplicationConfig()
        self._epoch = 0
        self._own: SnapshotRef | None = None
        self._members: dict[PeerId, int] = {}
        self._offers: dict[PeerId, _Offers] = {}
        self._unwilling: dict[PeerId, float] = {}
        self.rank: Callable[[SnapshotRef, Mapping[PeerId, int]], Sequence[PeerId]] = _rank
        """Who may keep an own snapshot, of the members (each with the part it trains), the best holder first."""
        self.has_it: Callable[[SnapshotRef, PeerId], bool] = lambda own, peer: False
        """Whether a peer has what an own snapshot holds anyway: it counts as a holder, and is sent nothing."""
        self.is_stale: Callable[[SnapshotRef], bool] = lambda holding: False
        """Whether one is of no use any more, though it is the newest of its part and trainer."""
        self.surplus: Callable[[Sequence[SnapshotRef]], Iterable[SnapshotRef]] = lambda older: older
        """Of these, all older than one of the same part and trainer that is kept, what is not needed any more."""
        self._kept: dict[_Key, SnapshotRef] = {}
        self._older: dict[_Key, list[SnapshotRef]] = {}
        """Kept beside a newer one, the oldest first."""
        for holding in sorted(kept, key=freshness):
            if _key(holding) in self._kept:
                self._older.setdefault(_key(holding), []).append(self._kept[_key(holding)])
            self._kept[_key(holding)] = holding
        self._incoming: dict[_Key, _Incoming] = {}

    # --- both -------------------------------------------------------------------------------------------------------

    def holdings(self) -> tuple[SnapshotRef, ...]:
        """For the own record: the own newest snapshot, then what is kept for others, the freshest first."""
        kept = sorted(self.kept(), key=lambda h: (freshness(h), h.part, h.trainer), reverse=True)
        own = [self._own] if self._own is not None else []
        return tuple([*own, *kept][:_MAX_RECORD_HOLDINGS])

    def kept(self) -> tuple[SnapshotRef, ...]:
        """What is kept for others."""
        return (*self._kept.values(), *(holding for older in self._older.values() for holding in older))

    def pinned(self) -> frozenset[BlobId]:
        """Own blobs that a holder may be fetching: not to be deleted yet."""
        return frozenset(holding.blob for offers in self._offers.values() for holding in offers.open)

    def holders(self) -> dict[PeerId, SnapshotRef | None]:
        """The peers chosen for the own snapshot, each with the newest one it has acknowledged."""
        return {peer: offers.acked for peer, offers in self._offers.items()}

    def epoch_changed(self, epoch: int, now: float) -> list[Effect]:
        """A new plan holds. Offers of older epochs are refused from now on; what is kept stays."""
        self._epoch = max(self._epoch, epoch)
        effects: list[Effect] = []
        if self._config.past_epochs:
            return self._choose(now)
        for key, incoming in list(self._incoming.items()):
            if incoming.next is not None and incoming.next.epoch < self._epoch:
                incoming.next = None
            if incoming.fetching.epoch < self._epoch:
                effects += self._start_next(key, cancel=True)
        return effects + self._choose(now)

    def members_changed(self, members: Mapping[PeerId, int], now: float) -> list[Effect]:
        """The alive peers that can keep something (no observers), each with the part it trains (or ``NO_PART``)."""
        self._members = dict(members)
        return [*self._thin_out(), *self._choose(now)]

    def _thin_out(self) -> list[Effect]:
        """Let go of older snapshots that are not needed."""
        discarded: list[SnapshotRef] = []
        for key, older in list(self._older.items()):
            gone = list(self.surplus(older))
            discarded += gone
            self._older[key] = [holding for holding in older if holding not in gone]
            if not self._older[key]:
                del self._older[key]
        for key, newest in list(self._kept.items()):
            if key not in self._older and key not in self._incoming and self.is_stale(newest):
                discarded.append(self._kept.pop(key))
        return [DiscardSnapshot(holding) for holding in discarded]

    def received(self, sender: PeerId, message: ReplicaOffer | ReplicaAck, now: float) -> list[Effect]:
        """A message of ``sender``. Raises ``RemoteError`` when it speaks for somebody else."""
        if isinstance(message, ReplicaOffer):
            return self._offered(sender, message.holding)
        return self._acked(sender, message.blob)

    # --- owner ------------------------------------------------------------------------------------------------------

    def snapshot(self, holding: SnapshotRef, now: float) -> list[Effect]:
        """The own newest snapshot, safe in the own store."""
        self._own = holding
        effects = self._choose(now)
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
        effects += self._choose(now)
        for peer, offers in self._offers.items():
            if now >= offers.next_at:
                effects += self._offer(peer, offers, now)
        return effects

    def next_deadline(self) -> float:
        times = [offers.next_at for offers in self._offers.values()]
        return min([*times, *self._unwilling.values()], default=NEVER)

    def _choose(self, now: float) -> list[Effect]:
        """Keep the holders in line with the members."""
        own = self._own
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
        own = self._own
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

    def _acked(self, sender: PeerId, blob: BlobId) -> list[Effect]:
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

    # --- holder -----------------------------------------------------------------------------------------------------

    def stored(self, holding: SnapshotRef, now: float) -> list[Effect]:
        """A fetched snapshot is verified and safe on disk, its manifest entry too."""
        key = _key(holding)
        old = self._kept.get(key)
        effects: list[Effect] = []
        if old is None or freshness(holding) > freshness(old):
            self._kept[key] = holding
            if old is not None:
                self._older.setdefault(key, []).append(old)
                effects += self._thin_out()
        elif holding != old:
            effects.append(DiscardSnapshot(holding))
        effects.append(Send(holding.trainer, ReplicaAck(holding.blob)))
        incoming = self._incoming.get(key)
        if incoming is not None and incoming.fetching == holding:
            effects += self._start_next(key)
        return effects

    def adopt(self, holding: SnapshotRef) -> list[Effect]:
        """A snapshot that was fetched for another reason is safe on disk: it is one copy more of what it has."""
        key = _key(holding)
        if holding == self._kept.get(key) or holding in self._older.get(key, ()):
            return []
        newest = self._kept.setdefault(key, holding)
        if newest != holding:
            self._older.setdefault(key, []).append(min(holding, newest, key=freshness))
            self._older[key].sort(key=freshness)
            self._kept[key] = max(holding, newest, key=freshness)
        return self._thin_out()

    def fetch_failed(self, holding: SnapshotRef, now: float) -> list[Effect]:
        """Could not be fetched, checked or saved. The owner will offer again."""
        incoming = self._incoming.get(_key(holding))
        if incoming is None or incoming.fetching != holding:
            return []
        return self._start_next(_key(holding))

    def forget_before(self, epoch: int) -> list[Effect]:
        """Every part has a copy of ``epoch`` or newer somewhere: let go of what is older."""
        old = [key for key, holding in self._kept.items() if holding.epoch < epoch]
        return [effect for key in old for effect in self._let_go(key)]

    def _let_go(self, key: _Key) -> list[Effect]:
        return [DiscardSnapshot(holding) for holding in (self._kept.pop(key), *self._older.pop(key, ()))]

    def _offered(self, sender: PeerId, holding: SnapshotRef) -> list[Effect]:
        if holding.trainer != sender or sender == self._own_id:
            raise RemoteError("replica-not-own", f"offered a snapshot of {holding.trainer}")
        if holding.kind != "part" or holding.part == NO_PART or holding.num_bytes < 1:
            raise RemoteError("replica-empty", f"{holding.kind} {holding.part}, {holding.num_bytes} bytes")
        key = _key(holding)
        kept, incoming = self._kept.get(key), self._incoming.get(key)
        if kept == holding or holding in self._older.get(key, ()):
            return [Send(sender, ReplicaAck(holding.blob))]  # the first ack got lost
        if holding.epoch < self._epoch and not self._config.past_epochs:
            return [_refusal(holding, f"epoch {holding.epoch} is over, now {self._epoch}")]
        if kept is not None and freshness(holding) <= freshness(kept):
            return [_refusal(holding, "a newer one is kept")]
        if holding.num_bytes > self._config.max_snapshot_bytes:
            return [_refusal(holding, f"{holding.num_bytes} bytes, allowed {self._config.max_snapshot_bytes}")]
        if incoming is not None:
            if freshness(holding) > freshness(incoming.next or incoming.fetching):
                incoming.next = holding
            return []
        return self._start(holding)

    def _start(self, holding: SnapshotRef) -> list[Effect]:
        effects, lacking = self._make_room(holding)
        if lacking:
            return [*effects, _refusal(holding, lacking)]
        self._incoming[_key(holding)] = _Incoming(holding)
        return [*effects, FetchSnapshot(holding, holding.trainer)]

    def _start_next(self, key: _Key, cancel: bool = False) -> list[Effect]:
        incoming = self._incoming.pop(key)
        effects: list[Effect] = [CancelSnapshot(incoming.fetching)] if cancel else []
        return effects if incoming.next is None else effects + self._start(incoming.next)

    def _make_room(self, holding: SnapshotRef) -> tuple[list[Effect], str]:
        """Let go of snapshots of past epochs until ``holding`` fits; and what is lacking if it does not."""
        effects: list[Effect] = []
        key = _key(holding)
        while lacking := self._lacking(holding):
            own = [k for k in self._kept if k[1] == holding.trainer]
            only_own = lacking.startswith("the trainer")
            past = [k for k in (own if only_own else self._kept) if k != key and self._kept[k].epoch < self._epoch]
            if not past:
                break
            oldest = min(past, key=lambda k: (freshness(self._kept[k]), k))
            effects += self._let_go(oldest)
        return effects, lacking

    def _lacking(self, holding: SnapshotRef) -> str:
        key, config = _key(holding), self._config
        keys = ({*self._kept, *self._incoming}) - {key}
        if sum(k[1] == holding.trainer for k in keys) >= config.max_holdings_per_trainer:
            return f"the trainer has {config.max_holdings_per_trainer} here"
        if len(keys) >= config.max_holdings:
            return f"{config.max_holdings} are kept"
        total = sum(h.num_bytes for h in self.kept())
        total += sum(incoming.fetching.num_bytes for incoming in self._incoming.values())
        if total + holding.num_bytes > config.max_total_bytes:
            return f"{total} of {config.max_total_bytes} bytes are taken"
        return ""


def _rank(own: SnapshotRef, members: Mapping[PeerId, int]) -> list[PeerId]:
    return rank_holders(own.part, own.trainer, members)


def _key(holding: SnapshotRef) -> _Key:
    return holding.part, holding.trainer


def _refusal(holding: SnapshotRef, why: str) -> Note:
    return Note("replica-refused", (("peer", holding.trainer), ("part", holding.part), ("why", why)))
