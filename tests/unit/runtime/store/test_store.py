"""The store: blobs and manifest that survive kills, full disks, and damage."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2ptrain.errors import LocalError, RemoteError, UserError
from p2ptrain.ids import BlobId, JobId, PeerId, blob_id
from p2ptrain.runtime.store.blobs import Blobs
from p2ptrain.runtime.store.disk import Disk, StorageError
from p2ptrain.runtime.store.manifest import load_manifest
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.runtime.store.store import Store, StoreConfig
from p2ptrain.wire.messages import SnapshotRef

OWN, OTHER = PeerId("a" * 16), PeerId("b" * 16)
JOB = JobId("0123456789abcdef")


def holding(data: bytes, round: int = 1, trainer: PeerId = OWN) -> SnapshotRef:
    return SnapshotRef(0, trainer, 1, round, 0, 0, blob_id(data), len(data))


def receive(store: Store, data: bytes, ephemeral: bool = False) -> BlobId:
    blob = blob_id(data)
    store.begin(blob, len(data), ephemeral=ephemeral)
    half = len(data) // 2
    store.write(blob, half, data[half:])
    store.write(blob, 0, data[:half])
    assert store.finish(blob)
    return blob


def kinds(store: Store) -> list[str]:
    return [note.kind for note in store.take_notes()]


def files(store: Store) -> set[str]:
    return {path.name for path in (store.path / "blobs").iterdir()}


# --- blobs ---


def test_put_read_and_map(tmp_path):
    store = Store(tmp_path)
    blob = store.put(b"0123456789")
    assert blob in store.blobs
    assert store.blobs.num_bytes(blob) == 10
    assert store.blobs.read(blob, 2, 3) == b"234"
    assert bytes(store.blobs.map(blob)[:]) == b"0123456789"
    for offset, length in [(0, 11), (10, 1), (-1, 2), (0, 0)]:
        with pytest.raises(RemoteError):
            store.blobs.read(blob, offset, length)
    missing = blob_id(b"?")
    assert store.blobs.read(missing, 0, 1) is None
    assert store.blobs.map(missing) is None
    assert store.blobs.path(missing) is None


def test_what_is_in_memory_only_can_be_forgotten(tmp_path):
    store = Store(tmp_path)
    kept, passing = receive(store, b"on disk"), receive(store, b"in memory", ephemeral=True)
    for blob in (kept, passing, BlobId("f" * 64)):
        store.blobs.passing.forget(blob)
    assert kept in store.blobs and passing not in store.blobs and store.blobs.passing.used_bytes == 0


@pytest.mark.parametrize("ephemeral", [False, True])
def test_receiving_verifies(tmp_path, ephemeral):
    store = Store(tmp_path)
    blob = receive(store, b"some bytes", ephemeral)
    assert store.blobs.read(blob, 5, 5) == b"bytes"
    wrong = blob_id(b"right")
    store.begin(wrong, 5, ephemeral=ephemeral)
    store.write(wrong, 0, b"wrong")
    assert wrong not in store.blobs
    assert store.blobs.read(wrong, 0, 5) is None, "nobody reads what is not verified"
    assert not store.finish(wrong)
    assert wrong not in store.blobs
    with pytest.raises(LocalError):
        store.write(wrong, 4, b"xx")
    store.write(wrong, 0, b"right")
    assert store.finish(wrong), "a second try"
    assert store.blobs.read(wrong, 0, 5) == b"right"
    with pytest.raises(LocalError):
        store.write(wrong, 0, b"x")
    other = blob_id(b"other")
    store.begin(other, 5, ephemeral=ephemeral)
    store.abandon(other)
    with pytest.raises(LocalError):
        store.write(other, 0, b"x")
    assert files(store) == (set() if ephemeral else {blob, wrong})


def test_a_name_that_is_no_hash_never_becomes_a_path(tmp_path):
    store = Store(tmp_path)
    for name in ["../" * 21 + "x", "A" * 64, "0" * 63, "/" * 64]:
        with pytest.raises(RemoteError):
            store.begin(BlobId(name), 5)
        with pytest.raises(RemoteError):
            store.begin(BlobId(name), 5, ephemeral=True)
        assert store.blobs.read(BlobId(name), 0, 1) is None


def test_ephemeral_blobs_are_bounded_and_the_oldest_go(tmp_path):
    store = Store(tmp_path, StoreConfig(ephemeral_bytes=100))
    blobs = [store.blobs.put_ephemeral(bytes([i]) * 40) for i in range(5)]
    assert [blob in store.blobs for blob in blobs] == [False, False, False, True, True]
    received = receive(store, b"x" * 60, ephemeral=True)
    assert store.blobs.passing.used_bytes == 100
    assert received in store.blobs
    with pytest.raises(StorageError):
        store.blobs.put_ephemeral(b"x" * 101)
    assert files(store) == set()


# --- manifest and collection ---


def test_everything_is_there_after_a_restart(tmp_path):
    store = Store(tmp_path)
    store.set_job('{"job":1}')
    store.set_plan('{"plan":1}', 3, lineage="epoch 3 from 2")
    datas = [b"one", b"two", b"three"]
    for i, data in enumerate(datas):
        store.put(data)
        store.add_snapshot(holding(data, i))
    receive(store, b"theirs")
    store.add_replica(holding(b"theirs", trainer=OTHER))
    store.close()
    again = Store(tmp_path)
    assert again.manifest == store.manifest
    assert (again.manifest.epoch, again.manifest.lineage) == (3, ("epoch 3 from 2",))
    assert [h.round for h in again.manifest.snapshots] == [1, 2]
    assert bytes(again.blobs.map(again.manifest.snapshots[-1].blob)[:]) == b"three"
    assert files(again) == {blob_id(b"two"), blob_id(b"three"), blob_id(b"theirs")}
    assert again.take_notes() == []
    again.remove_replica(holding(b"theirs", trainer=OTHER))
    again.close()
    assert blob_id(b"theirs") not in Store(tmp_path).blobs


AT_ONCE = StoreConfig(linger_s=0)


def test_only_what_nobody_needs_is_deleted(tmp_path):
    store = Store(tmp_path, AT_ONCE)
    fresh, shared, used = store.put(b"fresh"), store.put(b"shared"), store.put(b"used")
    store.begin(blob_id(b"coming"), 6)
    store.add_snapshot(holding(b"shared"))
    store.add_replica(holding(b"shared", trainer=OTHER))
    store.release(used)
    store.protect("harvest", [used])
    store.remove_replica(holding(b"shared", trainer=OTHER))
    store.collect()
    assert files(store) == {fresh, shared, used, blob_id(b"coming") + ".part"}
    mapped = store.blobs.map(used)
    store.protect("harvest", [])
    store.release(fresh)
    store.collect()
    assert files(store) == {shared, blob_id(b"coming") + ".part"}
    assert bytes(mapped[:]) == b"used", "who has it open can read on"


def lingering_blobs(tmp_path, quota_bytes=8000):
    """Blobs that linger for ten seconds, and the clock that they go by."""
    clock = [100.0]
    blobs = Blobs(
        tmp_path, quota_bytes=quota_bytes, ephemeral_bytes=0, disk=Disk(), linger_s=10.0, clock=lambda: clock[0]
    )
    return blobs, clock


def test_who_heard_of_a_snapshot_can_still_fetch_it_when_it_is_replaced(tmp_path):
    blobs, clock = lingering_blobs(tmp_path)
    unread, read, needed = (blobs.put(name) for name in (b"unread", b"read", b"needed"))
    blobs.collect([needed])
    clock[0] += 9
    blobs.collect([needed])
    assert blobs.read(read, 0, 4) == b"read" and blobs.stored() == {unread, read, needed}
    clock[0] += 2
    blobs.collect([needed])
    assert blobs.stored() == {read, needed}, "it is being read"
    blobs.collect([needed, read])
    clock[0] += 100
    blobs.collect([needed, read])
    assert blobs.stored() == {read, needed}, "it is needed again"
    blobs.collect([needed])
    assert blobs.put(b"read") == read and blobs.delete_lingering() == 0, "it was saved again"


def test_what_lingers_is_in_nobodys_way(tmp_path):
    blobs, _ = lingering_blobs(tmp_path)
    first, second = blobs.put(b"1" * 600), blobs.put(b"2" * 600)
    blobs.collect([])
    assert len(blobs.stored() & {first, second}) == 1, "an eighth of the quota at most"
    large = blobs.put(b"x" * 7900)
    assert blobs.stored() == {large}, "the quota is there for what is needed"


def test_a_full_disk_makes_room_of_what_lingers(tmp_path):
    disk = BadDisk(errno.ENOSPC, 10**9)
    store = Store(tmp_path, disk=disk)
    some_rounds(store, 4)
    named = store.manifest.blobs()
    assert named < files(store), "some linger"
    disk.fail_at = disk.calls + 1
    fits = store.put(b"fits now")
    assert files(store) == {*named, fits} and len(store.manifest.snapshots) == 2, "no own snapshot had to go"


def test_the_manifest_never_names_what_is_not_there(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(LocalError):
        store.add_snapshot(holding(b"nowhere"))
    store.blobs.put_ephemeral(b"passing")
    with pytest.raises(LocalError):
        store.add_replica(holding(b"passing"))


def test_lineage_is_bounded(tmp_path):
    store = Store(tmp_path)
    for i in range(70):
        store.set_plan("p", i, lineage=f"{i}" * 300)
    assert len(store.manifest.lineage) == 64
    assert Store(tmp_path).manifest == store.manifest


def test_what_older_software_wrote_is_read(tmp_path):
    store = Store(tmp_path)
    store.put(b"own")
    store.add_snapshot(holding(b"own"))
    receive(store, b"theirs")
    store.add_replica(holding(b"theirs", trainer=OTHER))
    receive(store, b"head")
    store.add_replica(dataclasses.replace(holding(b"head"), kind="head", span=3))
    store.close()
    path = tmp_path / "manifest.json"
    written = json.loads(path.read_bytes())
    written["custody"] = written.pop("replicas")
    for each in (*written["snapshots"], *written["custody"]):
        if each.pop("kind") == "head":
            each["part"] = 4096
    path.write_text(json.dumps(written))
    again = Store(tmp_path)
    assert again.manifest == store.manifest and again.take_notes() == []
    assert [(h.kind, h.part) for h in again.manifest.replicas] == [("part", 0), ("head", 0)]
    again.set_plan("plan", 1)
    again.close()
    assert "replicas" in json.loads(path.read_bytes()), "it is written as it is called now"


@pytest.mark.parametrize(
    "odd", [[], 3, None, {"replicas": 5}, {"custody": [7, None, {"part": 4096}, {"kind": []}]}, {"snapshots": {}}]
)
def test_what_is_no_manifest_of_any_software_is_said(tmp_path, odd):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(odd))
    manifest, why = load_manifest(path)
    assert manifest is None and why


# --- damage ---


def test_a_damaged_blob_is_moved_aside_and_said(tmp_path):
    store = Store(tmp_path)
    for i, data in enumerate([b"older", b"newer"]):
        store.put(data)
        store.add_snapshot(holding(data, i))
    (tmp_path / "blobs" / blob_id(b"newer")).write_bytes(b"nEwer")
    again = Store(tmp_path)
    assert kinds(again) == ["storage-damaged", "storage-missing"]
    assert [h.round for h in again.manifest.snapshots] == [0]
    assert (tmp_path / "damaged" / blob_id(b"newer")).read_bytes() == b"nEwer"
    assert again.blobs.used_bytes == 10


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"version": 99}', b"[" * 100_000])
def test_a_damaged_manifest_is_moved_aside_and_the_one_before_it_used(tmp_path, text):
    store = Store(tmp_path)
    store.set_plan("plan", 5)
    store.put(b"one")
    store.add_snapshot(holding(b"one", 1))
    store.put(b"two")
    store.add_snapshot(holding(b"two", 2))
    (tmp_path / "manifest.json").write_bytes(text)
    again = Store(tmp_path)
    assert again.manifest.epoch == 5
    assert [h.round for h in again.manifest.snapshots] == [1]
    assert kinds(again) == ["storage-damaged", "storage-damaged"]
    assert (tmp_path / "damaged" / blob_id(b"two")).read_bytes() == b"two", "nothing is deleted"
    assert (tmp_path / "damaged" / "manifest.json").read_bytes() == text
    (tmp_path / "manifest.json").write_bytes(text)
    Store(tmp_path)
    assert (tmp_path / "damaged" / "manifest.json.1").exists()


def test_leftovers_of_a_killed_peer_go(tmp_path):
    store = Store(tmp_path)
    store.begin(blob_id(b"coming"), 6)
    store.put(b"orphan")
    (tmp_path / "manifest.json.tmp").write_bytes(b"{")
    again = Store(tmp_path)
    assert files(again) == set()
    assert not (tmp_path / "manifest.json.tmp").exists()
    assert again.take_notes() == []


# --- full ---


class BadDisk(Disk):
    """Fails at the ``fail_at``-th call (and after, with ``stay``): half of a write is written."""

    def __init__(self, error: type[BaseException] | int, fail_at: int, stay: bool = False) -> None:
        self.error, self.fail_at, self.stay, self.calls = error, fail_at, stay, 0

    def _fails(self) -> bool:
        self.calls += 1
        return self.calls == self.fail_at or (self.stay and self.calls > self.fail_at)

    def _fail(self) -> None:
        raise OSError(self.error, os.strerror(self.error)) if isinstance(self.error, int) else self.error()

    def write(self, fd, data, offset):
        if self._fails():
            super().write(fd, data[: len(data) // 2], offset)
            self._fail()
        super().write(fd, data, offset)

    def fsync(self, fd):
        if self._fails():
            self._fail()

    def replace(self, source, target):
        if self._fails():
            self._fail()
        super().replace(source, target)


class Killed(BaseException):
    """What ``kill -9`` looks like from inside: nothing handles it."""


def some_rounds(store: Store, num_rounds: int = 3) -> None:
    first = store.manifest.epoch + 1 if store.manifest.lineage else 0
    for i in range(first, first + num_rounds):
        data = f"own {i}".encode()
        store.put(data)
        store.add_snapshot(holding(data, i))
        theirs = f"theirs {i}".encode()
        receive(store, theirs)
        kept = store.manifest.replicas
        store.add_replica(holding(theirs, i, OTHER))
        for old in kept:
            store.remove_replica(old)
        store.set_plan(f"plan {i}", i, lineage=str(i))


def check_sound(path: Path) -> Store:
    store = Store(path)
    assert store.take_notes() == [], "a kill damages nothing"
    named = store.manifest.blobs()
    assert files(store) == named
    for blob in named:
        assert blob_id(bytes(store.blobs.map(blob)[:])) == blob
    return store


def test_killed_at_every_call(tmp_path):
    disk = BadDisk(Killed, 10**9)
    some_rounds(Store(tmp_path / "whole", disk=disk))
    assert disk.calls > 50
    newest = -1
    for fail_at in range(1, disk.calls + 1):
        path = tmp_path / str(fail_at)
        with pytest.raises(Killed):
            some_rounds(Store(path, disk=BadDisk(Killed, fail_at)))
        store = check_sound(path)
        rounds = [h.round for h in store.manifest.snapshots]
        assert max(rounds, default=-1) >= newest, "what was safe stays safe"
        newest = max(rounds, default=-1)
        some_rounds(store, 1)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_every_call_failing_leaves_a_store_that_works_on(tmp_path, error):
    disk = BadDisk(error, 10**9)
    some_rounds(Store(tmp_path / "whole", disk=disk), 2)
    for fail_at in range(1, disk.calls + 1):
        path = tmp_path / str(fail_at)
        store = Store(path, disk=BadDisk(error, fail_at))
        try:
            some_rounds(store, 2)
        except StorageError as failure:
            assert failure.full == (error == errno.ENOSPC)
            assert store.problem
            assert kinds(store) == ["storage-full" if failure.full else "storage-broken"]
        some_rounds(store, 3)
        assert store.problem == ""
        store.close()
        assert check_sound(path).manifest == store.manifest


def test_a_full_disk_is_said_once_and_the_old_snapshot_stays(tmp_path):
    disk = BadDisk(errno.ENOSPC, 10**9, stay=True)
    store = Store(tmp_path, disk=disk)
    some_rounds(store, 3)
    before = store.manifest
    disk.fail_at = disk.calls
    for _ in range(5):
        with pytest.raises(StorageError, match="no space left"):
            store.put(b"x" * 10_000)
        with pytest.raises(StorageError):
            store.set_plan("other", 9)
    assert store.manifest == before
    assert kinds(store) == ["storage-full"]
    disk.stay = False
    store.set_plan("other", 9)
    assert store.problem, "a small file says nothing of a large one"
    for content in (b"a", b"b"):
        store.put(content * 10_000)
        assert store.problem, "what somebody else's old snapshot left free is taken again at once"
    store.put(b"c" * 10_000)
    assert kinds(store) == ["storage-works"]
    assert Store(tmp_path).manifest.snapshots[-1].round == 2


def test_quota(tmp_path):
    store = Store(tmp_path, StoreConfig(quota_bytes=10_000))
    for i in range(3):
        store.put(bytes([i]) * 3000)
        store.add_snapshot(holding(bytes([i]) * 3000, i))
    theirs = blob_id(b"t" * 5000)
    with pytest.raises(StorageError, match="quota"):
        store.begin(theirs, 5000)
    store.put(b"z" * 6000)  # the own snapshot before the newest makes room
    store.add_snapshot(holding(b"z" * 6000, 3))
    assert [h.round for h in store.manifest.snapshots] == [2, 3]
    with pytest.raises(StorageError, match="quota"):
        store.put(b"q" * 9000)
    assert store.blobs.map(blob_id(b"z" * 6000)) is not None
    assert kinds(store) == ["storage-full"], "what fits only because an own snapshot went proves no room"


def test_a_file_that_is_handed_over_is_moved_or_removed(tmp_path):
    store = Store(tmp_path, StoreConfig(quota_bytes=100))
    spooled = store.blobs.spool / "some.tmp"
    spooled.write_bytes(b"0123456789")
    inode = spooled.stat().st_ino
    blob = store.put(spooled)
    assert blob == blob_id(b"0123456789") and files(store) == {blob}
    assert store.blobs.path(blob).stat().st_ino == inode, "not copied"
    spooled.write_bytes(b"0123456789")
    assert store.put(spooled) == blob and files(store) == {blob}
    store.add_snapshot(holding(b"0123456789"))
    spooled.write_bytes(b"x" * 95)
    with pytest.raises(StorageError, match="quota"):
        store.put(spooled)
    assert files(store) == {blob}, "what can't be kept does not stay"
    with pytest.raises(StorageError, match="No such file"):
        store.put(spooled)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_file_handed_over_to_a_disk_that_fails(tmp_path, fail_at):
    store = Store(tmp_path, disk=BadDisk(errno.EIO, fail_at))
    spooled = store.blobs.spool / "some.tmp"
    spooled.write_bytes(b"0123456789")
    with pytest.raises(StorageError):
        store.put(spooled)
    assert not spooled.exists() and blob_id(b"0123456789") not in store.blobs
    spooled.write_bytes(b"0123456789")
    assert store.put(spooled) in store.blobs
    store.close()


# --- the state directory ---

LOOP = """
import sys
from pathlib import Path
from p2ptrain.runtime.store.state_dir import StateDir
sys.path.insert(0, sys.argv[2])
from test_store import JOB, some_rounds
state = StateDir(Path(sys.argv[1]))
store = state.open_job(JOB)
print("open", flush=True)
while True:
    some_rounds(store)
    state.save_addresses({str(i) * 16: ["tcp://10.0.0.1:1"] for i in range(9)})
