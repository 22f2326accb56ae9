"""Accuracy over time without disturbing the group: snapshots are linked as the peers save them, and judged afterwards.

Invariant: nothing is asked of a peer and no byte crosses the network; a frame keeps a snapshot's file alive (a hard
link) after the peer has deleted its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2ptrain.config import Job
from p2ptrain.core.harvest import Collected, Snapshot
from p2ptrain.core.plan import Plan
from p2ptrain.errors import RemoteError
from p2ptrain.experiment import measure
from p2ptrain.ids import BlobId
from p2ptrain.learning.data import load, open_source, select
from p2ptrain.learning.models import global_model
from p2ptrain.modes.registry import mode_of
from p2ptrain.runtime.harvest import assemble
from p2ptrain.runtime.store.manifest import Manifest
from p2ptrain.wire.messages import SnapshotRef
from p2ptrain.wire.schema import from_plain

MAX_SAMPLES = 2000
"""Of the test samples that judge a point: they place it within a percent, in a time that a person waits."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A snapshot that was there at ``at_s`` after the lab's start."""

    at_s: float
    holding: SnapshotRef
    path: Path


@dataclass(slots=True)
class Camera:
    """``folder`` must be on the file system of the state directories."""

    folder: Path
    job: Job
    is_shared: bool = False
    """What the group has is nobody's own snapshot, but pieces of one state that peers keep for all."""
    frames: list[Frame] = field(default_factory=list)
    _seen: set[BlobId] = field(default_factory=set)

    def look(self, states: Iterable[Path], now_s: float) -> None:
        """Keep what the peers with these state directories have saved since the last look."""
        for state in states:
            for holding in _snapshots(state / self.job.id / "manifest.json", self.is_shared):
                if holding.blob in self._seen:
                    continue
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / holding.blob
                with contextlib.suppress(FileNotFoundError, FileExistsError):  # deleted while we looked
                    os.link(state / self.job.id / "blobs" / holding.blob, path)
                    self._seen.add(holding.blob)
                    self.frames.append(Frame(now_s, holding, path))

    def accuracies(self, plan: Plan, data: str, times: Sequence[float]) -> list[tuple[float, float]]:
        """(seconds, accuracy on the test samples) of what a partial harvest would have given at these times, in order.

        Of more test samples than ``MAX_SAMPLES`` an even choice. Times before the first snapshot are left out. ``plan``
        must be the only one that the group had: snapshots of another partition don't fit.
        """
        frames = [frame for frame in self.frames if self.is_shared or frame.holding.part < len(plan.parts)]
        if not frames:
            return []
        source = open_source(data)
        chosen = select(source, self.job.data, "test", seed=self.job.seed)
        test = load(source, self.job.data, "test", chosen[:: math.ceil(len(chosen) / MAX_SAMPLES)])
        model = global_model(self.job, allow_user_code=False)
        points = []
        for at_s in times:
            if not (parts := self._state_at(plan, at_s) if self.is_shared else _parts_at(frames, at_s)):
                continue
            harvest = assemble(Collected(self.job, plan, parts, None, {}))
            model.load_state_dict(harvest.state)
            points.append((at_s, measure.accuracy(model, test, len(self.job.data.classes)).accuracy))
        return points

    def _state_at(self, plan: Plan, at_s: float) -> dict[int, list[Snapshot]]:
        """As the mode's own harvest chooses among all that was there by then."""
        paths = {frame.holding.blob: frame.path for frame in self.frames if frame.at_s <= at_s}

        async def read(holding: SnapshotRef, what: str) -> bytes | None:
            return paths[holding.blob].read_bytes()

        refs = [frame.holding for frame in self.frames if frame.holding.blob in paths]
        _, parts = asyncio.run(mode_of(self.job).harvester.fetch(plan, refs, read))
        return parts


def _parts_at(frames: Sequence[Frame], at_s: float) -> dict[int, list[Snapshot]]:
    """As a harvest chooses: of each part the freshest copy of every trainer that is about as far as the furthest."""
    newest: dict[tuple[int, str], Frame] = {}
    for frame in sorted(frames, key=lambda f: f.at_s):
        if frame.at_s <= at_s:
            newest[frame.holding.part, frame.holding.trainer] = frame
    parts: dict[int, list[Snapshot]] = {}
    for part in sorted({part for part, _ in newest}):
        copies = [frame for (own, _), frame in sorted(newest.items()) if own == part]
        furthest = max(frame.holding.round for frame in copies)
        chosen = [frame for frame in copies if frame.holding.round >= furthest - 1]
        parts[part] = [Snapshot(frame.holding, frame.path.read_bytes()) for frame in chosen]
    return parts


def _snapshots(manifest: Path, of_all: bool) -> tuple[SnapshotRef, ...]:
    """The own ones, or those that are kept for all."""
    try:
        found = from_plain(Manifest, json.loads(manifest.read_bytes()))
        return found.replicas if of_all else found.snapshots
    except (FileNotFoundError, ValueError, RemoteError):  # not there yet
        return ()
