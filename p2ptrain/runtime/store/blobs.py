"""Content-addressed bytes on disk and in memory: written, received in chunks, verified, read in ranges, collected.

Invariant: a file ``blobs/<sha256>`` is complete, has that hash, and was synced before it got its name. What is not
complete is called ``*.part`` (received) or ``*.tmp`` (written), never survives a restart, and is never read for
anybody. Ephemeral blobs live in memory only (``passing``).

What is needed no more lingers for some seconds: others were told of it, and may be fetching it. It never stands in the
way of anything new.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from mmap import ACCESS_READ, mmap
from pathlib import Path

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.ids import BlobId, blob_id, hash_file, is_sha256
from p2ptrain.runtime.store.arriving import ArrivingHash
from p2ptrain.runtime.store.disk import Disk, StorageError, raise_for_now, storage_error
from p2ptrain.runtime.store.passing import PassingBlobs, view_of
from p2ptrain.wire.shared_bytes import SharedBytes

_LINGER_SHARE = 8
"""What lingers takes at most this part of the quota."""


def check_blob_id(blob: str) -> BlobId:
    """Only 64 lower-case hexadecimal characters become a file name. Raises ``RemoteError``."""
    if not is_sha256(blob):
        raise RemoteError("blob-id", f"{blob!r:.80} is no sha256")
    return BlobId(blob)


class _Incoming:
    """A blob being received."""

    def __init__(self, num_bytes: int, path: Path) -> None:
        self.num_bytes = num_bytes
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.hash = ArrivingHash()

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self.fd, end - start, start)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Blobs:
    """The blobs of one job, in ``directory``. ``linger_s``: how long one that nobody needs or reads stays."""

    def __init__(
        self,
        directory: Path,
        *,
        quota_bytes: int,
        ephemeral_bytes: int,
        disk: Disk,
        linger_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._quota_bytes = quota_bytes
        self._disk = disk
        self.passing = PassingBlobs(ephemeral_bytes)
        self._incoming: dict[BlobId, _Incoming] = {}
        self._linger_s, self._clock = linger_s, clock
        self._lingering: OrderedDict[BlobId, float] = OrderedDict()
        """Needed no more -> when it was last needed or read, the oldest first."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sizes: dict[BlobId, int] = {}
        for path in directory.iterdir():
            if path.suffix in (".part", ".tmp"):
                path.unlink()
            elif is_sha256(path.name) and path.is_file():
                self._sizes[BlobId(path.name)] = path.stat().st_size
        self.reserved_bytes = 0
        """Taken in the quota by others than the blobs here."""

    # --- what is there ----------------------------------------------------------------------------------------------

    def __contains__(self, blob: object) -> bool:
        return blob in self._sizes or blob in self.passing

    def stored(self) -> frozenset[BlobId]:
        """The complete blobs on disk."""
        return frozenset(self._sizes)

    def num_bytes(self, blob: BlobId) -> int | None:
        """Size of a complete blob; ``None`` if it isn't here."""
        if blob in self._sizes:
            return self._sizes[blob]
        return self.passing.num_bytes(blob)

    @property
    def used_bytes(self) -> int:
        """On disk, what is being received counted in full."""
        receiving = sum(incoming.num_bytes for incoming in self._incoming.values())
        return sum(self._sizes.values()) + receiving + self.reserved_bytes

    def path(self, blob: BlobId) -> Path | None:
        """Where a complete blob lies on disk; only for reading."""
        return self._file(blob) if blob in self._sizes else None

    def read(self, blob: BlobId, offset: int, length: int) -> bytes | memoryview | None:
        """A range of a complete blob, ``None`` if it isn't here. Raises ``RemoteError`` outside of the blob.

        And ``StorageError`` if no file can be opened for now.
        """
        size = self.num_bytes(blob)
        if size is None:
            return None
        if offset < 0 or length < 1 or offset + length > size:
            raise RemoteError("range", f"{length} bytes at {offset} of a blob of {size}")
        if blob not in self._sizes:
            return self.passing.read(blob, offset, length)
        if blob in self._lingering:
            self._lingering[blob] = self._clock()
            self._lingering.move_to_end(blob)
        try:
            with self._file(blob).open("rb") as file:
                data = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise_for_now(self._file(blob), error)
            return None  # taken away behind our back, or a bad disk: for the reader it isn't here
        return data if len(data) == length else None

    def share(self, blob: BlobId) -> bytes | bytearray | SharedBytes | None:
        """All bytes of a complete blob, for another process to map; they stay readable after a deletion.

        ``None`` if it isn't here. Raises ``StorageError`` if no file can be opened for now.
        """
        if (passing := self.passing.get(blob)) is not None:
            return passing
        if not self._sizes.get(blob):
            return b"" if blob in self._sizes else None
        try:
            return SharedBytes(os.open(self._file(blob), os.O_RDONLY | os.O_CLOEXEC), self._sizes[blob])
        except OSError as error:
            raise_for_now(self._file(blob), error)
            return None  # taken away, or emptied behind our back

    def map(self, blob: BlobId) -> bytes | bytearray | memoryview | mmap | None:
        """All bytes of a complete blob, mapped where they lie on disk; they stay readable after a deletion.

        ``None`` if it isn't here. Raises ``StorageError`` if no file can be opened for now.
        """
        if (passing := self.passing.get(blob)) is not None:
            return view_of(passing)
        if not self._sizes.get(blob):
            return b"" if blob in self._sizes else None
        try:
            with self._file(blob).open("rb") as file:
                return mmap(file.fileno(), 0, access=ACCESS_READ)
        except ValueError:  # emptied behind our back
            return None
        except OSError as error:
            raise_for_now(self._file(blob), error)
            return None  # taken away

    # --- putting ----------------------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview | Path) -> BlobId:
        """Save ``data``; a file in ``spool`` is moved. Raises ``StorageError``, and then the file is still there."""
        if isinstance(data, Path):
            return self._adopt(data)
        blob = blob_id(data)
        self._lingering.pop(blob, None)
        if blob not in self._sizes:
            self._check_quota(len(data))
            self._disk.write_file(self._file(blob), data)
            self._sizes[blob] = len(data)
        return blob

    @property
    def spool(self) -> Path:
        """Where files for ``put`` may be written, as ``*.tmp``; what is left of them goes at the next start."""
        return self._directory

    def _adopt(self, path: Path) -> BlobId:
        try:
            blob, num_bytes = hash_file(path), path.stat().st_size
            self._lingering.pop(blob, None)
            if blob in self._sizes:
                path.unlink()
                return blob
            self._check_quota(num_bytes)
            with path.open("rb") as file:
                self._disk.fsync(file.fileno())
            self._disk.replace(path, self._file(blob))
            self._disk.sync_directory(self._directory)
        except OSError as error:
            raise storage_error(path, error) from error
        self._sizes[blob] = num_bytes
        return blob

    def put_ephemeral(self, data: bytes | SharedBytes) -> BlobId:
        """Keep ``data`` in memory for a while. Raises ``StorageError`` if it alone is above the bound."""
        return self.passing.put(data)

    def begin(self, blob: BlobId, num_bytes: int, *, ephemeral: bool = False) -> None:
        """Get ready to receive ``blob`` (again). Raises ``RemoteError`` for a bad name, ``StorageError``."""
        check_blob_id(blob)
        self.abandon(blob)
        if ephemeral:
            self.passing.begin(blob, num_bytes)
            return
        self._check_quota(num_bytes)
        path = self._directory / f"{blob}.part"
        try:
            self._incoming[blob] = _Incoming(num_bytes, path)
        except OSError as error:
            raise storage_error(path, error) from error

    def write(self, blob: BlobId, offset: int, data: bytes | memoryview) -> None:
        """Put received bytes where they belong. Raises ``StorageError``; then ``abandon`` it."""
        if self.passing.is_incoming(blob):
            self.passing.write(blob, offset, data)
            return
        incoming = self._receiving(blob)
        if offset < 0 or offset + len(data) > incoming.num_bytes:
            raise LocalError(f"{len(data)} bytes at {offset} of an incoming blob of {incoming.num_bytes}")
        try:
            self._disk.write(incoming.fd, data, offset)
            incoming.hash.written(offset, data, incoming.read)
        except OSError as error:
            raise storage_error(incoming.path, error) from error

    def finish(self, blob: BlobId) -> bool:
        """All bytes are written: with the right hash the blob is here now; if not, write again, or ``abandon`` it."""
        if self.passing.is_incoming(blob):
            return self.passing.finish(blob)
        incoming = self._receiving(blob)
        try:
            if incoming.hash.of(incoming.num_bytes, incoming.read) != blob:
                incoming.hash.start_over()
                return False
            self._disk.fsync(incoming.fd)
            self._disk.replace(incoming.path, self._file(blob))
            self._disk.sync_directory(self._directory)
        except OSError as error:
            self.abandon(blob)
            raise storage_error(incoming.path, error) from error
        self.abandon(blob)
        self._lingering.pop(blob, None)
        self._sizes[blob] = incoming.num_bytes
        return True

    def incoming_bytes(self, blob: BlobId) -> int:
        """Size of a blob being received; 0 if it isn't."""
        return self._incoming[blob].num_bytes if blob in self._incoming else self.passing.incoming_bytes(blob)

    def abandon(self, blob: BlobId) -> None:
        """Receive no more of it; what was received is gone."""
        self.passing.abandon(blob)
        incoming = self._incoming.pop(blob, None)
        if incoming is not None:
            incoming.close()
            incoming.path.unlink(missing_ok=True)

    # --- letting go -------------------------------------------------------------------------------------------------

    def collect(self, needed: Collection[BlobId]) -> None:
        """Blobs on disk that are not in ``needed`` linger, and those that have done so for long enough are deleted."""
        now = self._clock()
        for blob in [blob for blob in self._lingering if blob in needed]:
            del self._lingering[blob]
        for blob in sorted(self._sizes.keys() - set(needed) - self._lingering.keys()):
            self._lingering[blob] = now
        left_bytes = sum(self._sizes[blob] for blob in self._lingering)
        for blob, since in list(self._lingering.items()):
            if now - since >= self._linger_s or left_bytes > self._quota_bytes // _LINGER_SHARE:
                left_bytes -= self._delete(blob)

    def delete_lingering(self) -> int:
        """Delete whatever nobody here needs, at once; how many bytes that freed."""
        return sum(map(self._delete, list(self._lingering)))

    def _delete(self, blob: BlobId) -> int:
        try:
            self._file(blob).unlink(missing_ok=True)
        except OSError:
            return 0  # still there: it stays counted, and the next collection tries again
        self._lingering.pop(blob, None)
        return self._sizes.pop(blob)

    def move_away(self, blob: BlobId, target: Path) -> None:
        """Put a damaged blob's file somewhere else."""
        self._disk.replace(self._file(blob), target)
        self._sizes.pop(blob, None)
        self._lingering.pop(blob, None)

    def close(self) -> None:
        for blob in list(self._incoming):
            self.abandon(blob)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _file(self, blob: BlobId) -> Path:
        return self._directory / check_blob_id(blob)

    def _receiving(self, blob: BlobId) -> _Incoming:
        incoming = self._incoming.get(blob)
        if incoming is None:
            raise LocalError(f"blob {blob} is not being received")
        return incoming

    def _check_quota(self, num_bytes: int) -> None:
        if self.used_bytes + num_bytes > self._quota_bytes:
            self.delete_lingering()
        if self.used_bytes + num_bytes > self._quota_bytes:
            raise StorageError(
                f"{self._directory}: {num_bytes} bytes more would exceed the quota of {self._quota_bytes}"
                f" ({self.used_bytes} used); raise the quota or delete old jobs",
                full=True,
            )
