"""Commands whose blobs come from the disk and from memory reach the trainer in the order in which they were meant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.effects import ToTrainer
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks.commands import ExtractFeatures
from p2ptrain.runtime.node.disk_work import DiskWork
from p2ptrain.runtime.node.in_order import InOrder
from p2ptrain.runtime.store.disk import StorageError


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_nothing_overtakes_and_nothing_is_held_up_by_what_is_missing(order: list[int], missing: set[int]) -> None:
    row, done = InOrder(), []
    places = [row.place() for _ in range(6)]
    for settled, number in enumerate(order):
        places[number](None if number in missing else lambda number=number: done.append(number))
        there = set(order[: settled + 1])
        in_turn = next((n for n in range(6) if n not in there), 6)
        assert done == [n for n in range(in_turn) if n not in missing]


class Aside:
    """A node whose disk is slow: what it is asked for comes when ``disk`` is let go."""

    def __init__(self) -> None:
        self.disk: list[Any] = []
        self.notes: list[str] = []
        self.laters: list[Any] = []

    def on_disk(self, work: Any, then: Any) -> None:
        self.disk.append((work, then))

    def in_memory(self, work: Any, then: Any) -> None:
        self._do(work, then)

    def later(self, seconds: float, what: Any) -> None:
        self.laters.append(what)

    def note(self, note: Any) -> None:
        self.notes.append(note.kind)

    def let_go(self) -> None:
        for work, then in self.disk:
            self._do(work, then)
        self.disk = []

    @staticmethod
    def _do(work: Any, then: Any) -> None:
        try:
            then(work(), None)
        except StorageError as error:
            then(None, error)


@pytest.mark.parametrize("on_disk", ["there", "missing", "no file left at first"])
def test_the_last_copy_of_a_part_comes_last(on_disk: str) -> None:
    node, kept, sent = Aside(), BlobId("a" * 64), []
    tries = iter([StorageError("no file left", full=False)] if on_disk == "no file left at first" else [])

    def share(blob: BlobId) -> bytes | None:
        if blob == kept and (error := next(tries, None)) is not None:
            raise error
        return None if blob == kept and on_disk == "missing" else blob[:1].encode()

    blobs = SimpleNamespace(share=share, passing=[BlobId("b" * 64)])
    work = DiskWork(node, None, SimpleNamespace(blobs=blobs), None, None)  # type: ignore[arg-type]
    for name, last in (("a", False), ("b", True)):
        command = ExtractFeatures("s", 0, PeerId(name * 16), b"", weight=1.0, last_copy=last, last=last)
        work.fill_in(ToTrainer(command, BlobId(name * 64), "snapshot"), BlobId(name * 64), sent.append)
    assert sent == []
    node.let_go()
    for again in node.laters:
        again()
    node.let_go()
    expected = [b"b"] if on_disk == "missing" else [b"a", b"b"]
    assert [command.snapshot for command in sent] == expected
    assert node.notes == (["blob-missing"] if on_disk == "missing" else [])
