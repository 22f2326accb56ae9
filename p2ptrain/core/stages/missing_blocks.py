"""The blobs that the own stage lacks: fetched, asked for again when they can't be got, and given up in the end.

Invariant: blobs are only wanted while there is a time at which they are given up, and each is asked for a few times at
most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from p2ptrain.core.downloads import Downloads
from p2ptrain.core.effects import Effects
from p2ptrain.core.group_view import GroupView
from p2ptrain.ids import BlobId, PeerId, lot
from p2ptrain.protocol.machine import NEVER, Note
from p2ptrain.wire.messages import SnapshotRef

GATHER_S = 20.0
"""Blocks of the plan's step that nobody has said for so long to have are lost: votes may have come in too late."""
RETRY_S = 2.0
"""Until blocks are asked for again that could not be got."""
MAX_FAILURES = 3
"""So often blocks are asked for."""


class MissingBlocks:
    """Of one plan at a time. ``steps``: what states are counted in, for people."""

    def __init__(self, group: GroupView, downloads: Downloads, steps: str = "batches") -> None:
        self._steps = steps
        self._group = group
        self._downloads = downloads
        self._wanted: dict[BlobId, SnapshotRef] = {}
        self._fetched: dict[BlobId, SnapshotRef] = {}
        """Until the trainer has them."""
        self._late: dict[BlobId, SnapshotRef] = {}
        """On their way, and wanted no more."""
        self._failures: Counter[SnapshotRef] = Counter()
        """By all that is told of a blob: its size may be a lie, and the next one to tell of it right."""
        self._asked: Counter[PeerId] = Counter()
        """Bytes, by whom they come from."""
        self._give_up_at = NEVER
        self._retry_at = NEVER

    def __contains__(self, blob: BlobId) -> bool:
        return blob in self._wanted

    @property
    def fetched_bytes(self) -> int:
        """Of what has come since the trainer was given blocks last."""
        return sum(holding.num_bytes for holding in self._fetched.values())

    def is_given_up(self, now: float) -> bool:
        """Nobody has said for long to have what is lacking."""
        return now >= self._give_up_at

    def is_due(self, now: float) -> bool:
        """Whether to look again, or to give up."""
        return now >= self.deadline()

    def deadline(self) -> float:
        return min(self._give_up_at, self._retry_at)

    def begin(self, now: float) -> None:
        """From now on there is so much time to find them."""
        self._give_up_at = now + GATHER_S

    def stop(self, *, forget_failures: bool = False) -> None:
        """Nothing is lacking now; with ``forget_failures``: there is a new plan."""
        self._give_up_at = self._retry_at = NEVER
        self._late |= self._wanted
        self._wanted.clear()
        if forget_failures:
            self._failures.clear()
            self._asked.clear()

    def pause(self) -> None:
        """There is nobody to ask at present."""
        self._retry_at = NEVER

    def ask(self, lacking: Iterable[SnapshotRef], step: int, now: float) -> Effects:
        """Fetch what is not being fetched, from the members that have it."""
        self._retry_at = NEVER
        effects: Effects = []
        for holding in lacking:
            sources = [] if holding.blob in self._wanted else self._least_busy(self._group.holders(holding.blob))
            if not sources:
                continue
            self._wanted[holding.blob] = holding
            self._asked[sources[0]] += holding.num_bytes
            blocks = f"{holding.part}-{holding.part + holding.span - 1}"
            fields = (
                ("blocks", blocks),
                ("step", step),
                ("steps", self._steps),
                ("from", sources[0]),
                ("bytes", holding.num_bytes),
            )
            effects += [
                Note("fetching-blocks", fields),
                *self._downloads.fetch(holding.blob, holding.num_bytes, sources, now),
            ]
        return effects

    def _least_busy(self, sources: Iterable[PeerId]) -> list[PeerId]:
        """Who was asked for the fewest bytes comes first; of equals, each peer of a group begins with another."""
        own = self._group.own_id
        return sorted(sources, key=lambda peer: (self._asked[peer], lot(f"{own}/{peer}")))

    def arrived(self, blob: BlobId) -> SnapshotRef | None:
        """What it was wanted as, if it was one of them. One that is wanted no more is given with the next."""
        late, wanted = self._late.pop(blob, None), self._wanted.pop(blob, None)
        if (holding := wanted or late) is not None:
            self._fetched[blob] = holding
        return wanted

    def lost(self, blob: BlobId, now: float) -> SnapshotRef | None:
        """It could not be got. As what it was asked for often enough, or of none but such as hand out nothing."""
        self._late.pop(blob, None)
        if (holding := self._wanted.pop(blob, None)) is None:
            return None
        self._failures[holding] += 1
        self._retry_at = now + RETRY_S
        holders = self._group.holders(blob)
        in_vain = bool(holders) and all(map(self._downloads.hands_out_nothing, holders))
        return holding if in_vain or self._failures[holding] >= MAX_FAILURES else None

    def given(self) -> list[SnapshotRef]:
        """The trainer has them: what was fetched for it, of use or not."""
        fetched = list(self._fetched.values())
        self._fetched.clear()
        return fetched
