"""One job of a peer on disk: its manifest, and the blobs that it names.

    <state>/<job>/manifest.json, manifest.old.json, vote.json, journal.jsonl, blobs/<sha256>, damaged/

Invariant: after ``kill -9`` at any instruction the directory opens again, and the manifest names only blobs that are
complete. A manifest is replaced whole (temporary file, sync, rename, sync of the directory) after the blobs it names
are safe, and blobs are deleted only after the manifest that names them no more is safe. What can't be read is moved
to ``damaged/`` and said, never deleted.

A full disk or quota raises ``StorageError`` every time, changes nothing, and is noted once until it works again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2ptrain.core.replicas import NUM_OWN_SNAPSHOTS
from p2ptrain.errors import LocalError, UserError
from p2ptrain.ids import BlobId, hash_file
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.store.blobs import Blobs
from p2ptrain.runtime.store.disk import Disk, StorageError, raise_for_now, storage_error
from p2ptrain.runtime.store.json_files import free_name, move_aside
from p2ptrain.runtime.store.manifest import MANIFESTS, MAX_LINEAGE, Manifest, load_manifest, manifest_bytes
from p2ptrain.runtime.store.vote import VoteFile
from p2ptrain.wire.messages import SnapshotRef

NUM_PROOFS = 3
"""So many things must be saved in a row before a full disk counts as one with room."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    quota_bytes: int = 32 << 30
    """What all of one job may take on disk."""
    ephemeral_bytes: int = 256 << 20
    """What blobs may take in memory."""
    linger_s: float = 10.0
    """How long a blob stays that is needed no more: an observer may have heard of it a moment ago."""


