"""Blobs that are fetched for a while leave the disk again, whenever they arrive."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p2ptrain.core.downloads import Borrowed, Downloads
from p2ptrain.core.effects import ReleaseBlob
from p2ptrain.core.stages.missing_blocks import MissingBlocks
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.wire.messages import SnapshotRef

ONE, TWO = BlobId("1" * 64), BlobId("2" * 64)
HOLDER = PeerId("a" * 16)


def downloads(here: set[BlobId], on_their_way: set[BlobId]) -> Downloads:
    transfers: Any = SimpleNamespace(
        progress=lambda: [SimpleNamespace(blob=blob) for blob in on_their_way],
        fetch=lambda blob, *_: on_their_way.add(blob) or [],
        hands_out_nothing=lambda peer: False,
    )
    return Downloads(transfers, here.__contains__)


def test_what_is_borrowed_is_let_go_of_when_nobody_waits_for_it_also_if_it_comes_after_that() -> None:
    here, on_their_way = set[BlobId](), set[BlobId]()
    borrowed = Borrowed(downloads(here, on_their_way))
    borrowed.fetch(ONE, 100, [HOLDER], 0.0)
    borrowed.fetch(TWO, 100, [HOLDER], 0.0)
    assert borrowed.let_go(lambda blob: False) == [], "they are on their way"
    on_their_way.clear()
    here.add(ONE)  # the other one was lost
    assert borrowed.let_go(ONE.__eq__) == []
    assert borrowed.let_go(lambda blob: False) == [ReleaseBlob(ONE)]
    here.add(TWO)
    assert borrowed.let_go(lambda blob: False) == [], "somebody else has fetched it"


def test_blocks_that_come_when_they_are_wanted_no_more_are_given_with_the_next() -> None:
    group: Any = SimpleNamespace(own_id=PeerId("own"), holders=lambda blob: [HOLDER])
    missing = MissingBlocks(group, downloads(set(), set()))
    refs = [SnapshotRef(0, HOLDER, 1, 1, 10, 1, blob, 100) for blob in (ONE, TWO)]
    missing.ask(refs, 10, 0.0)
    missing.stop(forget_failures=True)
    assert not missing.arrived(ONE) and not missing.lost(TWO, 1.0)
    assert missing.given() == [refs[0]] and missing.given() == []
    missing.ask(refs, 10, 2.0)
    missing.stop()
    missing.ask(refs[:1], 10, 3.0)
    assert missing.arrived(ONE) and missing.given() == [refs[0]]
