"""What a peer asks of its store: carried out in the node's disk thread, one after the other, and answered in its loop.

Blobs that stay in memory have a thread of their own, so that they never wait until something is safe on disk.

Invariant: the peer is told that something is kept only when it is safe on disk; what the disk refuses is said and
survived.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2ptrain.core.effects import (
    AbandonBlob,
    BeginBlob,
    ForgetBlob,
    KeepPlan,
    KeepReplica,
    KeepResult,
    KeepSnapshot,
    ReadResult,
    ReleaseBlob,
    ToTrainer,
    VerifyBlob,
)
from p2ptrain.core.peer_config import Resume
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.registry import read_plan
from p2ptrain.protocol.blobs.serving import ReadChunk
from p2ptrain.protocol.blobs.transfer import WriteChunk
from p2ptrain.protocol.consensus.ballot import KeepVote
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.in_order import InOrder
from p2ptrain.runtime.node.node import Node, Then
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.disk import StorageError
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.runtime.store.store import Store
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.shared_bytes import SharedBytes

AGAIN_S = 1.0
"""Until a file that could not be opened is tried again."""


class DiskWork:
    """The store of one job, at work for one peer. ``snapshot_saved`` hears of each own snapshot, and what failed."""

    def __init__(
        self,
        node: Node,
        peer: Peer,
        store: Store,
        state: StateDir,
        snapshot_saved: Callable[[SnapshotRef, BaseException | None], None],
    ) -> None:
        self._node = node
        self._peer = peer
        self._store = store
        self._state = state
        self._snapshot_saved = snapshot_saved
        self._to_trainer = InOrder()
        self._passing: set[BlobId] = set()
        """On their way here, to stay in memory."""
        self.handlers: dict[type, Callable[[Any], None]] = {
            BeginBlob: self._begin_blob,
            WriteChunk: self._write_chunk,
            VerifyBlob: self._verify_blob,
            AbandonBlob: self._abandon_blob,
            ForgetBlob: self._forget_blob,
            ReadChunk: self._read_chunk,
            KeepSnapshot: self._keep_snapshot,
            KeepReplica: self._keep_replica,
            KeepPlan: self._keep_plan,
            KeepVote: self._keep_vote,
            KeepResult: self._keep_result,
            ReadResult: self._read_result,
            ReleaseBlob: self._release_blob,
        }
        """What is done about each kind of effect."""

    def close(self) -> None:
        self._store.close()

    def resume(self) -> Resume:
        """What the store kept from an earlier start."""
        manifest = self._store.manifest
        plan: Plan | None = None
        if manifest.plan:
            try:
                plan = read_plan(manifest.plan)
            except RemoteError as error:
                self._node.note(Note("stored-plan-damaged", (("why", str(error)),)))
        self.take_notes()
        return Resume(
            plan=plan,
            own=manifest.snapshots,
            kept=tuple(h for h in manifest.replicas if h.kind == "part"),
            looked_at=tuple(h for h in manifest.replicas if h.kind == "kept"),
            result=next((h for h in reversed(manifest.replicas) if h.kind == "head"), None),
            has_blob=self._store.blobs.__contains__,
            voted=self._store.votes.last,
        )

    def take_notes(self) -> None:
        """Put what the store has to say into the journal."""
        for note in self._store.take_notes():
            self._node.note(note)

    # --- what the trainer makes and needs ---

    def path(self, blob: BlobId) -> str:
        """Where a blob lies, for the trainer to read; "" where it isn't here."""
        return str(self._store.blobs.path(blob) or "")

    def put(
        self, data: bytes | SharedBytes | str, *, ephemeral: bool, then: Callable[[BlobId | None, int], None]
    ) -> None:
        """Store bytes, or a file of the spool; then its name and size. No name: the disk refused it."""
        store = self._store

        def stored(blob: BlobId | None, error: BaseException | None) -> None:
            self.take_notes()
            then(blob, store.blobs.num_bytes(blob) or 0 if blob is not None else 0)

        if isinstance(data, str):
            self._node.on_disk(lambda: store.put(Path(data)), stored)
        elif ephemeral:
            self._node.in_memory(lambda: store.blobs.put_ephemeral(data), stored)
        else:
            self._node.on_disk(lambda: store.put(data.view if isinstance(data, SharedBytes) else data), stored)

    def fill_in(self, effect: ToTrainer, blob: BlobId, then: Callable[[Any], None]) -> None:
        """The command with the blob that it is about, to be mapped; not called where that is not here.

        Commands keep their order, though some blobs lie on the disk and some in memory: of the copies that a head is
        fitted over, the one that is said to be the last has to come last.
        """
        settle = self._to_trainer.place()

        def shared(data: Any, error: BaseException | None) -> None:
            if isinstance(error, StorageError):  # no file left for now; the trainer may be waiting for nothing else
                self._node.later(AGAIN_S, look)
            elif data is None:
                self._node.note(Note("blob-missing", (("blob", blob[:12]),)))
                settle(None)
            else:
                command: Any = effect.command
                settle(lambda: then(dataclasses.replace(command, **{effect.into: data})))

        def look() -> None:
            self._of(blob, lambda: self._store.blobs.share(blob), shared)

        look()

    def _of(self, blob: BlobId, work: Callable[[], Any], then: Then) -> None:
        """Do what is about one blob in the thread of those that lie where it lies."""
        passing = self._store.blobs.passing
        is_passing = blob in self._passing or blob in passing
        (self._node.in_memory if is_passing else self._node.on_disk)(work, then)

    # --- blobs on their way ---

    def _begin_blob(self, effect: BeginBlob) -> None:
        begin = self._store.begin
        if effect.ephemeral:
            self._passing.add(effect.blob)
        self._incoming(lambda: begin(effect.blob, effect.num_bytes, ephemeral=effect.ephemeral), effect.blob)

    def _write_chunk(self, effect: WriteChunk) -> None:
        self._incoming(lambda: self._store.write(effect.blob, effect.offset, effect.data), effect.blob)

    def _incoming(self, work: Callable[[], None], blob: BlobId) -> None:
        """Work on an incoming blob; a disk that refuses ends its transfer."""

        def done(_: Any, error: BaseException | None) -> None:
            if error is not None:
                self.take_notes()
                self._node.feed(lambda now: self._peer.blob_refused(blob, str(error), now))

        self._of(blob, work, done)

    def _verify_blob(self, effect: VerifyBlob) -> None:
        """Wrong bytes are their sender's fault; a disk that refuses them is not, and ends the transfer."""

        def checked(sound: Any, error: BaseException | None) -> None:
            self.take_notes()
            if error is not None:
                self._node.feed(lambda now: self._peer.blob_refused(effect.blob, str(error), now))
                return
            if sound:
                self._passing.discard(effect.blob)
            self._node.feed(lambda now: self._peer.blob_checked(effect.blob, bool(sound), now))

        self._of(effect.blob, lambda: self._store.finish(effect.blob), checked)

    def _abandon_blob(self, effect: AbandonBlob) -> None:
        self._of(effect.blob, lambda: self._store.abandon(effect.blob), lambda _, error: None)
        self._passing.discard(effect.blob)

    def _forget_blob(self, effect: ForgetBlob) -> None:
        self._node.in_memory(lambda: self._store.blobs.passing.forget(effect.blob), lambda _, error: None)

    def _read_chunk(self, effect: ReadChunk) -> None:
        passing = self._store.blobs.passing
        if effect.blob in passing:  # where it lies is all that is asked: no thread is needed
            data: memoryview | None = None
            with contextlib.suppress(RemoteError):  # what it asks for is not there
                data = passing.read(effect.blob, effect.offset, effect.length)
            asyncio.get_running_loop().call_soon(self._node.answer_read, effect, data)
            return

        def done(data: bytes | memoryview | None, error: BaseException | None) -> None:
            if isinstance(error, StorageError):
                self._node.put_off_read(effect)
            else:
                self._node.answer_read(effect, data)

        self._node.on_disk(lambda: self._store.blobs.read(effect.blob, effect.offset, effect.length), done)

    def _release_blob(self, effect: ReleaseBlob) -> None:
        def release() -> None:
            self._store.release(effect.blob)
            self._store.collect()

        self._node.on_disk(release, lambda _, error: None)

    # --- what is kept ---

    def _keep_snapshot(self, effect: KeepSnapshot) -> None:
        def kept(error: BaseException | None) -> None:
            self._node.feed(lambda now: self._peer.snapshot_kept(effect, error is None, now))
            self._snapshot_saved(effect.holding, error)

        self._change(lambda: self._store.add_snapshot(effect.holding, effect.drop), kept)

    def _keep_replica(self, effect: KeepReplica) -> None:
        def kept(error: BaseException | None) -> None:
            if error is not None and effect.keep:
                self._store.release(effect.holding.blob)
            if effect.keep:
                self._node.feed(lambda now: self._peer.replica_kept(effect.holding, error is None, now))

        def work() -> None:
            if not effect.keep:
                self._store.remove_replica(effect.holding)
            elif effect.holding.kind == "kept" and self._store.blobs.path(effect.holding.blob) is None:
                raise StorageError("newer snapshots have taken its place", full=False, for_now=True)
            else:
                self._store.add_replica(effect.holding)

        self._change(work, kept)

    def _keep_plan(self, effect: KeepPlan) -> None:
        """And where the peers of the plan were reached, to find them again after a restart."""
        plan, sessions = effect.plan, self._peer.sessions
        summary = f"plan {plan.hash[:16]} epoch {plan.epoch}"
        self._change(lambda: self._store.set_plan(plan.to_json(), plan.epoch, summary), lambda error: None)
        known: dict[PeerId, tuple[str, ...]] = {
            peer: (address,) for peer in sessions.peers() if (address := sessions.address_of(peer)) is not None
        }
        self._node.on_disk(lambda: self._state.save_addresses(known), lambda _, error: None)

    def _keep_vote(self, effect: KeepVote) -> None:
        """The group waits for it, so it does not wait for snapshots that are being written."""

        def kept(_: Any, error: BaseException | None) -> None:
            if error is not None and not isinstance(error, StorageError):
                raise error
            if error is not None:
                self._node.note(Note("vote-refused", (("why", str(error)),)))
            self._node.feed(lambda now: self._peer.vote_kept(effect.ref, error is None, now))

        self._node.on_disk(lambda: self._store.votes.keep(effect.ref), kept, waits=False)

    def _keep_result(self, effect: KeepResult) -> None:
        def save() -> None:
            self._store.put(effect.data)
            self._store.add_replica(effect.holding)

        def saved(_: Any, error: BaseException | None) -> None:
            self.take_notes()
            data = effect.data if error is None else None
            self._node.feed(lambda now: self._peer.result_kept(effect.holding, data, now))

        self._node.on_disk(save, saved)

    def _read_result(self, effect: ReadResult) -> None:
        def read() -> bytes:
            data = self._store.blobs.map(effect.holding.blob)
            return bytes(data) if data is not None else b""

        def done(data: bytes | None, error: BaseException | None) -> None:
            self._node.feed(lambda now: self._peer.result_kept(effect.holding, data or b"", now))

        self._node.on_disk(read, done)

    def _change(self, work: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        """A change of the manifest. Raising ``StorageError`` is the disk's way of saying no; anything else is a bug."""
        role = self._peer.role
        pinned = role.replicas.replication.owner.pinned() if role else frozenset()

        def change() -> None:
            self._store.protect("replicas", pinned)
            work()

        def done(_: Any, error: BaseException | None) -> None:
            self.take_notes()
            if error is not None and not isinstance(error, StorageError):
                raise error
            then(error)

        self._node.on_disk(change, done)
