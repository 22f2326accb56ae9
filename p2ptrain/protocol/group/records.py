"""What every peer says of itself, known to all: last-writer-wins registers, one an owner, spread by anti-entropy.

Invariant: a record in the book is the newest that was seen of its owner, who signed it with the key that its peer is
named by, and it fits into a message. The own record is what its owner last said: nobody overwrites it, and its version
is above all that were seen of it. So who passes a record on can change nothing of it, and is never blamed for one.

Theory. Every ``interval_s``, and soon after news, a peer sends a random live one its digest (peer, version). That one
answers with the records that are newer at its side, and with a second digest of what is newer at the other's, which
brings those (push-pull anti-entropy, Demers et al., PODC 1987). Each message only ever repeats what is true, so loss,
repetition and disorder cost time, nothing else.

    digest, want_reply -> Records of what the sender lacks + digest, no reply, of what we lack at the sender
    digest, no reply   -> Records of what is newer here than the versions named
    Records            -> newer ones replace older ones: RecordChanged

A digest of 1,024 entries or more would not fit a message: then it is an arc of the ring of peer ids, from a random
start, so that the receiver knows which absences mean something: those between its first and its last entry.

A restarted peer may have forgotten its version. Versions start from a base that its caller reads off the wall clock
(milliseconds); whoever hears that others hold a higher version of its own record asks for it, and goes above it if it
did say that.

Whom nobody here has met may not be there at all: of such peers there is room for few (``hearsay``).
"""

from __future__ import annotations

import dataclasses
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import JobId, PeerId, peer_id
from p2ptrain.protocol.group.hearsay import Hearsay, HearsayConfig
from p2ptrain.protocol.group.record_size import MAX_MESSAGE_BYTES, record_bytes
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.signing import Statements
from p2ptrain.wire.messages import NO_PART, Record, RecordDigest, Records, RecordVersion, SnapshotRef

MAX_VERSION = 2**62
_MAX_DIGEST = 1024
_MAX_RECORDS = 64


@dataclass(frozen=True, slots=True)
class RecordConfig:
    interval_s: float = 1.0
    soon_s: float = 0.25
    """Rounds after news are at least this far apart, times max(1, records / 32): what a digest costs grows alike."""
    max_records: int = 4096
    max_bytes: int = 32 << 20
    """Of all records, as messages would have them."""
    max_forgotten: int = 512
    max_messages: int = 8
    """``Records`` in answer to one digest; what is left comes in later rounds."""
    hearsay: HearsayConfig = field(default_factory=HearsayConfig)


@dataclass(frozen=True, slots=True)
class RecordChanged:
    """``old`` is None when the peer is new here. The own record's changes are told too."""

    peer: PeerId
    old: Record | None
    new: Record


Effect = Send | Note | RecordChanged


def blank_record(peer: PeerId, key: bytes, version: int, **known: Any) -> Record:
    """What a peer says of itself before it has a job, and, by field, what it knows already."""
    nothing = Record(
        peer=peer,
        version=version,
        key=key,
        name="",
        addresses=(),
        job=JobId(""),
        counts=(),
        wishes=(),
        flops_per_s=0.0,
        memory_bytes=0,
        epoch=0,
        plan="",
        part=NO_PART,
        phase="waiting",
        round=0,
        step=0,
        samples=0,
        loss=0.0,
        samples_per_s=0.0,
        bytes_sent=0,
        waiting_for="",
        holdings=(),
    )
    return dataclasses.replace(nothing, **known)


