"""The records that are known here: who may come in, who has to go, and what of them is new.

Invariant: of each peer one record at most, the own one always; no more of them, nor of their bytes, than the limits
say; who is here gives nobody way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from random import Random
from types import MappingProxyType

from p2ptrain.ids import PeerId
from p2ptrain.protocol.group.hearsay import Hearsay, HearsayConfig
from p2ptrain.protocol.group.record_changes import RecordChanges as Changes
from p2ptrain.protocol.group.record_news import RecordNews, mark, pack_news
from p2ptrain.protocol.group.record_size import batches
from p2ptrain.wire.messages import Record, RecordChange, RecordChanges, Records, RecordVersion

MAX_RECORDS = 64
"""Of one message."""
_MAX_CHANGES = 256


class RecordTable:
    """``refused``: here is counted who had no room."""

    def __init__(
        self,
        own: Record,
        size: int,
        hearsay: HearsayConfig,
        refused: Counter[str],
        *,
        max_records: int,
        max_bytes: int,
        max_forgotten: int,
    ) -> None:
        self.own_id = own.peer
        self.alive: list[PeerId] = []
        """Who is here, but for ourselves."""
        self._hearsay = Hearsay(hearsay)
        self._refused = refused
        self._limits = max_records, max_bytes, max_forgotten
        self._records = {own.peer: own}
        self._sizes = {own.peer: size}
        self._num_bytes = size
        self._forgotten: dict[PeerId, int] = {}
        """Version that a forgotten peer's record had: whoever still holds it shall not bring it back."""
        self._changes = Changes()
        self._news = RecordNews()
        self._ring: list[PeerId] | None = None
        self._marks: dict[int, PeerId] = {}
        self._changes.learnt(None, own)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, peer: PeerId) -> Record | None:
        return self._records.get(peer)

    def all(self) -> Mapping[PeerId, Record]:
        return MappingProxyType(self._records)

    # --- who may come, and who goes -------------------------------------------------------------------------------

    def met(self, peer: PeerId) -> None:
        self._hearsay.met(peer)

    def would_take(self, sender: PeerId, peer: PeerId, size: int = 0) -> bool:
        """Whether ``sender`` may tell us of ``peer``."""
        return self._hearsay.is_met(peer) or peer == sender or self.has_room_from(sender, size)

    def has_room_from(self, sender: PeerId, size: int = 0) -> bool:
        """For somebody whom nobody here has met."""
        return self._hearsay.has_room(sender) and self._has_room(size)

    def may_come(self, sender: PeerId, peer: PeerId, size: int, now: float) -> bool:
        """Whether there is room for a new peer, which is made if somebody is gone."""
        if peer == sender:
            self._hearsay.met(peer)
        if not self.would_take(sender, peer, size):
            self._refused["record-unmet"] += 1
            return False
        while not self._has_room(size):
            gone = next((each for each in self._records if each not in self.alive and each != self.own_id), None)
            if gone is None:
                self._refused["records-full"] += 1
                return False
            self.forget(gone)
        self._hearsay.heard(peer, sender, now)
        return True

    def forget_overdue(self, now: float) -> None:
        """Whom nobody met, and who is no member."""
        for peer in self._hearsay.overdue(self.alive, now):
            self.forget(peer)

    def forget(self, peer: PeerId) -> None:
        """It is not there any more. A higher version of its record brings it back."""
        record = self._records.get(peer)
        if peer == self.own_id or record is None:
            return
        del self._records[peer]
        self._num_bytes -= self._sizes.pop(peer)
        for known in (self._hearsay, self._changes, self._news):
            known.forget(peer)
        self._ring = None
        self._forgotten[peer] = record.version
        while len(self._forgotten) > self._limits[2]:
            del self._forgotten[next(iter(self._forgotten))]

    def _has_room(self, num_bytes: int) -> bool:
        return len(self._records) < self._limits[0] and self._num_bytes + num_bytes <= self._limits[1]

    # --- what is known --------------------------------------------------------------------------------------------

    def put(self, record: Record, size: int) -> None:
        """In place of what is known of the same peer, if anything is."""
        if record.peer not in self._records:
            self._ring = None
        self._forgotten.pop(record.peer, None)
        self._num_bytes += size - self._sizes.get(record.peer, 0)
        self._records[record.peer], self._sizes[record.peer] = record, size

    def note(self, old: Record | None, new: Record, now: float) -> bool:
        """``new`` is news; whether it is more than progress."""
        self._news.add(new.peer, now)
        return self._changes.learnt(old, new)

    def packed(
        self, since: Mapping[PeerId, int], own: Callable[[], Record], rng: Random
    ) -> list[Records | RecordChanges]:
        """What who has those versions lacks. ``own``: the own record, as it is sent."""
        records = [record for record in map(self.get, since) if record is not None]
        rng.shuffle(records)  # so that with a lossy link it is not always the same that are late
        wholes: list[Record] = []
        changes: list[RecordChange] = []
        for record in records:
            record = record if record.peer != self.own_id else own()
            change = self._changes.since(since[record.peer], record)
            if change is None:
                wholes.append(record)
            else:
                changes.append(change)
        parts: list[Records | RecordChanges] = []
        for few in batches(changes, lambda change: 128 + len(change.fields), _MAX_CHANGES):
            parts.append(RecordChanges(tuple(few)))
        for several in batches(wholes, lambda record: self._sizes[record.peer], MAX_RECORDS):
            parts.append(Records(tuple(several)))
        return parts

    def version(self, peer: PeerId) -> int:
        """0: it is not known."""
        record = self._records.get(peer)
        return record.version if record is not None else self._forgotten.get(peer, 0)

    def versions(self, peers: Iterable[PeerId]) -> tuple[RecordVersion, ...]:
        return tuple(RecordVersion(peer, self.version(peer)) for peer in peers)

    def ring(self) -> list[PeerId]:
        """All peers that we have, or refuse to have back, in the order of the ring."""
        if self._ring is None:
            self._ring = sorted(self._records.keys() | self._forgotten.keys())
            self._marks = {mark(peer): peer for peer in self._ring}
        return self._ring

    def arc(self, first: PeerId, last: PeerId) -> list[PeerId]:
        """The part of the ring from ``first`` to ``last``, both included, which may go through its end."""
        ring = self.ring()
        start, stop = bisect_left(ring, first), bisect_left(ring, last + "\0")
        return ring[start:stop] if first <= last else ring[start:] + ring[:stop]

    def of_mark(self, of: int) -> PeerId | None:
        """Who has this mark; as of the last ``ring``."""
        return self._marks.get(of)

    def news(self, now: float, but: Collection[int] = ()) -> bytes:
        """The latest, as a digest has it, without those of these marks."""
        latest = [peer for peer in self._news.latest(now) if mark(peer) not in but]
        return pack_news((mark(peer), self.version(peer)) for peer in latest)
