"""A replica holder: who keeps others' snapshots.

Invariant: an older snapshot of a (part, trainer) goes only when a newer one of the same is safe on the disk, unless a
full store says otherwise (``max_holdings``); and of older ones only those that ``surplus`` names. Where snapshots are
of use only together with others of the same step, as in a pipeline, the newest may not be the one that is wanted.

For each (part, trainer): the one kept, the one being fetched, and the newest offered meanwhile, which is next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId
from p2ptrain.protocol.machine import Note, Send
from p2ptrain.protocol.replication.rules import (
    CancelSnapshot,
    DiscardSnapshot,
    Effect,
    FetchSnapshot,
    ReplicationConfig,
    freshness,
)
from p2ptrain.wire.messages import NO_PART, ReplicaAck, SnapshotRef

_Key = tuple[int, PeerId]


@dataclass(slots=True)
class _Incoming:
    """A snapshot being fetched to be kept, and the newest one offered meanwhile."""

    fetching: SnapshotRef
    next: SnapshotRef | None = None


class Holder:
    """``kept``: what the store kept for others over a restart."""

    def __init__(self, own_id: PeerId, config: ReplicationConfig, kept: Iterable[SnapshotRef]) -> None:
        self._own_id = own_id
        self._config = config
        self._epoch = 0
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

    def kept(self) -> tuple[SnapshotRef, ...]:
        """What is kept for others."""
        return (*self._kept.values(), *(holding for older in self._older.values() for holding in older))

    def epoch_changed(self, epoch: int) -> list[Effect]:
        """A new plan holds. Offers of older epochs are refused from now on; what is kept stays."""
        self._epoch = max(self._epoch, epoch)
        effects: list[Effect] = []
        for key, incoming in list(self._incoming.items()) if not self._config.past_epochs else ():
            if incoming.next is not None and incoming.next.epoch < self._epoch:
                incoming.next = None
            if incoming.fetching.epoch < self._epoch:
                effects += self._start_next(key, cancel=True)
        return effects

    def thin_out(self) -> list[Effect]:
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

    def stored(self, holding: SnapshotRef) -> list[Effect]:
        """A fetched snapshot is verified and safe on disk, its manifest entry too."""
        key = _key(holding)
        old = self._kept.get(key)
        effects: list[Effect] = []
        if old is None or freshness(holding) > freshness(old):
            self._kept[key] = holding
            if old is not None:
                self._older.setdefault(key, []).append(old)
                effects += self.thin_out()
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
        return self.thin_out()

    def fetch_failed(self, holding: SnapshotRef) -> list[Effect]:
        """Could not be fetched, checked or saved. The owner will offer again."""
        incoming = self._incoming.get(_key(holding))
        if incoming is None or incoming.fetching != holding:
            return []
        return self._start_next(_key(holding))

    def _let_go(self, key: _Key) -> list[Effect]:
        return [DiscardSnapshot(holding) for holding in (self._kept.pop(key), *self._older.pop(key, ()))]

    def offered(self, sender: PeerId, holding: SnapshotRef) -> list[Effect]:
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


def _key(holding: SnapshotRef) -> _Key:
    return holding.part, holding.trainer


def _refusal(holding: SnapshotRef, why: str) -> Note:
    return Note("replica-refused", (("peer", holding.trainer), ("part", holding.part), ("why", why)))
