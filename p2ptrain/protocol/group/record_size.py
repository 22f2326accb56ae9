"""How large a record is on the wire, at most.

An estimate, as packing each record of a large group to measure it would cost more than all the rest here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from p2ptrain.wire.messages import Record

MAX_MESSAGE_BYTES = 56 * 1024
"""Of an encoded header, which may have 64 KiB."""
T = TypeVar("T")
_FIXED_BYTES = 656
"""Names of fields, those of one number, and the signature."""
_REF_BYTES = 400
"""Of a snapshot's name: numbers, the blob's name, its trainer's key and signature."""
_SPARE_BYTES = 8 << 10
"""For what a record may say beside, later on."""


def record_bytes(record: Record) -> int:
    """What ``record`` adds to a header at most: msgpack has 9 bytes a number, 5 before a string."""
    numbers = 9 * (len(record.counts) + len(record.wishes))
    addresses = sum(5 + _utf8_bytes(address) for address in record.addresses)
    words = (record.name, record.job, record.plan, record.phase, record.waiting_for, record.profile, record.vote)
    texts = sum(map(_utf8_bytes, words))
    blames = sum(96 + _utf8_bytes(blame.why) for blame in record.blames)
    links = 96 * (len(record.links) + len(record.sent))
    return _FIXED_BYTES + numbers + addresses + texts + blames + links + _REF_BYTES * len(record.holdings)


def num_holdings_that_fit(record: Record) -> int:
    """So many snapshots can be told of beside all else that ``record`` says."""
    rest = record_bytes(dataclasses.replace(record, holdings=()))
    return max(0, MAX_MESSAGE_BYTES - _SPARE_BYTES - rest) // _REF_BYTES


def batches(items: list[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Runs of items that fit into a message each."""
    batch: list[T] = []
    size = 0
    for item in items:
        more = size_of(item)
        if batch and (size + more > MAX_MESSAGE_BYTES or len(batch) == most):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)
