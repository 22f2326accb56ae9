"""Blocks that a stage lacks: asked of those who have them, the least busy first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p2ptrain.core.stages.missing_blocks import MAX_FAILURES, MissingBlocks
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.protocol.machine import Note
from p2ptrain.wire.messages import SnapshotRef

HOLDERS = [PeerId("a"), PeerId("b"), PeerId("c")]


def ref(block: int, num_bytes: int = 100) -> SnapshotRef:
    return SnapshotRef(block, PeerId("a"), 1, 1, 20, 10, BlobId(f"{block:064x}"), num_bytes, 1)


def missing(own: str, holders: dict[int, list[PeerId]] | None = None) -> tuple[MissingBlocks, list[list[PeerId]]]:
    """And the sources of each download, as they are asked for."""
    asked: list[list[PeerId]] = []

    def fetch(blob: BlobId, num_bytes: int, sources: list[PeerId], now: float) -> list[object]:
        asked.append(sources)
        return []

    has = {f"{block:064x}": peers for block, peers in (holders or {}).items()}
    group: Any = SimpleNamespace(own_id=PeerId(own), holders=lambda blob: has.get(blob, HOLDERS))
    downloads: Any = SimpleNamespace(fetch=fetch, hands_out_nothing=lambda peer: False)
    return MissingBlocks(group, downloads), asked


def test_blocks_come_from_several_at_once_the_least_busy_first() -> None:
    blocks, asked = missing("own")
    effects = blocks.ask([ref(0), ref(1), ref(2)], 20, 0.0)
    assert {sources[0] for sources in asked} == set(HOLDERS)
    assert all(sorted(sources) == HOLDERS for sources in asked), "each of them will do, should one die"
    told = [dict(effect.fields)["from"] for effect in effects if isinstance(effect, Note)]
    assert told == [sources[0] for sources in asked]
    blocks.ask([ref(3, 1000), ref(4), ref(5), ref(6)], 20, 1.0)
    first = asked[3][0]
    assert first not in {sources[0] for sources in asked[4:]}, "it is busy with a large one"


def test_who_alone_has_a_block_is_asked_for_it_however_busy() -> None:
    blocks, asked = missing("own", {0: [HOLDERS[0]], 1: [HOLDERS[0]], 2: [HOLDERS[0], HOLDERS[1]]})
    blocks.ask([ref(0), ref(1), ref(2)], 20, 0.0)
    assert asked == [["a"], ["a"], ["b", "a"]]


def test_those_who_need_the_same_block_do_not_all_begin_with_one() -> None:
    first = set()
    for number in range(20):
        blocks, asked = missing(f"peer {number}")
        blocks.ask([ref(0)], 20, 0.0)
        first.add(asked[0][0])
    assert first == set(HOLDERS)


def test_a_new_plan_forgets_who_was_busy() -> None:
    blocks, asked = missing("own")
    blocks.ask([ref(0, 1000)], 20, 0.0)
    blocks.stop(forget_failures=True)
    blocks.ask([ref(1)], 20, 1.0)
    assert asked[0] == asked[1]


def test_a_blob_that_was_told_of_with_a_wrong_size_is_asked_for_as_often_with_the_right_one() -> None:
    blocks, _ = missing("own")
    lie, honest = ref(0, 1), ref(0)
    for holding in (lie, honest):
        for failures in range(1, MAX_FAILURES + 1):
            blocks.ask([holding], 20, 0.0)
            assert blocks.lost(holding.blob, 1.0) == (holding if failures == MAX_FAILURES else None)
    assert blocks.lost(honest.blob, 2.0) is None, "it is not wanted"
