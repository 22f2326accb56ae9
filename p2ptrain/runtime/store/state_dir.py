"""What a peer keeps over a restart: the state directory, with a store for each job and the addresses that worked.

    <state>/lock, addresses.json, groups.json (``kept``), members.json (``members``), <job>/ (``store``)

Invariant: one peer at a time has the directory; the lock goes with its process, however that ends (a system without
such locks has none).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from p2ptrain.errors import LocalError, UserError
from p2ptrain.ids import GroupTag, JobId, PeerId
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.store.disk import Disk, storage_error
from p2ptrain.runtime.store.json_files import json_bytes, load_json, move_aside
from p2ptrain.runtime.store.kept import GROUPS, is_job, load_groups
from p2ptrain.runtime.store.store import Store, StoreConfig

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

_MAX_PEERS = 1024
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_MAX_GROUPS = 256


class StateDir:
    """One peer's state directory, locked while it is open."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """Raises ``UserError`` if it can't be used or another peer has it."""
        self.path = path
        self._disk = disk or Disk()
        self._notes: list[Note] = []
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{path}: can't be used as state directory ({reason}); choose another with --state"
            ) from None
        self._lock()

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _HELD:  # a file system without locks: only the person can see to it
                    self._notes.append(Note("no-locks", (("where", str(self.path)),)))
                    return self._write_pid()
                pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(self._fd)
                raise UserError(
                    f"{self.path}: state directory in use by another peer (pid {pid});"
                    " stop that one, or choose another directory with --state"
                ) from None
        self._write_pid()

    def _write_pid(self) -> None:
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds, only the pid in it is missing

    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that have a directory here, the last used first."""
        found = [path for path in self.path.iterdir() if is_job(path.name) and path.is_dir()]
        return tuple(JobId(path.name) for path in sorted(found, key=lambda p: (-p.stat().st_mtime, p.name)))

    def open_job(self, job: JobId, config: StoreConfig | None = None) -> Store:
        """The store of a job, made if there is none. Raises ``UserError``."""
        if not is_job(job):
            raise LocalError(f"{job!r:.64} is no job id")
        return Store(self.path / job, config, self._disk)

    def save_job(self, group: GroupTag, job: JobId) -> None:
        """The job that a group has from now on, for a start without its job file. Raises ``StorageError``."""
        carry_job(self.path, group, job, self._disk)

    def save_addresses(self, addresses: Mapping[PeerId, Iterable[str]]) -> None:
        """Addresses that worked, of up to 1024 peers (the last given). Raises ``StorageError``."""
        newest = dict(list(addresses.items())[-_MAX_PEERS:])
        plain = {peer: list(own) for peer, own in newest.items()}
        self._disk.write_file(self.path / "addresses.json", json_bytes(plain))

    def load_addresses(self) -> dict[PeerId, tuple[str, ...]]:
        """What ``save_addresses`` saved; nothing (and a note) if it is damaged or can't be read."""
        path = self.path / "addresses.json"
        try:
            raw = load_json(path)
        except OSError as error:
            self._notes.append(Note("storage-broken", (("why", str(storage_error(path, error))),)))
            return {}
        if isinstance(raw, dict) and all(_is_strings(own) for own in raw.values()):
            return {PeerId(peer): tuple(own) for peer, own in raw.items()}
        if path.exists():
            self._notes.append(move_aside(self._disk, path, self.path / "damaged", "not a list of addresses"))
        return {}

    def take_notes(self) -> list[Note]:
        """What there is to say since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Give the directory free."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def carry_job(state: Path, group: GroupTag, job: JobId, disk: Disk | None = None) -> None:
    """The job that a group has from now on, for a start without its job file. Raises ``StorageError``."""
    groups = {tag: each for tag, each in load_groups(state).items() if tag != group}
    plain = [[tag, each] for tag, each in [*groups.items(), (group, job)][-_MAX_GROUPS:]]
    (disk or Disk()).write_file(state / GROUPS, json_bytes(plain))