class RecordBook:
    """``own`` is this peer's first record; its version becomes at least ``version_base``."""

    def __init__(
        self,
        own: Record,
        rng: random.Random,
        now: float,
        config: RecordConfig = RecordConfig(),
        *,
        statements: Statements,
        refused: Counter[str],
        version_base: int = 0,
    ) -> None:
        """``refused``: here is counted what was not believed."""
        if peer_id(own.key) != own.peer:
            raise LocalError("the own record's key is not its peer's")
        self.own_id = own.peer
        self.config = config
        self._rng = rng
        self._statements = statements
        self._refused = refused
        self._signed_own = own
        """The own record as it was last sent."""
        self._hearsay = Hearsay(config.hearsay)
        self._records = {own.peer: dataclasses.replace(own, version=max(1, own.version, version_base))}
        self._sizes = {own.peer: _fitting_size(self._records[own.peer])}
        self._num_bytes = self._sizes[own.peer]
        self._forgotten: dict[PeerId, int] = {}
        """Version that a forgotten peer's record had: whoever still holds it shall not bring it back."""
        self._ring: list[PeerId] | None = None
        self._alive: list[PeerId] = []
        self._last_round = now - config.interval_s
        self._next_round = now

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def own(self) -> Record:
        return self._records[self.own_id]

    def get(self, peer: PeerId) -> Record | None:
        return self._records.get(peer)

    def all(self) -> Mapping[PeerId, Record]:
        """A live, read-only view, the own record included."""
        return MappingProxyType(self._records)

    def next_deadline(self) -> float:
        return self._next_round if self._alive else NEVER

    # --- events ---------------------------------------------------------------------------------------------------

    def peers_alive(self, peers: Iterable[PeerId], now: float) -> None:
        """With whom to compare notes from now on."""
        self._alive = sorted(set(peers) - {self.own_id})
        self._next_round = max(self._next_round, now)

    def update(self, now: float, **changes: Any) -> list[Effect]:
        """Say something new of ourselves. Raises ``LocalError`` for fields that are not ours to change."""
        if changes.keys() & {"peer", "key", "version", "signature"}:
            raise LocalError("peer, key, version and signature of a record are given")
        if all(getattr(self.own, name) == value for name, value in changes.items()):
            return []
        return [self._renew(dataclasses.replace(self.own, version=self.own.version + 1, **changes), now)]

    def received(self, sender: PeerId, message: RecordDigest | Records, now: float) -> list[Effect]:
        """Raises ``RemoteError`` for what its sender says of itself."""
        if isinstance(message, RecordDigest):
            return self._compare(sender, message, now)
        if len(message.records) > _MAX_RECORDS:
            raise RemoteError("records", f"{len(message.records)} in a message")
        effects: list[Effect] = []
        for record in message.records:
            try:
                size = self._check(record)
            except RemoteError as error:
                if record.peer == sender:
                    raise
                self._refused[error.reason] += 1
            else:
                self._learn(sender, record, size, now, effects)
        return effects

    def met(self, peer: PeerId) -> None:
        """It proved that it is there."""
        self._hearsay.met(peer)

    def forget(self, peer: PeerId) -> None:
        """It is not there any more. A higher version of its record brings it back."""
        record = self._records.get(peer)
        if peer == self.own_id or record is None:
            return
        del self._records[peer]
        self._num_bytes -= self._sizes.pop(peer)
        self._hearsay.forget(peer)
        self._ring = None
        self._forgotten[peer] = record.version
        while len(self._forgotten) > self.config.max_forgotten:
            del self._forgotten[next(iter(self._forgotten))]

    def tick(self, now: float) -> list[Effect]:
        for peer in self._hearsay.overdue(self._alive, now):
            self.forget(peer)
        if now < self._next_round or not self._alive:
            return []
        self._last_round = now
        self._next_round = now + self.config.interval_s * self._rng.uniform(0.9, 1.1)
        return [Send(self._rng.choice(self._alive), self._digest())]

    # --- anti-entropy ---------------------------------------------------------------------------------------------

    def _digest(self) -> RecordDigest:
        ring = self._known()
        if len(ring) >= _MAX_DIGEST:
            start = self._rng.randrange(len(ring))
            ring = (ring[start:] + ring[:start])[:_MAX_DIGEST]
        return RecordDigest(tuple(RecordVersion(peer, self._version(peer)) for peer in ring), True)

    def _compare(self, sender: PeerId, digest: RecordDigest, now: float) -> list[Effect]:
        if len(digest.versions) > _MAX_DIGEST:
            raise RemoteError("records", f"a digest of {len(digest.versions)}")
        if any(not 0 <= entry.version <= MAX_VERSION for entry in digest.versions):
            raise RemoteError("records", "version out of range")
        theirs = {entry.peer: entry.version for entry in digest.versions}
        effects: list[Effect] = []
        covered: Iterable[PeerId] = theirs
        if digest.want_reply:
            covered = self._known()
            if len(digest.versions) >= _MAX_DIGEST:
                covered = _arc(self._known(), digest.versions[0].peer, digest.versions[-1].peer)
        newer = [
            record
            for record in map(self._records.get, covered)
            if record is not None and record.version > theirs.get(record.peer, 0)
        ]
        effects.extend(Send(sender, message) for message in self._pack(newer))
        if digest.want_reply:
            older = [
                RecordVersion(peer, self._version(peer))
                for peer, version in theirs.items()
                if version > self._version(peer) and (peer in self._records or self._would_take(sender, peer))
            ]
            if older:
                effects.append(Send(sender, RecordDigest(tuple(older), False)))
        return effects

    def _pack(self, records: list[Record]) -> list[Records]:
        self._rng.shuffle(records)  # so that with a lossy link it is not always the same that are late
        messages: list[Records] = []
        batch: list[Record] = []
        size = 0
        for record in records:
            more = self._sizes[record.peer]
            if batch and (size + more > MAX_MESSAGE_BYTES or len(batch) == _MAX_RECORDS):
                messages.append(Records(tuple(batch)))
                if len(messages) == self.config.max_messages:
                    return messages
                batch, size = [], 0
            batch.append(record if record.peer != self.own_id else self.signed())
            size += more
        if batch:
            messages.append(Records(tuple(batch)))
        return messages

    def _check(self, record: Record) -> int:
        """How many bytes it takes at most, if it may be believed."""
        if not 0 <= record.version <= MAX_VERSION:
            raise RemoteError("records", "version out of range")
        known = self._records.get(record.peer)
        if (known is None or known.key != record.key) and peer_id(record.key) != record.peer:
            raise RemoteError("record-key", f"the key of {record.peer} is another's")
        if record is known or record.version <= self._version(record.peer):
            return 0
        size = record_bytes(record)
        if size > MAX_MESSAGE_BYTES:
            raise RemoteError("record-size", f"{size} bytes of {record.peer}")
        if not self._statements.is_owners(record):
            raise RemoteError("record-unsigned", f"a record of {record.peer} that it did not sign")
        if (ref := self._statements.false_snapshot(record)) is not None:
            raise RemoteError("snapshot-unsigned", f"{record.peer} tells of a snapshot that {ref.trainer} did not sign")
        return size

    def _learn(self, sender: PeerId, record: Record, size: int, now: float, effects: list[Effect]) -> None:
        peer = record.peer
        known = self._records.get(peer)
        if peer == self.own_id:
            if self.own.version < record.version < MAX_VERSION:
                effects.append(self._renew(dataclasses.replace(self.own, version=record.version + 1), now))
        elif record.version > self._version(peer):
            if known is None and not self._may_come(sender, peer, size, now):
                return
            self._records[peer] = record
            self._num_bytes += size - self._sizes.get(peer, 0)
            self._sizes[peer] = size
            self._forgotten.pop(peer, None)
            if known is None:
                self._ring = None
            effects.append(RecordChanged(peer, known, record))
            self._soon(now)

    def _may_come(self, sender: PeerId, peer: PeerId, size: int, now: float) -> bool:
        """Whether there is room for a new peer; who was met gives nobody way that is here."""
        if peer == sender:
            self._hearsay.met(peer)
        if not self._would_take(sender, peer, size):
            self._refused["record-unmet"] += 1
            return False
        while not self._has_room(size):
            gone = next((each for each in self._records if each not in self._alive and each != self.own_id), None)
            if gone is None:
                self._refused["records-full"] += 1
                return False
            self.forget(gone)
        self._hearsay.heard(peer, sender, now)
        return True

    def _would_take(self, sender: PeerId, peer: PeerId, size: int = 0) -> bool:
        """Whether ``sender`` may tell us of ``peer``."""
        return self._hearsay.is_met(peer) or peer == sender or (self._hearsay.has_room(sender) and self._has_room(size))

    def _has_room(self, num_bytes: int) -> bool:
        return len(self._records) < self.config.max_records and self._num_bytes + num_bytes <= self.config.max_bytes

    def made(self, ref: SnapshotRef) -> SnapshotRef:
        """A snapshot that this peer made of its job, as everybody may tell of it: signed."""
        return self._statements.made(ref, self.own_id, self.own.key, self.own.job)

    def is_trainers(self, ref: SnapshotRef) -> bool:
        """Whether who it names made it of this job."""
        return self._statements.is_trainers(ref, self.own.job)

    def signed(self) -> Record:
        """The own record. It changes more often than it is sent, so it is signed only here."""
        if self._signed_own.version != self.own.version or not self._signed_own.signature:
            self._signed_own = self._statements.signed(self.own)
        return self._signed_own

    def _renew(self, record: Record, now: float) -> RecordChanged:
        size = _fitting_size(record)
        old, self._records[self.own_id] = self.own, record
        self._num_bytes += size - self._sizes[self.own_id]
        self._sizes[self.own_id] = size
        self._soon(now)
        return RecordChanged(self.own_id, old, record)

    def _soon(self, now: float) -> None:
        gap = self.config.soon_s * max(1.0, len(self._records) / 32)
        self._next_round = min(self._next_round, max(now, self._last_round + gap))

    def _known(self) -> list[PeerId]:
        """All peers that we have, or refuse to have back, in the order of the ring."""
        if self._ring is None:
            self._ring = sorted(self._records.keys() | self._forgotten.keys())
        return self._ring

    def _version(self, peer: PeerId) -> int:
        record = self._records.get(peer)
        return record.version if record is not None else self._forgotten.get(peer, 0)


def _arc(ring: list[PeerId], first: PeerId, last: PeerId) -> list[PeerId]:
    """The part of a sorted ring from ``first`` to ``last``, both included, which may go through its end."""
    start, stop = bisect_left(ring, first), bisect_left(ring, last + "\0")
    return ring[start:stop] if first <= last else ring[start:] + ring[:stop]


def _fitting_size(record: Record) -> int:
    size = record_bytes(record)
    if size > MAX_MESSAGE_BYTES:
        raise LocalError(f"the own record has {size} bytes, of at most {MAX_MESSAGE_BYTES}")
    return size


def matters_to_plans(old: Record, new: Record) -> bool:
    """Whether a change of a record can matter to planning."""
    figures = ("flops_per_s", "memory_bytes", "link_bytes_per_s", "links", "slowdown", "profile")
    fields = ("job", "counts", "wishes", "max_groups", *figures, "epoch", "plan", "part", "vote", "phase", "leaving")
    return any(getattr(old, name) != getattr(new, name) for name in fields)
