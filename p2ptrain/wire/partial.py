"""Some fields of a record as bytes, and back.

Invariant: a value that is read here has passed the checks of one that came in a whole record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import msgpack

from p2ptrain.errors import RemoteError
from p2ptrain.wire.codec import unpack
from p2ptrain.wire.messages import Record
from p2ptrain.wire.schema import field_from_plain, to_plain

FIELDS = tuple(field.name for field in dataclasses.fields(Record))
GIVEN = frozenset({"peer", "version", "key", "signature"})
"""What is not among the fields that change: a record is another's with another key, and the rest is said apart."""


def pack_fields(record: Record, names: Collection[str]) -> bytes:
    """Pairs of a field's number and its value."""
    pairs = [[number, to_plain(getattr(record, name))] for number, name in enumerate(FIELDS) if name in names]
    packed: bytes = msgpack.packb(pairs, use_bin_type=True)
    return packed


def unpack_fields(packed: bytes) -> dict[str, Any]:
    """The values by name. Raises ``RemoteError``."""
    pairs = unpack(packed)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RemoteError("schema", "fields of a record: no pairs")
    changes: dict[str, Any] = {}
    for number, plain in pairs:
        name = FIELDS[number] if type(number) is int and 0 <= number < len(FIELDS) else ""
        if not name or name in GIVEN or name in changes:
            raise RemoteError("schema", f"fields of a record: {number!r:.32}")
        changes[name] = field_from_plain(Record, name, plain)
    return changes