class Store:
    """The manifest of one job and its blobs. Its methods block on the disk: call them off the event loop if large."""

    def __init__(self, path: Path, config: StoreConfig | None = None, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()
        self._config = config or StoreConfig()
        self._notes: list[Note] = []
        self._protected: dict[str, frozenset[BlobId]] = {}
        self._fresh: set[BlobId] = set()
        """Saved, and neither named in the manifest nor released yet."""
        self._problem, self._problem_bytes = "", 0
        self._num_saved = 0
        """Since something failed: of the size that failed, or more."""
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.blobs = Blobs(
                path / "blobs",
                quota_bytes=self._config.quota_bytes,
                ephemeral_bytes=self._config.ephemeral_bytes,
                disk=self._disk,
                linger_s=self._config.linger_s,
            )
            for torn in (*path.glob("*.tmp"), *path.glob(".*.part")):
                torn.unlink()
            self.manifest = self._open()
            self.votes = VoteFile(path, self._disk, self.manifest.epoch)
            self._notes += self.votes.notes
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{path}: can't be used ({reason}); check its permissions, or choose another --state"
            ) from None

    @property
    def problem(self) -> str:
        """Why nothing can be saved now ("" = it can)."""
        return self._problem

    def take_notes(self) -> list[Note]:
        """What there is to say since the last call."""
        notes, self._notes = self._notes, []
        return notes

    # --- manifest ---------------------------------------------------------------------------------------------------

    def set_job(self, job: str) -> None:
        """Keep the job's canonical JSON. Raises ``StorageError``."""
        self._save(dataclasses.replace(self.manifest, job=job))

    def set_plan(self, plan: str, epoch: int, lineage: str = "") -> None:
        """Keep the plan that holds from now on; ``lineage`` says where it comes from. Raises ``StorageError``."""
        lines = (*self.manifest.lineage, lineage[:256]) if lineage else self.manifest.lineage
        self._save(dataclasses.replace(self.manifest, plan=plan, epoch=epoch, lineage=lines[-MAX_LINEAGE:]))

    def add_snapshot(self, holding: SnapshotRef, drop: Collection[BlobId] | None = None) -> None:
        """A snapshot of the own part, whose blob is here, in place of those in ``drop``. Raises ``StorageError``.

        By default all are dropped but the one before.
        """
        others = tuple(own for own in self.manifest.snapshots if own.blob != holding.blob)
        others = others[-1:] if drop is None else tuple(own for own in others if own.blob not in drop)
        self._check_present(holding)
        self._save(dataclasses.replace(self.manifest, snapshots=(*others, holding)[-NUM_OWN_SNAPSHOTS:]))

    def add_replica(self, holding: SnapshotRef) -> None:
        """A snapshot kept for somebody else, whose blob is here. Raises ``StorageError``."""
        self._check_present(holding)
        if holding not in self.manifest.replicas:
            self._save(dataclasses.replace(self.manifest, replicas=(*self.manifest.replicas, holding)))

    def remove_replica(self, holding: SnapshotRef) -> None:
        """Keep it no more. Raises ``StorageError``."""
        kept = tuple(other for other in self.manifest.replicas if other != holding)
        if kept != self.manifest.replicas:
            self._save(dataclasses.replace(self.manifest, replicas=kept))

    # --- blobs ------------------------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview | Path) -> BlobId:
        """Save a blob; it stays until it leaves the manifest, or ``release``. Raises ``StorageError``.

        A file (see ``Blobs.spool``) is moved here, or removed.
        """
        try:
            num_bytes = data.stat().st_size if isinstance(data, Path) else len(data)
            blob = self._put(data, num_bytes)
        except OSError as error:
            raise storage_error(self.blobs.spool, error) from error
        finally:
            if isinstance(data, Path):
                data.unlink(missing_ok=True)
        self._fresh.add(blob)
        return blob

    def _put(self, data: bytes | memoryview | Path, num_bytes: int) -> BlobId:
        try:
            blob = self.blobs.put(data)
        except StorageError as error:
            if not error.full or not self._thin_out():
                self._report(error, num_bytes)
                raise
            self._num_saved = 0
            with self._reporting(num_bytes, done=False):  # room made is no sign that there is room
                return self.blobs.put(data)
        self._report(None, num_bytes)
        return blob

    def begin(self, blob: BlobId, num_bytes: int, *, ephemeral: bool = False) -> None:
        """Get ready to receive a blob. Raises ``RemoteError`` for a bad name, ``StorageError``."""
        if ephemeral:
            self.blobs.begin(blob, num_bytes, ephemeral=True)
            return
        with self._reporting(num_bytes, done=False):
            self.blobs.begin(blob, num_bytes)

    def write(self, blob: BlobId, offset: int, data: bytes | memoryview) -> None:
        """Received bytes of a blob begun. Raises ``StorageError``; then ``abandon`` it."""
        if self.blobs.passing.is_incoming(blob):
            self.blobs.passing.write(blob, offset, data)
            return
        with self._reporting(self.blobs.incoming_bytes(blob), done=False):
            self.blobs.write(blob, offset, data)

    def finish(self, blob: BlobId) -> bool:
        """Whether the received bytes have the right hash; then it is here as after ``put``. Raises ``StorageError``.

        If not, it can be written again from the start, or abandoned.
        """
        if self.blobs.passing.is_incoming(blob):
            return self.blobs.passing.finish(blob)
        with self._reporting(self.blobs.incoming_bytes(blob), done=False):
            sound = self.blobs.finish(blob)
        if blob in self.blobs.stored():
            self._report(None, self.blobs.num_bytes(blob) or 0)
            self._fresh.add(blob)
        return sound

    def abandon(self, blob: BlobId) -> None:
        """Receive no more of a blob begun, if it was; what was received is gone."""
        self.blobs.abandon(blob)

    def release(self, blob: BlobId) -> None:
        """A blob that was put or received will not be named in the manifest."""
        self._fresh.discard(blob)

    def protect(self, purpose: str, blobs: Iterable[BlobId]) -> None:
        """Blobs in use for ``purpose``, in place of those said before: not deleted though nothing names them."""
        self._protected[purpose] = frozenset(blobs)
        self.collect()

    def collect(self) -> None:
        """Let go of the blobs that neither the manifest names nor anybody uses."""
        named = self.manifest.blobs() | self.manifest.init()
        self.blobs.collect(named.union(self._fresh, *self._protected.values()))

    def close(self) -> None:
        self.blobs.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _report(self, error: StorageError | None, num_bytes: int) -> None:
        """Saving so much failed, or (``None``) worked: note it if that is news.

        Less than failed proves nothing, and one success little: what somebody else's old snapshot left free is taken
        again at once.
        """
        if error is None:
            if not self._problem or num_bytes < self._problem_bytes:
                return
            self._num_saved += 1
            if self._num_saved < NUM_PROOFS:
                return
        if error is not None and error.full:
            self.blobs.delete_lingering()  # so that the next attempt finds room, if that was all
        problem = "" if error is None else "full" if error.full else "no-files" if error.for_now else "broken"
        if problem != self._problem:
            fields = (("why", str(error)),) if error is not None else ()
            self._notes.append(Note(f"storage-{problem}" if problem else "storage-works", fields))
        self._problem_bytes = max(self._problem_bytes, num_bytes) if problem else 0
        self._problem, self._num_saved = problem, 0

    @contextmanager
    def _reporting(self, num_bytes: int, *, done: bool = True) -> Iterator[None]:
        """Report how saving ``num_bytes`` ends; ``done``: if it works, that many are safe."""
        try:
            yield
        except StorageError as error:
            self._report(error, num_bytes)
            raise
        if done:
            self._report(None, num_bytes)

    def _thin_out(self) -> bool:
        """No room: delete what lingers, or else the own snapshot before the newest. False if nothing can go."""
        if self.blobs.delete_lingering():
            return True
        if len(self.manifest.snapshots) < 2:
            return False
        try:
            self._save(dataclasses.replace(self.manifest, snapshots=self.manifest.snapshots[-1:]))
        except StorageError:
            return False
        self.blobs.delete_lingering()
        return True

    def _check_present(self, holding: SnapshotRef) -> None:
        if self.blobs.path(holding.blob) is None:
            raise LocalError(f"the manifest would name blob {holding.blob}, which is not here")

    def _save(self, manifest: Manifest) -> None:
        path, data = self.path / MANIFESTS[0], manifest_bytes(manifest)
        with self._reporting(len(data)):
            if path.exists():
                old = self.path / MANIFESTS[1]  # a second chance, no more
                try:
                    former = path.read_bytes()
                except OSError as error:
                    raise storage_error(path, error) from error
                self._disk.write_file(old, former, sync=False)
            try:
                self._disk.write_file(path, data)
            except StorageError as error:
                if not (error.full and self.blobs.delete_lingering()):
                    raise
                self._disk.write_file(path, data)
        self.manifest = manifest
        self._fresh -= manifest.blobs()
        self.collect()

    def _open(self) -> Manifest:
        path, old, damaged = *(self.path / name for name in MANIFESTS), self.path / "damaged"
        manifest, why = load_manifest(path)
        if manifest is None and why:
            self._notes.append(move_aside(self._disk, path, damaged, why))
        sure = manifest is not None or not why
        if manifest is None:
            manifest = load_manifest(old)[0] or Manifest()
        named = manifest.blobs() | manifest.init()
        for blob in sorted(self.blobs.stored()):
            if blob in named:
                if not _is_sound(self.blobs.path(blob), blob):
                    self._aside(blob, "its bytes do not have its hash")
            elif not sure:
                self._aside(blob, "its manifest is damaged")
        manifest = self._without_missing(manifest)
        self.blobs.reserved_bytes = sum(p.stat().st_size for p in damaged.iterdir()) if damaged.is_dir() else 0
        if sure:
            self.blobs.collect(named)  # written or dropped just before the end of the last run
            self.blobs.delete_lingering()
        return manifest

    def _without_missing(self, manifest: Manifest) -> Manifest:
        missing = manifest.blobs() - self.blobs.stored()
        for blob in sorted(missing):
            self._notes.append(Note("storage-missing", (("blob", blob), ("path", str(self.path)))))
        return dataclasses.replace(
            manifest,
            snapshots=tuple(h for h in manifest.snapshots if h.blob not in missing),
            replicas=tuple(h for h in manifest.replicas if h.blob not in missing),
        )

    def _aside(self, blob: BlobId, why: str) -> None:
        damaged = self.path / "damaged"
        damaged.mkdir(exist_ok=True, mode=0o700)
        self.blobs.move_away(blob, free_name(damaged, blob))
        self._notes.append(Note("storage-damaged", (("file", blob), ("moved_to", str(damaged)), ("why", why))))


def _is_sound(path: Path | None, blob: BlobId) -> bool:
    try:
        return path is not None and hash_file(path) == blob
    except OSError as error:
        raise_for_now(path or Path(), error)
        return False
