"""The vote on disk: kept whole, never replaced by an older one, and binding where it can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.protocol.consensus.epochs import GENERATION
from p2ptrain.runtime.store.disk import Disk, StorageError
from p2ptrain.runtime.store.store import Store
from p2ptrain.runtime.store.vote import NAME, VoteFile

VOTE = PlanRef(7, "a" * 64)


class FullDisk(Disk):
    def fsync(self, fd: int) -> None:
        raise OSError(28, "No space left on device")


def test_a_vote_outlives_its_peer_and_an_older_one_does_not_take_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.votes.last is None
    store.votes.keep(VOTE)
    store.votes.keep(PlanRef(6, "b" * 64))
    store.close()
    assert Store(tmp_path).votes.last == VOTE


def test_a_full_disk_keeps_the_vote_before(tmp_path: Path) -> None:
    VoteFile(tmp_path, Disk(), 0).keep(VOTE)
    full = VoteFile(tmp_path, FullDisk(), 0)
    with pytest.raises(StorageError):
        full.keep(PlanRef(8, "b" * 64))
    assert full.last == VOTE == VoteFile(tmp_path, Disk(), 0).last


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"epoch": -1, "plan": ""}', b'{"epoch": "7", "plan": "x"}', b"\xff"]
)
def test_a_damaged_one_binds_for_the_whole_generation_and_is_put_aside(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    found = VoteFile(tmp_path, Disk(), 3 * GENERATION + 5)
    assert found.last is not None and found.last.epoch == 4 * GENERATION - 1
    (note,) = found.notes
    assert note.kind == "storage-damaged" and (tmp_path / "damaged" / NAME).read_bytes() == data
    found.keep(PlanRef(5 * GENERATION, "c" * 64))
    assert VoteFile(tmp_path, Disk(), 0).last == PlanRef(5 * GENERATION, "c" * 64)
