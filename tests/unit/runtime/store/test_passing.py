"""Blobs in memory, and the hash of what arrives in any order."""

from __future__ import annotations

import itertools
import random

import pytest

from p2ptrain.ids import BlobId, blob_id
from p2ptrain.runtime.store import passing
from p2ptrain.runtime.store.arriving import ArrivingHash
from p2ptrain.runtime.store.disk import StorageError
from p2ptrain.runtime.store.passing import PassingBlobs, view_of
from p2ptrain.wire.shared_bytes import SHARED_FROM_BYTES, SharedBytes

LARGE = random.Random(1).randbytes(SHARED_FROM_BYTES + 100)


def receive(blobs: PassingBlobs, data: bytes) -> BlobId:
    blob = blob_id(data)
    blobs.begin(blob, len(data))
    blobs.write(blob, 0, data)
    assert blobs.finish(blob)
    return blob


@pytest.mark.parametrize("seed", range(20))
def test_the_hash_is_that_of_the_bytes_in_whatever_order_they_come(seed: int) -> None:
    rng = random.Random(seed)
    data, kept = rng.randbytes(1000), bytearray(1000)
    cuts = sorted({0, 1000, *(rng.randrange(1000) for _ in range(8))})
    pieces = list(itertools.pairwise(cuts))
    order = rng.sample(pieces, len(pieces)) if seed else pieces
    arriving, num_read = ArrivingHash(), 0

    def read(start: int, end: int) -> bytes:
        nonlocal num_read
        num_read += end - start
        return bytes(kept[start:end])

    def write(start: int, end: int, wrong: bool = False) -> None:
        piece = bytes(end - start) if wrong else data[start:end]
        kept[start:end] = piece
        arriving.written(start, piece, read)

    if seed % 2:  # an attempt of another source, given up half-way
        for start, end in order[: len(order) // 2]:
            write(start, end, wrong=True)
    for start, end in order:
        write(start, end)
    assert arriving.of(1000, read) == blob_id(data)
    if not seed:
        assert num_read == 0, "in order nothing is looked at twice"


def test_a_large_one_can_be_mapped_by_the_trainer_and_none_is_copied_to_be_read() -> None:
    blobs = PassingBlobs(10 << 20)
    small, large = receive(blobs, b"some bytes"), receive(blobs, LARGE)
    shared = blobs.get(large)
    assert isinstance(shared, SharedBytes) and bytes(shared.private()[:]) == LARGE
    part = blobs.read(large, 5, 100)
    assert isinstance(part, memoryview) and part == LARGE[5:105] and part.obj is shared.view.obj
    assert blobs.read(small, 5, 5) == b"bytes"
    blobs.forget(large)
    assert large not in blobs and part == LARGE[5:105], "who reads it reads on"


def test_wrong_bytes_are_refused_and_may_come_again() -> None:
    blobs, blob = PassingBlobs(10 << 20), blob_id(LARGE)
    blobs.begin(blob, len(LARGE))
    blobs.write(blob, 0, bytes(len(LARGE)))
    assert not blobs.finish(blob) and blob not in blobs and blobs.read(blob, 0, 1) is None
    blobs.write(blob, SHARED_FROM_BYTES, LARGE[SHARED_FROM_BYTES:])
    blobs.write(blob, 0, LARGE[:SHARED_FROM_BYTES])
    assert blobs.finish(blob) and blobs.read(blob, 0, len(LARGE)) == LARGE


def test_open_files_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "_MAX_SHARED", 1)
    blobs = PassingBlobs(10 << 20)
    first, second = receive(blobs, LARGE), receive(blobs, LARGE[::-1])
    assert isinstance(blobs.get(first), SharedBytes) and isinstance(blobs.get(second), bytearray)
    assert view_of(blobs.get(second) or b"") == LARGE[::-1]


def test_memory_that_can_not_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, blob = PassingBlobs(10 << 20), blob_id(LARGE)
    blobs.begin(blob, len(LARGE))

    def full(*_: object) -> int:
        raise OSError(28, "no space left")

    monkeypatch.setattr(SharedBytes, "write", full)
    with pytest.raises(StorageError, match="can't be had"):
        blobs.write(blob, 0, LARGE)
