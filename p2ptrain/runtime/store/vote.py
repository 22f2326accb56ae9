"""What this peer voted for last, in a small file of its own: ``vote.json``.

Invariant: what ``keep`` returned for is safe on disk, and an older vote never takes its place. A file that can't be
read may have said anything, so it binds this peer for all of its plan's generation.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from p2ptrain.protocol.consensus.ballot import PlanRef
from p2ptrain.protocol.consensus.epochs import GENERATION
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.store.disk import Disk
from p2ptrain.runtime.store.json_files import json_bytes, load_json, move_aside

NAME = "vote.json"


class VoteFile:
    """Of one job. ``epoch``: of the plan that was in force last."""

    def __init__(self, folder: Path, disk: Disk, epoch: int) -> None:
        self._path = folder / NAME
        self._disk = disk
        self._lock = threading.Lock()
        self.notes: list[Note] = []
        self.last: PlanRef | None = None
        """As it was found, or kept since."""
        if self._path.exists():
            self.last = _read(load_json(self._path))
            if self.last is None:
                self.last = PlanRef(epoch // GENERATION * GENERATION + GENERATION - 1, "")
                self.notes.append(move_aside(disk, self._path, folder / "damaged", "it says no vote"))

    def keep(self, ref: PlanRef) -> None:
        """Raises ``StorageError``. From any thread: it does not wait for what else is written."""
        with self._lock:
            if self.last is None or ref.epoch >= self.last.epoch:
                self._disk.write_file(self._path, json_bytes({"epoch": ref.epoch, "plan": ref.hash}))
                self.last = ref


def _read(plain: Any) -> PlanRef | None:
    match plain:
        case {"epoch": int(epoch), "plan": str(plan)} if epoch > 0:
            return PlanRef(epoch, plan)
    return None
