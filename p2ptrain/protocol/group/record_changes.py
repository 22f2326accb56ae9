"""What changed of each record, and since which version it is as it is: so that only that need be sent.

Invariant: who has a record as of a version that was here too has all of it once it is given the fields that are newer
here. (Of a version that never was here nobody knows what it said: a field may have changed and changed back.) The
owner's signature over the whole shows whether it is so; where it does not, the whole record is asked for.
"""

from __future__ import annotations

import dataclasses
from collections import deque

from p2ptrain.ids import PeerId
from p2ptrain.wire.messages import Record, RecordChange
from p2ptrain.wire.partial import FIELDS, GIVEN, pack_fields, unpack_fields
from p2ptrain.wire.schema import to_plain

PROGRESS = frozenset({"step", "samples", "loss", "samples_per_s", "bytes_sent", "waiting_for", "work_flops"})
"""Fields that change all the time, and that nobody needs at once."""
IDLE = frozenset({"bytes_sent"})
"""Those that change though nothing happens."""
MOST_SEEN = 16
MOST_BYTES = 2048
"""Of fields that are sent apart: of more the whole record is not much more."""


class RecordChanges:
    def __init__(self) -> None:
        self._seen: dict[PeerId, deque[int]] = {}
        """The last versions of a record that were here."""
        self._newer: dict[PeerId, dict[str, int]] = {}
        """Which fields changed since, and with which version at the latest."""

    def learnt(self, old: Record | None, new: Record) -> bool:
        """Whether more than progress is new. ``old``: what was known of the same peer."""
        if old is None or old.key != new.key or new.peer not in self._seen:
            self._seen[new.peer], self._newer[new.peer] = deque([new.version], MOST_SEEN), {}
            return True
        self._seen[new.peer].append(new.version)
        changed = [
            name for name in FIELDS if name not in GIVEN and not _is_same(getattr(old, name), getattr(new, name))
        ]
        self._newer[new.peer].update(dict.fromkeys(changed, new.version))
        return not PROGRESS.issuperset(changed)

    def forget(self, peer: PeerId) -> None:
        self._seen.pop(peer, None)
        self._newer.pop(peer, None)

    def since(self, version: int, record: Record) -> RecordChange | None:
        """For who has the record as of ``version``; None: it needs the whole."""
        if version not in self._seen[record.peer]:
            return None
        packed = pack_fields(record, {name for name, at in self._newer[record.peer].items() if at > version})
        if len(packed) > MOST_BYTES:
            return None
        return RecordChange(record.peer, version, record.version, packed, record.signature)


def _is_same(old: object, new: object) -> bool:
    """On the wire, where it is signed: equal names of snapshots may have other signatures, and zero has two signs."""
    return old is new or (old == new and repr(to_plain(old)) == repr(to_plain(new)))


def changed(known: Record, change: RecordChange) -> Record:
    """The record after a change of it. Raises ``RemoteError``."""
    fields = unpack_fields(change.fields)
    return dataclasses.replace(known, version=change.version, signature=change.signature, **fields)