"""


def start_loop(path: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", LOOP, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"open\n"
    return process


def test_a_killed_process_leaves_a_loadable_state(tmp_path):
    rng = random.Random(1)
    epoch = -1
    for _ in range(6):
        process = start_loop(tmp_path)
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        state = StateDir(tmp_path)
        store = check_sound(state.open_job(JOB).path)
        assert store.manifest.epoch >= epoch
        epoch = store.manifest.epoch
        assert len(state.load_addresses()) in (0, 9)
        assert state.take_notes() == []
        state.close()
    assert epoch > 0


def test_two_peers_do_not_share_a_state_directory(tmp_path):
    process = start_loop(tmp_path)
    try:
        with pytest.raises(UserError) as caught:
            StateDir(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert str(process.pid) in str(caught.value)
        assert "--state" in str(caught.value)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    StateDir(tmp_path).close()


def test_state_directory(tmp_path):
    state = StateDir(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    with pytest.raises(UserError):
        StateDir(tmp_path / "state")
    with pytest.raises(LocalError):
        state.open_job(JobId("../x"))
    assert state.jobs() == ()
    state.open_job(JOB)
    (tmp_path / "state" / "other").mkdir()
    assert state.jobs() == (JOB,)
    state.close()
    state.close()
    with pytest.raises(UserError, match="--state"):
        (tmp_path / "file").write_text("")
        StateDir(tmp_path / "file")


def test_addresses(tmp_path):
    state = StateDir(tmp_path)
    assert state.load_addresses() == {}
    assert state.take_notes() == []
    state.save_addresses({OWN: ["tcp://a:1", "tcp://b:2"], OTHER: []})
    assert state.load_addresses() == {OWN: ("tcp://a:1", "tcp://b:2"), OTHER: ()}
    (tmp_path / "addresses.json").write_text('{"a": 1}')
    assert state.load_addresses() == {}
    assert [note.kind for note in state.take_notes()] == ["storage-damaged"]
    assert (tmp_path / "damaged" / "addresses.json").exists()


def test_own_snapshots_stay_until_they_are_dropped(tmp_path):
    store = Store(tmp_path, AT_ONCE)
    for i in range(4):
        data = bytes([i])
        store.put(data)
        store.add_snapshot(holding(data, i), [blob_id(b"\1")] if i == 3 else [])
    assert [h.round for h in store.manifest.snapshots] == [0, 2, 3]
    assert files(store) == {blob_id(bytes([i])) for i in (0, 2, 3)}
