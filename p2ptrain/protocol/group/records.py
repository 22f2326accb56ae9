"""What every peer says of itself, known to all: last-writer-wins registers, one an owner, spread by anti-entropy.

Invariant: a record in the book is the newest that was seen of its owner, who signed it with the key that its peer is
named by, and it fits into a message. The own record is what its owner last said: nobody overwrites it, and its version
is above all that were seen of it. So who passes a record on can change nothing of it, and is never blamed for one.

Theory. Every ``interval_s`` a peer sends a random live one a digest (peer, version). That one answers with what is
newer at its side, and with a second digest of what is newer at the other's, which brings that (push-pull anti-entropy,
Demers et al., PODC 1987). Each message only ever repeats what is true, so loss, repetition and disorder cost time,
nothing else.

    digest, want_reply -> what the sender lacks + digest, no reply, of what we lack at the sender, and of our news
    digest, no reply   -> what is newer here than the versions named + digest, no reply, of what is newer there
    Records            -> newer ones replace older ones: RecordChanged
    RecordChanges      -> the same, of fields that changed since a version that we have; whole ones, if they don't fit

What it costs a peer does not grow with the group. A digest names all peers of a small group; of a larger one an arc of
the ring of peer ids, so that the receiver knows which absences mean something, and what became known here lately in
eight bytes each (``record_news``). The arc is short, but for as long as peers are missing on it. Of a record travels
what changed (``record_changes``). What changes all the time, a peer's progress, is said the less often the larger
the group is: ``progress_rate`` times a second by all together. All else is said at once, to ``push`` peers directly:
to all of a small group. Where those are not all, and where it came by way of others, whoever hears of it compares notes
soon after, so that it spreads. Of a small group, who has no link to some that are here does so all the time, as it can
hear from them by way of others only.

A restarted peer may have forgotten its version. Versions start from a base that its caller reads off the wall clock
(milliseconds); whoever hears that others hold a higher version of its own record asks for it, and goes above it if it
did say that.

Whom nobody here has met may not be there at all: of such peers there is room for few (``hearsay``).
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import PeerId, peer_id
from p2ptrain.protocol.group import record_changes
from p2ptrain.protocol.group.hearsay import HearsayConfig
from p2ptrain.protocol.group.record import has_lost_its_part
from p2ptrain.protocol.group.record_news import full_version, mark, pack_news, unpack_news
from p2ptrain.protocol.group.record_size import MAX_MESSAGE_BYTES, record_bytes
from p2ptrain.protocol.group.record_table import MAX_RECORDS, RecordTable
from p2ptrain.protocol.machine import NEVER, Note, Send
from p2ptrain.protocol.signing import Statements
from p2ptrain.wire.messages import (
    Record,
    RecordChanges,
    RecordDigest,
    Records,
    RecordVersion,
    SnapshotRef,
)

MAX_VERSION = 2**62
_MAX_DIGEST = 1024
_WHOLE = 32
"""A group of up to so many is named in full by each digest."""
_LEAST_ARC = 8


@dataclass(frozen=True, slots=True)
class RecordConfig:
    interval_s: float = 1.0
    soon_s: float = 0.25
    """Rounds after news that is more than progress are at least this far apart."""
    idle_s: float = 30.0
    """What changes by itself (``record_changes.IDLE``) is said this often where nothing else does."""
    progress_s: float = 0.5
    progress_rate: float = 8.0
    """A peer says its progress every ``max(progress_s, peers / progress_rate)``."""
    push: int = 8
    """So many are told at once of what is new of this peer, but for its progress."""
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
RECORD_MESSAGES = (RecordDigest, Records, RecordChanges)


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
        self._is_ahead = self._push_due = self._is_idle = False
        """Whether the own record has progress that is not said yet; news that nobody was told of; nothing but what
        changes by itself."""
        self._said_at, self._pace = now, rng.uniform(0.5, 1.0)
        self._arc, self._num_level = _MAX_DIGEST, 0
        """How many peers a digest names, of a group that it can't name in full; and how many of those that were named
        one after another were known on both sides."""
        first = dataclasses.replace(own, version=max(1, own.version, version_base))
        limits = {name: getattr(config, name) for name in ("max_records", "max_bytes", "max_forgotten")}
        self._table = RecordTable(first, _fitting_size(first), config.hearsay, refused, **limits)
        self._own = self._said = first
        """The own record as it is, and as others may know it."""
        self._last_round = now - config.interval_s
        self._next_round = now
        self.linked: Callable[[], Iterable[PeerId]] = lambda: self._table.alive
        """Whom there is a link to: of these are those that notes are compared with."""

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def own(self) -> Record:
        return self._own

    def get(self, peer: PeerId) -> Record | None:
        return self._table.get(peer)

    def all(self) -> Mapping[PeerId, Record]:
        """A live, read-only view, the own record included."""
        return self._table.all()

    def next_deadline(self) -> float:
        if not self._table.alive:
            return NEVER
        return min(self._next_round, self._say_at() if self._is_ahead or self._push_due else NEVER)

    # --- events ---------------------------------------------------------------------------------------------------

    def peers_alive(self, peers: Iterable[PeerId], now: float) -> None:
        """With whom to compare notes from now on."""
        self._table.alive = sorted(set(peers) - {self.own_id})
        self._next_round = max(self._next_round, now)

    def update(self, now: float, **changes: Any) -> list[Effect]:
        """Say something new of ourselves. Raises ``LocalError`` for fields that are not ours to change."""
        if changes.keys() & {"peer", "key", "version", "signature"}:
            raise LocalError("peer, key, version and signature of a record are given")
        if all(getattr(self.own, name) == value for name, value in changes.items()):
            return []
        old, new = self.own, dataclasses.replace(self.own, **changes)
        self._put_own(new)
        self._is_idle = changes.keys() <= record_changes.IDLE and (self._is_idle or not self._is_ahead)
        self._is_ahead = True
        if not record_changes.PROGRESS.issuperset(changes):
            self._say(self._said.version + 1, now)
            if has_lost_its_part(old, new):
                self._said_at = min(self._said_at, now - self.config.soon_s)  # others stand still until they know
        return [RecordChanged(self.own_id, old, self.own)]

    def received(self, sender: PeerId, message: RecordDigest | Records | RecordChanges, now: float) -> list[Effect]:
        """Raises ``RemoteError`` for what its sender says of itself."""
        if isinstance(message, RecordDigest):
            return self._compare(sender, message, now)
        if isinstance(message, RecordChanges):
            return self._change(sender, message, now)
        if len(message.records) > MAX_RECORDS:
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
        self._table.met(peer)

    def forget(self, peer: PeerId) -> None:
        """It is not there any more. A higher version of its record brings it back."""
        self._table.forget(peer)

    def tick(self, now: float) -> list[Effect]:
        self._table.forget_overdue(now)
        if not self._table.alive:
            return []
        effects: list[Effect] = []
        here = set(self._table.alive)
        near = [peer for peer in self.linked() if peer in here]
        if self._is_ahead and now >= self._say_at():
            self._say(self._said.version + 1, now)
        if self._push_due and now >= self._say_at():
            self._push_due, self._said_at = False, now
            told = self._rng.sample(near, min(self.config.push, len(near)))
            effects += [Send(peer, Records((self.signed(),))) for peer in told]
        if now >= self._next_round:
            self._last_round = now
            interval_s = self.config.soon_s if self._is_small() and len(near) < len(here) else self.config.interval_s
            self._next_round = now + interval_s * self._rng.uniform(0.9, 1.1)
            effects += [Send(peer, self._digest(now)) for peer in self._rng.sample(near, min(1, len(near)))]
        return effects

    # --- anti-entropy ---------------------------------------------------------------------------------------------

    def _digest(self, now: float) -> RecordDigest:
        ring = self._table.ring()
        if len(ring) <= _WHOLE:
            return RecordDigest(self._table.versions(ring), True)
        start = self._rng.randrange(len(ring))
        arc = (ring[start:] + ring[:start])[: self._arc]
        return RecordDigest(self._table.versions(arc), True, whole=False, news=self._table.news(now))

    def _compare(self, sender: PeerId, digest: RecordDigest, now: float) -> list[Effect]:
        if len(digest.versions) > _MAX_DIGEST:
            raise RemoteError("records", f"a digest of {len(digest.versions)}")
        if any(not 0 <= entry.version <= MAX_VERSION for entry in digest.versions):
            raise RemoteError("records", "version out of range")
        table, news = self._table, unpack_news(digest.news)
        theirs = {entry.peer: entry.version for entry in digest.versions}
        covered: Collection[PeerId] = theirs
        is_member = table.get(sender) is not None  # who looks on has no record
        if digest.want_reply:
            ends = [digest.versions[place].peer for place in (0, -1)] if theirs else []
            covered = table.arc(*ends) if ends and not digest.whole else table.ring()
            if is_member:
                self._measure_arc(covered, theirs)
            if theirs.keys() <= {self.own_id} and len(table) <= _WHOLE and self._is_ahead:
                self._say(self._said.version + 1, now)  # who looks on asks for nothing else
        newer = {peer: theirs.get(peer, 0) for peer in covered if table.version(peer) > theirs.get(peer, 0)}
        wanted: list[tuple[int, int]] = []
        for their_mark, short in news:
            peer = table.of_mark(their_mark)
            mine = table.version(peer) if peer is not None else 0
            version = full_version(short, mine) if short and mine else short
            if peer is not None and version < mine:
                newer.setdefault(peer, version)
            elif version > mine and (mine or table.has_room_from(sender)):
                wanted.append((their_mark, mine))
        told, older = pack_news(wanted), list[PeerId]()
        if digest.want_reply:
            older = [
                p for p, v in theirs.items() if v > table.version(p) and (table.get(p) or table.would_take(sender, p))
            ]
            if is_member and not digest.whole:
                told += table.news(now, but={their_mark for their_mark, _ in news}.union(map(mark, theirs)))
        packed = table.packed(newer, self.signed, self._rng)
        effects: list[Effect] = [Send(sender, message) for message in packed[: self.config.max_messages]]
        if older or told:
            effects.append(Send(sender, RecordDigest(table.versions(older), False, news=told)))
        return effects

    def _measure_arc(self, covered: Collection[PeerId], theirs: Mapping[PeerId, int]) -> None:
        """Longer while peers are missing, on either side."""
        missing = sum(peer not in theirs for peer in covered) + sum(not self._table.version(peer) for peer in theirs)
        self._num_level = self._num_level + len(theirs) if missing == 0 else 0
        if 2 * missing > len(theirs):
            self._arc = min(_MAX_DIGEST, 2 * self._arc)
        elif self._num_level >= len(self._table):
            self._arc, self._num_level = max(_LEAST_ARC, self._arc // 2), 0

    def _change(self, sender: PeerId, message: RecordChanges, now: float) -> list[Effect]:
        """What does not fit what is known here is asked for as a whole."""
        effects: list[Effect] = []
        odd: list[RecordVersion] = []
        for change in message.changes:
            known = self._table.get(change.peer)
            if known is None or change.version <= known.version:
                continue
            try:
                if change.since > known.version or known is self._own:
                    raise RemoteError("record-gap", f"a change of {change.peer} since {change.since}")
                record = record_changes.changed(known, change)
                self._learn(sender, record, self._check(record), now, effects)
            except RemoteError as error:
                if change.since >= known.version or error.reason != "record-unsigned":
                    self._refused[error.reason] += 1  # else, what changed since and changed back may be missing
                odd.append(RecordVersion(change.peer, 0))
        if odd:
            effects.append(Send(sender, RecordDigest(tuple(odd), False)))
        return effects

    def _check(self, record: Record) -> int:
        """How many bytes it takes at most, if it may be believed."""
        if not 0 <= record.version <= MAX_VERSION:
            raise RemoteError("records", "version out of range")
        known = self._table.get(record.peer)
        if (known is None or known.key != record.key) and peer_id(record.key) != record.peer:
            raise RemoteError("record-key", f"the key of {record.peer} is another's")
        if record is known or record.version <= self._table.version(record.peer):
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
        peer, known = record.peer, self._table.get(record.peer)
        if peer == self.own_id:
            if self._said.version < record.version < MAX_VERSION:
                old = self._own
                self._say(record.version + 1, now)
                effects.append(RecordChanged(peer, old, self._own))
        elif record.version > self._table.version(peer):
            if known is None and not self._table.may_come(sender, peer, size, now):
                return
            self._table.put(record, size)
            is_linked = known is not None and known.addresses == record.addresses  # as far as one can tell
            self._note(known, record, now, is_told=sender == peer and is_linked)
            effects.append(RecordChanged(peer, known, record))

    def made(self, ref: SnapshotRef) -> SnapshotRef:
        """A snapshot that this peer made of its job, as everybody may tell of it: signed."""
        return self._statements.made(ref, self.own_id, self.own.key, self.own.job)

    def is_trainers(self, ref: SnapshotRef) -> bool:
        """Whether who it names made it of this job."""
        return self._statements.is_trainers(ref, self.own.job)

    def signed(self) -> Record:
        """The own record. It changes more often than it is sent, so it is signed only here."""
        if self._signed_own.version != self._said.version or not self._signed_own.signature:
            self._signed_own = self._statements.signed(self._said)
        return self._signed_own

    def _put_own(self, record: Record) -> None:
        self._table.put(record, _fitting_size(record))
        self._own = record

    def _say(self, version: int, now: float) -> None:
        """From now on others may know the own record as it is."""
        old, self._said, self._is_ahead = self._said, dataclasses.replace(self._own, version=version), False
        self._put_own(self._said)
        if self._note(old, self._said, now, is_told=True):
            self._push_due = True
        else:
            self._said_at, self._pace = now, self._rng.uniform(0.8, 1.2)  # not all at once

    def _note(self, old: Record | None, new: Record, now: float, *, is_told: bool) -> bool:
        """A record is news here; whether it is more than progress. ``is_told``: its owner tells all whom it can."""
        if not self._table.note(old, new, now):
            return False
        if not (is_told and self._is_small()):
            self._next_round = min(self._next_round, max(now, self._last_round + self.config.soon_s))
        return True

    def _is_small(self) -> bool:
        return len(self._table.alive) <= self.config.push

    def _say_at(self) -> float:
        """When what is new of this peer is said."""
        config = self.config
        least_s = config.idle_s if self._is_idle else config.progress_s
        pace_s = max(least_s, len(self._table) / config.progress_rate)
        return self._said_at + (config.soon_s if self._push_due else self._pace * pace_s)


def _fitting_size(record: Record) -> int:
    size = record_bytes(record)
    if size > MAX_MESSAGE_BYTES:
        raise LocalError(f"the own record has {size} bytes, of at most {MAX_MESSAGE_BYTES}")
    return size
