"""What this peer voted for last, in a small file of its own: ``vote.json``.

Invariant: what ``keep`` returned for is safe on disk, an older vote never takes its place, and where another process
has voted in this peer's name this one does not. A file that says no vote that a peer can have cast may have said
anything, so it binds this peer for all of its plan's generation, however often it starts again.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from p2ptrain.core.plan import MAX_EPOCH
from p2ptrain.ids import is_sha256
from p2ptrain.protocol.consensus.ballot import UNREADABLE, PlanRef
from p2ptrain.protocol.consensus.epochs import GENERATION, MAX_VOTE_STEP
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.store.disk import Disk, StorageError, storage_error
from p2ptrain.runtime.store.json_files import json_bytes, load_json, move_aside

NAME = "vote.json"


class VoteFile:
    """Of one job. ``epoch``: of the plan that was in force last. Raises ``StorageError``."""

    def __init__(self, folder: Path, disk: Disk, epoch: int) -> None:
        self._path = folder / NAME
        self._disk = disk
        self._lock = threading.Lock()
        self.notes: list[Note] = []
        self.last: PlanRef | None = None
        """As it was found, or kept since."""
        if self._path.exists():
            self.last = _read(load_json(self._path), min(epoch + MAX_VOTE_STEP, MAX_EPOCH))
            if self.last is None:
                bound = epoch // GENERATION * GENERATION + GENERATION - 1
                self.last = PlanRef(min(bound, MAX_EPOCH), UNREADABLE)
                instead = folder / f"{NAME}.bound"  # first, so that a full disk unbinds nobody
                disk.write_file(instead, _bytes_of(self.last))
                self.notes.append(move_aside(disk, self._path, folder / "damaged", "it says no vote of this peer's"))
                disk.replace(instead, self._path)

    def keep(self, ref: PlanRef) -> None:
        """Raises ``StorageError``. From any thread: it does not wait for what else is written."""
        with self._lock:
            if self.last is not None and ref.epoch < self.last.epoch:
                return
            try:
                on_disk = _read(load_json(self._path), MAX_EPOCH)
            except OSError as error:
                raise storage_error(self._path, error) from error
            if on_disk not in (None, self.last, ref) and on_disk.epoch >= ref.epoch:
                raise StorageError(
                    f"{self._path}: another process has voted here, so this one does not: two peers use one state "
                    "directory, or the file is from elsewhere; end this peer, look who else does, and start it again",
                    full=False,
                )
            self._disk.write_file(self._path, _bytes_of(ref))
            self.last = ref


def _bytes_of(ref: PlanRef) -> bytes:
    return json_bytes({"epoch": ref.epoch, "plan": ref.hash})


def _read(plain: Any, highest: int) -> PlanRef | None:
    """The vote that it says, of an epoch up to ``highest``."""
    match plain:
        case {"epoch": int(epoch), "plan": str(plan)} if epoch is not True and 0 < epoch <= highest and is_sha256(plan):
            return PlanRef(epoch, plan)
    return None
