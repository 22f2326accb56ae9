"""The vote on disk: kept whole, never replaced by an older one, and binding where it can't be read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2ptrain.core.plan import MAX_EPOCH
from p2ptrain.protocol.consensus.ballot import UNREADABLE, PlanRef
from p2ptrain.protocol.consensus.epochs import GENERATION, MAX_VOTE_STEP
from p2ptrain.runtime.store.disk import Disk, StorageError
from p2ptrain.runtime.store.manifest import Manifest, load_manifest, manifest_bytes
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


def said(epoch: object, plan: object = "a" * 64) -> bytes:
    return json.dumps({"epoch": epoch, "plan": plan}).encode()


def put(where: Path, data: bytes) -> VoteFile:
    (where / NAME).write_bytes(data)
    return VoteFile(where, Disk(), 3 * GENERATION + 5)


DAMAGED = [
    *(b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"7" * 5000, b"null"),
    *map(said, (-1, 0, "7", True, 7.0, None, [7], MAX_EPOCH + 1, 2**53, 2**62, 2**63 - 1, 2**64, 10**400)),
    *(said(3 * GENERATION + 5 + MAX_VOTE_STEP + 1), said(MAX_EPOCH)),
    *(said(7, plan) for plan in ("", "x", "A" * 64, "../" * 21 + "x", "a" * 65, 7, None)),
]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_one_binds_for_the_whole_generation_and_is_put_aside(tmp_path: Path, data: bytes) -> None:
    found = put(tmp_path, data)
    assert found.last is not None and found.last.epoch == 4 * GENERATION - 1
    (note,) = found.notes
    assert note.kind == "storage-damaged" and (tmp_path / "damaged" / NAME).read_bytes() == data
    again = VoteFile(tmp_path, Disk(), 3 * GENERATION + 5)
    assert (again.last, again.notes) == (found.last, []), "and after a second start"
    found.keep(PlanRef(5 * GENERATION, "c" * 64))
    assert VoteFile(tmp_path, Disk(), 0).last == PlanRef(5 * GENERATION, "c" * 64)


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")], ids=["pipe", "folder", "link"]
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / NAME)
    found = VoteFile(tmp_path, Disk(), 5)
    assert found.last in (None, PlanRef(GENERATION - 1, UNREADABLE))
    found.keep(PlanRef(GENERATION, "a" * 64))
    assert VoteFile(tmp_path, Disk(), 5).last == PlanRef(GENERATION, "a" * 64)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / NAME).open("wb") as file:
        file.truncate(1 << 40)
    assert VoteFile(tmp_path, Disk(), 5).last == PlanRef(GENERATION - 1, UNREADABLE)


@pytest.mark.parametrize("epoch", [1, 3 * GENERATION + 5, 3 * GENERATION + 5 + MAX_VOTE_STEP])
def test_a_vote_that_can_have_been_cast_binds_wherever_it_came_from(tmp_path: Path, epoch: int) -> None:
    assert put(tmp_path, said(epoch)).last == PlanRef(epoch, "a" * 64)


def test_the_bound_never_passes_the_last_epoch(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"{")
    assert VoteFile(tmp_path, Disk(), MAX_EPOCH).last == PlanRef(MAX_EPOCH, UNREADABLE)


@pytest.mark.parametrize("other", [PlanRef(8, "b" * 64), PlanRef(9, "b" * 64)])
def test_where_another_process_has_voted_this_one_does_not(tmp_path: Path, other: PlanRef) -> None:
    """Two peers in one directory, on a file system without locks."""
    here, there = VoteFile(tmp_path, Disk(), 0), VoteFile(tmp_path, Disk(), 0)
    here.keep(VOTE)
    there.keep(other)
    with pytest.raises(StorageError, match="another process"):
        here.keep(PlanRef(8, "c" * 64))
    assert VoteFile(tmp_path, Disk(), 0).last == other and here.last == VOTE


@pytest.mark.parametrize("data", [None, b"{", said(6, "b" * 64), said(2**62)])
def test_what_was_taken_away_meanwhile_or_is_older_is_replaced(tmp_path: Path, data: bytes | None) -> None:
    votes = VoteFile(tmp_path, Disk(), 0)
    votes.keep(VOTE)
    if data is None:
        (tmp_path / NAME).unlink()
    else:
        (tmp_path / NAME).write_bytes(data)
    votes.keep(PlanRef(8, "c" * 64))
    votes.keep(PlanRef(8, "c" * 64))  # once more
    assert VoteFile(tmp_path, Disk(), 0).last == PlanRef(8, "c" * 64)


@pytest.mark.parametrize("epoch", [MAX_EPOCH + 1, 2**62, 2**63 - 1])
def test_a_manifest_of_an_absurd_epoch_is_damaged(tmp_path: Path, epoch: int) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest_bytes(Manifest(epoch=epoch)))
    assert load_manifest(path)[0] is None
